"""helm test: GATEWAY and then, in any order, HOST:PORT/COMPONENT to ask for its health, SERVICE to find described."""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

PATIENCE = 20  # seconds for an answer, connecting included
gateway, *wanted = sys.argv[1:]
failed = False


def found(ok: bool, what: str) -> None:
    """Writes a line."""
    global failed
    failed |= not ok
    print("ok    " if ok else "FAILED", what, flush=True)  # noqa: T201


for where in (one for one in wanted if "/" in one):
    address, component = where.split("/")
    with grpc.insecure_channel(address) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=component)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE, wait_for_ready=True)
            found(answer.status == answer.SERVING, f"{component} is ready")
        except grpc.RpcError as error:
            found(False, f"{component} is ready: {error.code().name}, {error.details()}")
with grpc.insecure_channel(gateway) as channel:
    try:
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        [answer] = reflect(iter([question]), timeout=PATIENCE, wait_for_ready=True)
        described = {service.name for service in answer.list_services_response.service}
        for service in (one for one in wanted if "/" not in one):
            found(service in described, f"the gateway describes {service}")
    except grpc.RpcError as error:
        found(False, f"the gateway answers: {error.code().name}, {error.details()}")
sys.exit(failed)
