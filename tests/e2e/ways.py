"""The ways in: a call, given as the RPC's name and the request as JSON, is made by gRPC, REST, gRPC-Web or grpcurl."""

import asyncio
import base64
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import grpc.aio
import httpx
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from openapi_schema_validator import OAS31Validator

from mesh import CHART
from services.chassis.edge import status_of
from vaccination.approval.v1 import hospital_service_pb2
from vaccination.mypage.v1 import mypage_service_pb2
from vaccination.reservation.v1 import reservation_service_pb2
from vaccination.vaccinemgmt.v1 import counter_service_pb2, recall_service_pb2, vaccinemgmt_service_pb2

from .conftest import Refusal, World, refusal

Request = dict[str, Any]

# Every public service by the name that `Client` has for it, and every RPC with its REST form. They are written out
# here, because they are what clients rely on.
SERVICES = {
    "reservation": reservation_service_pb2.DESCRIPTOR.services_by_name["ReservationService"],
    "hospital": hospital_service_pb2.DESCRIPTOR.services_by_name["HospitalService"],
    "vaccinemgmt": vaccinemgmt_service_pb2.DESCRIPTOR.services_by_name["VaccinemgmtService"],
    "recalls": recall_service_pb2.DESCRIPTOR.services_by_name["RecallService"],
    "counter": counter_service_pb2.DESCRIPTOR.services_by_name["CounterService"],
    "mypage": mypage_service_pb2.DESCRIPTOR.services_by_name["MypageService"],
}
ROUTES = {
    "CreateReservation": "POST /v1/reservations",
    "GetReservation": "GET /v1/reservations/{reservation_id}",
    "ListReservations": "GET /v1/reservations",
    "CancelReservation": "POST /v1/reservations/{reservation_id}:cancel",
    "MoveReservation": "POST /v1/reservations/{reservation_id}:move",
    "UpsertHospital": "PUT /v1/hospitals/{hospital.hospital_id}",
    "ListHospitals": "GET /v1/hospitals",
    "SetDailyCapacity": "PUT /v1/hospitals/{hospital_id}/capacity",
    "ListAvailability": "GET /v1/hospitals/{hospital_id}/availability",
    "CallOffDay": "POST /v1/hospitals/{hospital_id}/days/{date}:callOff",
    "ReopenDay": "POST /v1/hospitals/{hospital_id}/days/{date}:reopen",
    "RegisterLots": "POST /v1/hospitals/{hospital_id}/lots",
    "ListLots": "GET /v1/hospitals/{hospital_id}/lots",
    "GetVaccination": "GET /v1/vaccinations/{reservation_id}",
    "ListWaiting": "GET /v1/hospitals/{hospital_id}/waiting",
    "AssignLot": "POST /v1/vaccinations/{reservation_id}:assignLot",
    "CorrectLot": "POST /v1/lots/{lot_id}:correct",
    "WriteOffDoses": "POST /v1/lots/{lot_id}:writeOff",
    "ListMovements": "GET /v1/lots/{lot_id}/movements",
    "RecallLot": "POST /v1/recalls",
    "GetRecall": "GET /v1/recalls/{recall_id}",
    "ListVaccinated": "GET /v1/recalls/{recall_id}/vaccinated",
    "ListDay": "GET /v1/hospitals/{hospital_id}/days/{date}/vaccinations",
    "FindBookings": "GET /v1/hospitals/{hospital_id}/vaccinations",
    "CheckIn": "POST /v1/vaccinations/{reservation_id}:checkIn",
    "Administer": "POST /v1/vaccinations/{reservation_id}:administer",
    "MarkMissed": "POST /v1/vaccinations/{reservation_id}:markMissed",
    "ListAccesses": "GET /v1/hospitals/{hospital_id}/accesses",
    "ListMyReservations": "GET /v1/my/reservations",
    "GetMyReservation": "GET /v1/my/reservations/{reservation_id}",
    "WatchMyReservations": "GET /v1/my/reservations:watch",
}
# The published description of the REST forms. Accepted requests and their answers have to conform to it.
DESCRIBED: dict[str, Any] = json.loads((CHART / "files/openapi.json").read_text())
MOST_IN_URL = 2000  # characters of a value that is sent in the URL
HTTP_STATUS = {
    "INVALID_ARGUMENT": {400},
    "FAILED_PRECONDITION": {400},
    "UNAUTHENTICATED": {401},
    "PERMISSION_DENIED": {403},
    "NOT_FOUND": {404},
    "ALREADY_EXISTS": {409},
    "RESOURCE_EXHAUSTED": {413, 429, 431},
    "UNIMPLEMENTED": {501},
    "INTERNAL": {500},
    "UNKNOWN": {500},
    "UNAVAILABLE": {502, 503},
    "DEADLINE_EXCEEDED": {504},
}


