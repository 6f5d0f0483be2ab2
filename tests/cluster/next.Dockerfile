# The next version, for tests of updates: the same with one more migration, which the version before can live with.
ARG IMAGE=vaccination:dev
FROM ${IMAGE}
COPY next.sql /app/services/reservation/migrations/9999_next.sql
COPY next.sql /app/services/approval/migrations/9999_next.sql
COPY next.sql /app/services/mypage/migrations/9999_next.sql
