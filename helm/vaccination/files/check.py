"""`helm test`: asks whether components are ready, and whether the gateway describes the public services.

Arguments are the gateway's HOST:PORT and then, in any order, HOST:PORT/COMPONENT for each component, a URL for each that
has pages, and the name of each service that the gateway has to describe.
"""

import sys
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

PATIENCE = 20  # seconds for an answer, connecting included
gateway, *wanted = sys.argv[1:]
failed = False


def found(ok: bool, what: str) -> None:
    """Says what was found, and remembers a failure for the exit code."""
    global failed
    failed |= not ok
    print("ok    " if ok else "FAILED", what, flush=True)  # noqa: T201


urls = [one for one in wanted if one.startswith("http://")]
components = [one for one in wanted if "/" in one and one not in urls]
services = [one for one in wanted if "/" not in one]
for where in components:
    address, component = where.split("/")
    with grpc.insecure_channel(address) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=component)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE, wait_for_ready=True)
            found(answer.status == answer.SERVING, f"{component} is ready")
        except grpc.RpcError as error:
            found(False, f"{component} is ready: {error.code().name}, {error.details()}")
for url in urls:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE):  # noqa: S310 - any status but 200 raises
            found(True, f"{url} answers")
    except OSError as error:
        found(False, f"{url} answers: {error}")
if services:
    with grpc.insecure_channel(gateway) as channel:
        try:
            reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            question = reflection_pb2.ServerReflectionRequest(list_services="")
            [answer] = reflect(iter([question]), timeout=PATIENCE, wait_for_ready=True)
            described = {service.name for service in answer.list_services_response.service}
            for service in services:
                found(service in described, f"the gateway describes {service}")
        except grpc.RpcError as error:
            found(False, f"the gateway answers: {error.code().name}, {error.details()}")
sys.exit(failed)
