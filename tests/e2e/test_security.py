"""Only those who may call an RPC can: every credential by every way in, and every component inside the mesh."""

import base64
import hashlib
import json
import re
import ssl
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from google.api import annotations_pb2
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor

from mesh.machine import Mesh, identity
from mesh.machine.home import SERVICES
from vaccination.approval.v1 import approval_service_pb2
from vaccination.mypage.v1 import view_service_pb2
from vaccination.operations.v1 import operations_service_pb2

from .conftest import World
from .test_refusals import ROLES, Stage, forged, set_stage
from .ways import RPCS, Ways, _frames, ways_into

CREDENTIALS = (
    "no token", "customer", "manager", "manager of another hospital", "operator", "forged headers", "expired",
    "wrong audience", "alg none",
)  # fmt: skip
NOBODY = {"no token", "forged headers", "expired", "wrong audience", "alg none"}
BOUND = {rpc for rpc, roles in ROLES.items() if roles == ("manager", "operator")}
OPERATOR_ONLY = [
    *operations_service_pb2.DESCRIPTOR.services_by_name["OperationsService"].methods,
    *view_service_pb2.DESCRIPTOR.services_by_name["ViewService"].methods,
]
APPROVE = approval_service_pb2.DESCRIPTOR.services_by_name["ApprovalService"].methods_by_name["Approve"]
# Requests of an operator that change little.
ASKED: dict[str, Any] = {
    "GetStatus": {}, "ListDeadLetters": {}, "GetDeadLetter": {"sequence": 1}, "RedriveDeadLetters": {"sequence": 1},
    "DiscardDeadLetter": {"sequence": 1, "reason": "none"}, "PauseConsumer": {"until": "2020-01-01T00:00:00Z"},
    "ResumeConsumer": {}, "RedriveAllDeadLetters": {}, "ErasePerson": {"subject": "nobody"},
    "CheckBooks": {}, "GetMetrics": {"names": ["component_ready"]},
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A method, and a request that would succeed or at least be well-formed."""

    method: MethodDescriptor
    content: dict[str, Any]

    @property
    def path(self) -> str:
        """As gRPC writes it."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def body(self) -> bytes:
        """In a gRPC frame."""
        message = json_format.ParseDict(self.content, message_factory.GetMessageClass(self.method.input_type)())
        payload = message.SerializeToString()
        return b"\0" + len(payload).to_bytes(4, "big") + payload

    def rest(self) -> tuple[str, str, Any]:
        """Verb, path and JSON body."""
        rule = self.method.GetOptions().Extensions[annotations_pb2.http]
        verb = rule.WhichOneof("pattern")
        content = json.loads(json.dumps(self.content))

        def value(match: re.Match[str]) -> str:
            *outer, name = match[1].split(".")
            return str((content[outer[0]] if outer else content).pop(name))

        path = re.sub(r"{([\w.]+)}", value, getattr(rule, verb))
        if verb == "get":
            query = "&".join(f"{name}={item}" for name, item in content.items())
            return "GET", f"{path}?{query}", None
        return verb.upper(), path, content[rule.body] if rule.body not in ("*", "") else content


def calls(stage: Stage) -> list[Call]:
    """One call of every public RPC."""
    found = [Call(RPCS[name].method, json_plain(name, content)) for name, content in stage.good.items()]
    operations = [Call(method, ASKED.get(method.name, {})) for method in OPERATOR_ONLY]
    return found + [
        Call(c.method, {"service": "approval", **c.content}) if c.method.name in ASKED else c for c in operations
    ]


def json_plain(name: str, content: dict[str, Any]) -> dict[str, Any]:
    request = RPCS[name].request(content)
    return json_format.MessageToDict(request, preserving_proto_field_name=True)


def headers(world: World, stage: Stage, credential: str) -> dict[str, str]:
    """The headers that a caller with the credential sends."""
    subject, everything = "somebody", ["customer", "manager", "operator"]
    payload = {"iss": identity.ISSUER, "aud": identity.AUDIENCE, "sub": subject, "roles": everything, "exp": 2**31}
    plain = base64.urlsafe_b64encode(json.dumps(payload | {"hospital": stage.hospital}).encode()).decode().rstrip("=")
    match credential:
        case "no token":
            return {}
        case "forged headers":
            spiffe = "spiffe://cluster.local/ns/vaccination/sa/gateway"
            return {
                "x-jwt-payload": plain,
                "x-forwarded-client-cert": f"By={spiffe};Hash={hashlib.sha256().hexdigest()};URI={spiffe}",
                "x-envoy-internal": "true",
                "x-forwarded-for": "127.0.0.1",
            }
        case "expired":
            token = world.token(subject, everything, hospital=stage.hospital, expires_in=-70)
        case "wrong audience":
            token = world.token(subject, everything, hospital=stage.hospital, aud="payments")
        case "alg none":
            token = forged(payload, "none", lambda _: b"")
        case "manager of another hospital":
            token = world.token("manager", ["manager"], hospital="elsewhere")
        case role:
            token = stage.people[role] or ""
    return {"authorization": f"Bearer {token}"}


def expected(rpc: str, credential: str) -> str:
    """The expected result: UNAUTHENTICATED, PERMISSION_DENIED or passes."""
    if credential in NOBODY:
        return "UNAUTHENTICATED"
    role = credential.split()[0]
    roles = ROLES.get(rpc, ("operator",))
    if role not in roles or (credential == "manager of another hospital" and rpc in BOUND):
        return "PERMISSION_DENIED"
    return "passes"


def told(code: int | None) -> str:
    """The result that a gRPC code stands for."""
    return {16: "UNAUTHENTICATED", 7: "PERMISSION_DENIED"}.get(code or 0, "passes")


async def by_grpc(ways: Ways, channel: grpc.aio.Channel, call: Call, sent: dict[str, str]) -> str:
    one: Any = channel.unary_stream(call.path)
    answer = one(call.body[5:], metadata=tuple(sent.items()), timeout=30)
    try:
        await answer.read()
    except grpc.aio.AioRpcError as error:
        return told(error.code().value[0])
    finally:
        answer.cancel()
    return "passes"


async def by_grpc_web(ways: Ways, channel: grpc.aio.Channel, call: Call, sent: dict[str, str]) -> str:
    fields = sent | {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    async with ways.http.stream("POST", call.path, content=call.body, headers=fields) as response:
        if "grpc-status" in response.headers:
            return told(int(response.headers["grpc-status"]))
        async for kind, payload in _frames(response):
            found = re.search(rb"grpc-status: ?(\d+)", payload) if kind == 0x80 else None
            return told(int(found[1])) if found else "passes"
    return "passes"


async def by_rest(ways: Ways, channel: grpc.aio.Channel, call: Call, sent: dict[str, str]) -> str:
    verb, path, body = call.rest()
    async with ways.http.stream(verb, path, json=body, headers=sent) as response:
        if response.status_code == 200:
            return "passes"
        answer = json.loads(await response.aread())
    assert {401: 16, 403: 7}.get(response.status_code, answer["code"]) == answer["code"]
    return told(answer["code"])


@pytest.mark.parametrize("way", [by_grpc, by_grpc_web, by_rest], ids=lambda way: way.__name__)
async def test_every_rpc_is_open_to_those_it_is_for_and_to_nobody_else(world: World, way: Any) -> None:
    stage = await set_stage(world)
    seen: Counter[str] = Counter()
    wrong = []
    async with ways_into(world) as ways, grpc.aio.insecure_channel(world.mesh.gateway) as channel:
        for call in calls(stage):
            for credential in CREDENTIALS:
                sent = headers(world, stage, credential)
                if call.method in OPERATOR_ONLY:
                    sent["service"] = "approval"
                answer = await way(ways, channel, call, sent)
                seen[answer] += 1
                if answer != (right := expected(call.method.name, credential)):
                    wrong.append(f"{call.method.name}, {credential}: {answer}, not {right}")
    print(f"{way.__name__}: {sum(seen.values())} cells, {dict(seen)}")
    assert wrong == []
    assert sum(seen.values()) == len(CREDENTIALS) * (len(RPCS) + len(OPERATOR_ONLY))


# Inside: what each component may ask of each other


def _credentials(mesh: Mesh, component: str, folder: Path) -> ssl.SSLContext:
    """The certificate of a component's proxy, taken from the running configuration."""
    config = json.loads((mesh.home.path / "envoy.json").read_text())["static_resources"]
    if component == "gateway":
        socket = next(c for c in config["clusters"] if c["name"].startswith("gateway>"))["transport_socket"]
    else:
        listener = next(x for x in config["listeners"] if x["name"] == f"inbound|{component}")
        socket = listener["filter_chains"][0]["transport_socket"]
    [pair] = socket["typed_config"]["common_tls_context"]["tls_certificates"]
    file = folder / f"{component}.pem"
    file.write_text(pair["certificate_chain"]["inline_string"] + pair["private_key"]["inline_string"])
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(file)
    return context


@asynccontextmanager
async def _inside(mesh: Mesh, caller: str | None, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    if caller:
        context = _credentials(mesh, caller, folder)
    else:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with httpx.AsyncClient(http1=False, http2=True, verify=context, trust_env=False, timeout=15) as client:
        yield client


def _component(method: MethodDescriptor) -> str:
    return str(method.containing_service.full_name.split(".")[1])


async def test_inside_a_component_is_open_to_its_declared_callers_and_to_nobody_else(
    world: World, tmp_path: Path
) -> None:
    stage = await set_stage(world)
    everything = [call for call in calls(stage) if _component(call.method) != "operations"]
    approve = {"reservation_id": str(uuid.uuid4()), "customer_id": "x", "hospital_id": "nowhere", "date": "2030-01-01"}
    everything.append(Call(APPROVE, approve))
    seen: Counter[tuple[str, bool]] = Counter()
    for caller in ("gateway", *SERVICES):
        async with _inside(world.mesh, caller, tmp_path) as client:
            for call in everything:
                port = world.mesh.home.port(_component(call.method))
                fields = {"content-type": "application/grpc", "te": "trailers"}
                answer = await client.post(f"https://127.0.0.2:{port}{call.path}", content=call.body, headers=fields)
                # This is the policy's own refusal. The service refuses a call that gets past it, for lack of a token.
                let_in = answer.headers.get("grpc-message") != "RBAC: access denied"
                is_approve = call.method is APPROVE
                assert let_in == ((caller, is_approve) in {("gateway", False), ("reservation", True)}), (caller, call)
                seen[caller, let_in] += 1
    print(dict(seen))


async def test_inside_nobody_is_heard_without_an_identity_of_the_mesh(world: World, tmp_path: Path) -> None:
    for service in SERVICES:
        url = f"https://127.0.0.2:{world.mesh.home.port(service)}/grpc.health.v1.Health/Check"
        async with _inside(world.mesh, None, tmp_path) as client:
            # By TLS 1.3 the server refuses the missing certificate after the client's handshake is over. When that
            # reaches a read, the client's library hands on the alert as it is.
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await client.post(url)
        async with httpx.AsyncClient(http1=False, http2=True, trust_env=False) as plain:
            with pytest.raises(httpx.TransportError):
                await plain.post(url.replace("https", "http"))
