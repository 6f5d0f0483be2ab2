"""People who log in at a real OpenID Connect provider book and manage through the gateway."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import grpc.aio
import jwt
import pytest

from mesh.machine import Mesh
from vaccination.approval.v1 import hospital_pb2, hospital_service_pb2

from ..conftest import free_base_port
from .conftest import Client, Status, delivery, eventually, refused
from .provider import CLAIMS, Canaille, new_key

HOSPITAL = f"h-{uuid.uuid4().hex[:12]}"
PEOPLE = [
    ("minji", "customer", ""),
    ("doyun", "manager", HOSPITAL),
    ("haneul", "manager", "elsewhere"),
    ("admin", "operator", ""),
]
APPLICATIONS = [
    ("booking", "vaccination", "ES256"),
    ("counter", "vaccination", "RS256"),
    ("shop", "payments", "RS256"),
]


@dataclass
class Door:
    """The gateway, and the provider that it trusts."""

    provider: Canaille
    channel: grpc.aio.Channel

    async def log_in(self, application: str, person: str) -> Client:
        """A client that calls with the access token that the person's application got."""
        answer = await asyncio.to_thread(self.provider.log_in, application, person)
        return Client(self.channel, answer["access_token"])


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Canaille, Mesh]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    provider = Canaille(tmp_path_factory.mktemp("provider") / "canaille", port, PEOPLE, APPLICATIONS)
    try:
        auth = {
            "issuer": provider.discovered["issuer"],
            "audiences": ["vaccination"],
            "jwksUri": provider.discovered["jwks_uri"],
            "claims": CLAIMS,
        }
        mesh = Mesh(tmp_path_factory.mktemp("mesh"), free_base_port(), values={"auth": auth})
        try:
            mesh.up()
            yield provider, mesh
        finally:
            mesh.down()
    finally:
        provider.stop()


@pytest.fixture
async def door(trusting: tuple[Canaille, Mesh]) -> AsyncIterator[Door]:
    provider, mesh = trusting
    async with grpc.aio.insecure_channel(mesh.gateway, options=[("grpc.enable_retries", 0)]) as channel:
        yield Door(provider, channel)


async def test_people_book_and_manage_with_the_roles_from_their_provider(door: Door) -> None:
    operator, manager, stranger = [await door.log_in("counter", name) for name in ("admin", "doyun", "haneul")]
    customer = await door.log_in("booking", "minji")
    signed_by = [jwt.get_unverified_header(client.token or "")["alg"] for client in (operator, customer)]
    assert signed_by == ["RS256", "ES256"]

    hospital = hospital_pb2.Hospital(hospital_id=HOSPITAL, name="Hospital", time_zone="Asia/Seoul")
    create = hospital_service_pb2.UpsertHospitalRequest(hospital=hospital)
    await operator.call(operator.hospital.UpsertHospital, create)
    assert (await refused(manager.call(manager.hospital.UpsertHospital, create))).reason == "ROLE_NOT_ALLOWED"
    day = datetime.now(ZoneInfo("Asia/Seoul")).date() + timedelta(days=7)
    await manager.set_capacity(HOSPITAL, day, 1)
    await manager.register(HOSPITAL, delivery(1))
    assert (await refused(stranger.lots(HOSPITAL))).reason == "OTHER_HOSPITAL"
    assert (await refused(customer.lots(HOSPITAL))).reason == "ROLE_NOT_ALLOWED"

    booked = await customer.create(HOSPITAL, day)
    assert booked.status == Status.RESERVATION_STATUS_APPROVED
    await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    # The same person after another login is the same customer, because the subject is the same.
    again = await door.log_in("counter", "minji")
    assert [r.reservation_id for r in await again.screen()] == [booked.reservation_id]


async def test_a_token_that_the_provider_made_for_another_audience_is_refused(door: Door) -> None:
    wrong_audience = await door.log_in("shop", "minji")
    refusal = await refused(wrong_audience.screen())
    assert (refusal.code.name, refusal.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")


async def test_the_provider_may_rotate_its_keys(door: Door) -> None:
    provider = door.provider

    async def restart(signing: list[dict[str, str]], published: list[dict[str, str]]) -> None:
        await asyncio.to_thread(provider.stop)
        provider.signing, provider.published = signing, published
        await asyncio.to_thread(provider.start)

    async def verdict(client: Client) -> str:
        try:
            await client.screen()
            return "accepted"
        except grpc.aio.AioRpcError as error:
            return error.code().name

    old, replaced = await door.log_in("booking", "minji"), provider.signing
    assert await verdict(old) == "accepted"
    await restart([new_key("RS256"), new_key("ES256")], replaced)
    new = await door.log_in("booking", "minji")
    await eventually(lambda: verdict(new), lambda seen: seen == "accepted", within=60)
    assert await verdict(old) == "accepted"
    await restart(provider.signing, [])
    await eventually(lambda: verdict(old), lambda seen: seen == "UNAUTHENTICATED", within=60)
    assert await verdict(new) == "accepted"