@dataclass(frozen=True)
class Rpc:
    """One public RPC."""

    client: str  # the attribute of Client with its stub
    method: MethodDescriptor

    @property
    def path(self) -> str:
        """As gRPC writes it."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def streams(self) -> bool:
        """Whether it answers with a stream. Then the ways return the stream's first message."""
        return bool(self.method.server_streaming)

    def request(self, content: Request) -> Message:
        """The request as a message."""
        return message_factory.GetMessageClass(self.method.input_type)(**content)

    def response(self, content: str | bytes) -> Message:
        """The response as a message, from JSON text or from protobuf's bytes."""
        message = message_factory.GetMessageClass(self.method.output_type)()
        if isinstance(content, bytes):
            message.ParseFromString(content)
            return message
        return json_format.Parse(content, message)

    def rest(self, content: Request) -> tuple[str, str, Request | None] | None:
        """Verb, path with query, and JSON body; None if a value cannot be written into the URL."""
        verb, path = ROUTES[self.method.name].split()
        content = deepcopy(content)
        for variable in re.findall(r"{([\w.]+)}", path):
            *outer, name = variable.split(".")
            value = (content.get(outer[0], {}) if outer else content).pop(name, "")
            if not value or "/" in value or "\0" in value or len(value) > MOST_IN_URL:
                return None
            path = path.replace(f"{{{variable}}}", quote(value, safe=""))
        if verb == "GET":
            query = dict(_flat(content))
            too_long = any(len(str(value)) > MOST_IN_URL for value in query.values())
            return None if too_long else (verb, f"{path}?{urlencode(query)}", None)
        return verb, path, content["hospital"] if "{hospital." in ROUTES[self.method.name] else content


RPCS = {method.name: Rpc(client, method) for client, service in SERVICES.items() for method in service.methods}


class Ways:
    """Each way answers with the response's message, or the Refusal."""

    def __init__(self, world: World, http: httpx.AsyncClient) -> None:
        self.world, self.http = world, http

    async def grpc(self, token: str | None, rpc: str, request: Request, **headers: str) -> Message | Refusal:
        """By the generated stub."""
        client, known = self.world.bearer(token, **headers), RPCS[rpc]
        call = getattr(getattr(client, known.client), rpc)(known.request(request), metadata=client.metadata, timeout=15)
        try:
            answer: Message = await (call.read() if known.streams else call)
            return answer
        except grpc.aio.AioRpcError as error:
            return _consistent(error)
        finally:
            call.cancel()

    async def rest(self, token: str | None, rpc: str, request: Request, **headers: str) -> Message | Refusal:
        """By JSON over HTTP/1.1."""
        form = RPCS[rpc].rest(request)
        assert form is not None, f"{rpc} of {request} has no REST form"
        verb, path, body = form
        answer = await self.send(verb, path, token, json=body, first=RPCS[rpc].streams, **headers)
        if isinstance(answer, Refusal):
            return answer
        _as_described(RPCS[rpc], request, answer)
        return RPCS[rpc].response(answer)

    async def send(
        self, verb: str, path: str, token: str | None, *, first: bool = False, json: Any = None, content: Any = None,
        **headers: str,
    ) -> str | Refusal:  # fmt: skip
        """Sends any HTTP request; returns the answer's body (a stream's first line), or the Refusal."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            fields["authorization"] = f"Bearer {token}"
        if json is not None:
            content, fields["content-type"] = _json(json), fields.get("content-type", "application/json")
        async with self.http.stream(verb, path, content=content, headers=fields) as response:
            if response.status_code == 200:
                text = await anext(response.aiter_lines()) if first else (await response.aread()).decode()
                assert response.headers["content-type"] == "application/json", text
                return text
            text = (await response.aread()).decode()
        _conforms(text, {"$ref": "#/components/schemas/google.rpc.Status"})
        told = json_format.Parse(text, status_pb2.Status())
        assert response.status_code in HTTP_STATUS[code_pb2.Code.Name(told.code)], (response.status_code, text)
        return _refusal(told)

    async def grpc_web(self, token: str | None, rpc: str, request: Request, **headers: str) -> Message | Refusal:
        """By gRPC-Web as a browser writes it: protobuf in frames over HTTP/1.1, with the trailers as the last frame."""
        fields = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            fields["authorization"] = f"Bearer {token}"
        message = RPCS[rpc].request(request).SerializeToString()
        body = b"\0" + len(message).to_bytes(4, "big") + message
        async with self.http.stream("POST", RPCS[rpc].path, content=body, headers=fields) as response:
            assert response.headers["content-type"] == "application/grpc-web+proto"
            trailers: Mapping[str, str] = response.headers  # an answer without a message has them among its headers
            async for kind, payload in _frames(response):
                if kind == 0x80:
                    lines = payload.decode().splitlines()
                    trailers = {name.lower(): value for name, value in (line.split(":", 1) for line in lines)}
                elif RPCS[rpc].streams:
                    return RPCS[rpc].response(payload)
                else:
                    answer = RPCS[rpc].response(payload)
        if int(trailers["grpc-status"]) == 0:
            return answer
        details = trailers.get("grpc-status-details-bin", "")
        status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
        status.code = int(trailers["grpc-status"])
        return _refusal(status)

    async def grpcurl(self, token: str | None, rpc: str, request: Request) -> Message:
        """By the command grpcurl, which learns the RPCs by reflection."""
        arguments = ["-H", f"authorization: Bearer {token}", "-d", json.dumps(request), "--", RPCS[rpc].path[1:]]
        arguments.insert(-2, self.world.mesh.gateway)
        text = await grpcurl(*arguments[:-2], arguments[-1], first=RPCS[rpc].streams)
        return RPCS[rpc].response(text)


@asynccontextmanager
async def ways_into(world: World) -> AsyncIterator[Ways]:
    """Ways into the world's gateway."""
    # The gateway is local, so a proxy of the environment must not be used.
    async with httpx.AsyncClient(base_url=f"http://{world.mesh.gateway}", trust_env=False, timeout=15) as http:
        yield Ways(world, http)


