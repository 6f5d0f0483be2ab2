"""`helm test`: asks whether components are ready, and whether the gateway describes the public services.

Arguments are the gateway's URL, the host that clients ask it for (*: one that its certificate names), and then, in any
order, HOST:PORT/COMPONENT for each component, a URL for each that has pages, and the name of each service that the
gateway has to describe.
"""

import socket
import ssl
import sys
import urllib.request
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

PATIENCE = 20  # seconds for an answer, connecting included
gateway, name, *wanted = sys.argv[1:]
failed = False


def found(ok: bool, what: str) -> None:
    """Says what was found, and remembers a failure for the exit code."""
    global failed
    failed |= not ok
    print("ok    " if ok else "FAILED", what, flush=True)  # noqa: T201


def channel(url: str) -> grpc.Channel:
    """To the gateway, as a client that asks for `name`. Any certificate for that name will do that has not expired: who
    has issued it may be known to browsers and not here.
    """
    where = urlsplit(url)
    if where.scheme == "http":
        return grpc.insecure_channel(where.netloc, [("grpc.default_authority", name)])

    def handshake(context: ssl.SSLContext) -> ssl.SSLSocket:
        with socket.create_connection((where.hostname, where.port), PATIENCE) as plain:
            return context.wrap_socket(plain, server_hostname=where.hostname if name == "*" else name)

    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    with handshake(anybody) as encrypted:
        shown = ssl.DER_cert_to_PEM_cert(encrypted.getpeercert(binary_form=True))
    asked = name
    if name == "*":
        # Python reads the names of trusted certificates only. By a partial chain it trusts this one without its issuer.
        this_one = ssl.create_default_context(cadata=shown)
        this_one.check_hostname, this_one.verify_flags = False, ssl.VERIFY_X509_PARTIAL_CHAIN
        with handshake(this_one) as encrypted:
            names = encrypted.getpeercert().get("subjectAltName", ())
        asked = next((value.replace("*.", "check.") for kind, value in names if kind == "DNS"), where.hostname)
    options = [("grpc.ssl_target_name_override", asked), ("grpc.default_authority", asked)]
    return grpc.secure_channel(where.netloc, grpc.ssl_channel_credentials(shown.encode()), options)


urls = [one for one in wanted if one.startswith("http://")]
components = [one for one in wanted if "/" in one and one not in urls]
services = [one for one in wanted if "/" not in one]
for where in components:
    address, component = where.split("/")
    with grpc.insecure_channel(address) as direct:
        try:
            request = health_pb2.HealthCheckRequest(service=component)
            answer = health_pb2_grpc.HealthStub(direct).Check(request, timeout=PATIENCE, wait_for_ready=True)
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
    try:
        with channel(gateway) as way_in:
            reflect = reflection_pb2_grpc.ServerReflectionStub(way_in).ServerReflectionInfo
            question = reflection_pb2.ServerReflectionRequest(list_services="")
            [answer] = reflect(iter([question]), timeout=PATIENCE, wait_for_ready=True)
            described = {service.name for service in answer.list_services_response.service}
            for service in services:
                found(service in described, f"the gateway describes {service}")
    except grpc.RpcError as error:
        found(False, f"the gateway answers: {error.code().name}, {error.details()}")
    except OSError as error:
        found(False, f"the gateway answers: {error}")
sys.exit(failed)