async def grpcurl(*arguments: str, first: bool = False) -> str:
    """Runs grpcurl; returns what it prints, or if `first`, a stream's first message."""
    command = Path(sys.executable).parent / "grpcurl"
    process = await asyncio.create_subprocess_exec(
        command, "-plaintext", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    if first:
        text = (await process.stdout.readuntil(b"\n}\n")).decode()
        process.terminate()
        await process.communicate()
        return text
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def _consistent(error: grpc.aio.AioRpcError) -> Refusal:
    told = status_of(error)  # clients reject details that differ from the call's own status
    assert told is None or (told.code, told.message) == (error.code().value[0], error.details())
    return refusal(error)


def _conforms(text: str, schema: Mapping[str, Any]) -> None:
    whole = {**schema, "components": DESCRIBED["components"]}
    OAS31Validator(whole, format_checker=OAS31Validator.FORMAT_CHECKER).validate(json.loads(text))


def _as_described(rpc: Rpc, request: Request, answer: str) -> None:
    """Fails unless the description allows the accepted request and its answer."""
    verb, path = ROUTES[rpc.method.name].split()
    form = DESCRIBED["paths"][path][verb.lower()]
    _conforms(answer, form["responses"]["200"]["content"]["application/json"]["schema"])
    content: dict[str, Any] = json_format.MessageToDict(rpc.request(request))
    for parameter in form.get("parameters", ()):
        inner, (*outer, name) = content, re.sub(r"_(.)", lambda m: m[1].upper(), parameter["name"]).split(".")
        for part in outer:
            inner = inner.get(part, {})
        if parameter.get("required") or name in inner:
            _conforms(json.dumps(inner.pop(name)), parameter["schema"])
    if "requestBody" in form:
        body = content["hospital"] if "{hospital." in path else content
        _conforms(json.dumps(body), form["requestBody"]["content"]["application/json"]["schema"])
    else:
        assert not dict(_flat(content))


def _flat(content: Request, path: str = "") -> Iterator[tuple[str, Any]]:
    """A request's fields as a URL has them: those of a message in it as a.b."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(dict(value), f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _refusal(status: status_pb2.Status) -> Refusal:
    details = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    return refusal(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), details, status.message))


async def _frames(response: httpx.Response) -> AsyncIterator[tuple[int, bytes]]:
    buffer = b""
    async for chunk in response.aiter_raw():
        buffer += chunk
        while len(buffer) >= 5 and len(buffer) >= (end := 5 + int.from_bytes(buffer[1:5], "big")):
            yield buffer[0], buffer[5:end]
            buffer = buffer[end:]
