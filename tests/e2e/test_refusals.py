"""Every refusal has the code and the reason that tell what to do, and names the field, and nothing is stored.

No refusal is INTERNAL, UNKNOWN or an HTTP 5xx: every expectation here is another code.
"""

import base64
import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import grpc.aio
import jwt
import pymongo
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.descriptor import Descriptor

from mesh.machine import identity
from services.chassis import paging

from .conftest import Client, Refusal, Status, World, delivery, eventually, refusal, zone_at_noon
from .ways import ROUTES, RPCS, Request, Ways, ways_into

MB = 1 << 20


@pytest.fixture
async def ways(world: World) -> AsyncIterator[Ways]:
    async with ways_into(world) as ways:
        yield ways


@dataclass
class Stage:
    """A hospital with some history, its people, and for each RPC a request that would succeed."""

    world: World
    hospital: str
    day: date
    customer: Client
    manager: Client
    reservation: str  # the customer's reservation, which is COMPLETED
    lot: str  # the lot that its dose is from
    good: dict[str, Request]

    @property
    def people(self) -> dict[str, str | None]:
        """Tokens by role."""
        return {"customer": self.customer.token, "manager": self.manager.token, "operator": self.world.operator.token}

    def token(self, rpc: str) -> str | None:
        """The token of somebody who may call the RPC."""
        return self.people[ROLES[rpc][0]]

    async def stored(self) -> Any:
        """Everything that the stores have of the hospital, and the number of hospitals."""
        seen: list[Any] = []
        for service, table in (("approval", "days"), ("approval", "decisions"), ("reservation", "reservations")):
            rows = await self.world.query(service, f"SELECT * FROM {table} WHERE hospital_id = $1", self.hospital)
            seen.append(sorted(map(str, rows)))
        seen.append(await self.world.query("approval", "SELECT * FROM hospitals ORDER BY hospital_id"))
        with pymongo.MongoClient[dict[str, Any]](self.world.mesh.stores.mongo_url) as client:
            found = [
                client["vaccinemgmt"][name].find({"hospital_id": self.hospital}) for name in ("lots", "vaccinations")
            ]
            return [*seen, *(sorted(map(str, documents)) for documents in found)]


async def set_stage(world: World) -> Stage:
    hospital, day = await world.new_hospital(capacity=5)
    manager, customer = world.manager(hospital), world.customer()
    [lot] = await manager.register(hospital, delivery(3))
    booked = await customer.create(hospital, day)
    await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    await world.quiet()  # until reservation has handled the event too
    recall = await manager.recall((await manager.register(hospital, delivery(1)))[0], hospital)
    days = {"hospital_id": hospital, "first_date": str(day), "last_date": str(day)}
    of_day = {"hospital_id": hospital, "date": str(day)}
    mine = {"reservation_id": booked.reservation_id}
    names = {"vaccine_code": lot.vaccine_code, "manufacturer": lot.manufacturer, "lot_number": lot.lot_number}
    change = {"lot_id": lot.lot_id, "request_id": str(uuid.uuid4())}
    good: dict[str, Request] = {
        "CreateReservation": {"request_id": str(uuid.uuid4()), "hospital_id": hospital, "date": str(day)},
        "GetReservation": mine,
        "CancelReservation": mine,
        "UpsertHospital": {"hospital": {"hospital_id": hospital, "name": "Renamed", "time_zone": "Europe/Berlin"}},
        "SetDailyCapacity": days | {"capacity": 9},
        "ListAvailability": days,
        "RegisterLots": {"hospital_id": hospital, "deliveries": [a_delivery(), a_delivery()]},
        "ListLots": {"hospital_id": hospital},
        "GetVaccination": mine,
        "ListWaiting": {"hospital_id": hospital},
        "AssignLot": mine | {"lot_id": lot.lot_id},
        "GetMyReservation": mine,
        "MoveReservation": mine | of_day | {"request_id": str(uuid.uuid4())},
        "CallOffDay": of_day | {"note": "No heating"},
        "ReopenDay": of_day,
        "CorrectLot": change | {"received": 4, "note": "counted anew", "production_date": "", "expiry_date": ""},
        "WriteOffDoses": change | {"quantity": 1, "reason": 1, "note": ""},
        "ListMovements": {"lot_id": lot.lot_id},
        "RecallLot": names | {"hospital_id": hospital, "note": "Glass"},
        "GetRecall": {"recall_id": recall.recall_id},
        "ListVaccinated": {"recall_id": recall.recall_id},
        "ListDay": of_day,
        "FindBookings": {"hospital_id": hospital, "customer_id": booked.reservation_id},
        "CheckIn": mine,
        "Administer": mine | {"lot_id": lot.lot_id},
        "MarkMissed": mine,
        "ListAccesses": {"hospital_id": hospital},
    }
    good = {rpc: good.get(rpc, {}) for rpc in RPCS}
    return Stage(world, hospital, day, customer, manager, booked.reservation_id, lot.lot_id, good)


def a_delivery(**others: Any) -> Request:
    return {field.name: value for field, value in delivery(4, **others).ListFields()}


# The roles that may call each RPC.
ROLES = {
    "CreateReservation": ("customer",),
    "GetReservation": ("customer",),
    "ListReservations": ("customer",),
    "CancelReservation": ("customer",),
    "UpsertHospital": ("operator",),
    "ListHospitals": ("customer", "manager", "operator"),
    "SetDailyCapacity": ("manager", "operator"),
    "ListAvailability": ("customer", "manager", "operator"),
    "RegisterLots": ("manager", "operator"),
    "ListLots": ("manager", "operator"),
    "GetVaccination": ("manager", "operator"),
    "ListWaiting": ("manager", "operator"),
    "AssignLot": ("manager", "operator"),
    "MoveReservation": ("customer",),
    "CallOffDay": ("manager", "operator"),
    "ReopenDay": ("manager", "operator"),
    "CorrectLot": ("manager", "operator"),
    "WriteOffDoses": ("manager", "operator"),
    "ListMovements": ("manager", "operator"),
    "RecallLot": ("manager", "operator"),
    "GetRecall": ("manager", "operator"),
    "ListVaccinated": ("manager", "operator"),
    "ListDay": ("manager", "operator"),
    "FindBookings": ("manager", "operator"),
    "CheckIn": ("manager", "operator"),
    "Administer": ("manager", "operator"),
    "MarkMissed": ("manager", "operator"),
    "ListAccesses": ("operator",),
    "ListMyReservations": ("customer",),
    "GetMyReservation": ("customer",),
    "WatchMyReservations": ("customer",),
}


async def expect(
    ways: Ways, token: str | None, rpc: str, request: Request, code: str, reason: str, *fields: str, **headers: str
) -> None:
    """Expects the same refusal by gRPC and, if the request has a REST form, by REST."""
    for way in (ways.grpc, ways.rest):
        if way == ways.rest and RPCS[rpc].rest(request) is None:
            continue
        answer = await way(token, rpc, request, **headers)
        if not (
            isinstance(answer, Refusal)
            and (answer.code.name, answer.reason) == (code, reason)
            and all(field in answer.fields and field in answer.message for field in fields)
        ):
            pytest.fail(f"{way.__name__} {rpc} {str(request)[:500]} is not {code} {reason} {fields} but {answer}")


# Who


def forged(payload: Request, algorithm: str, sign: Callable[[bytes], bytes], **header: Any) -> str:
    """A token with any header and signature."""
    parts = [{"typ": "JWT", "alg": algorithm} | header, payload]
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    return (text + b"." + base64.urlsafe_b64encode(sign(text)).rstrip(b"=")).decode()


def bad_tokens(world: World) -> dict[str, str]:
    """Tokens that are not valid, by what is wrong with them."""
    home, now = world.mesh.home.path, int(time.time())
    claims: Request = {"iss": identity.ISSUER, "aud": identity.AUDIENCE, "sub": "somebody", "roles": ["operator"]}
    claims |= {"iat": now, "exp": now + 600}
    good = world.token("somebody", ["operator"])
    head, body, signature = good.split(".")
    jwks = identity.jwks(home).encode()
    key_id, key = identity.signing_key(home)
    stranger = ec.generate_private_key(ec.SECP256R1())
    strangers = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(stranger.public_key()))
    richer = base64.urlsafe_b64encode(json.dumps(claims | {"sub": "root"}).encode()).rstrip(b"=").decode()

    def local(**others: Any) -> str:
        return identity.token(home, **{"subject": "somebody", "roles": ["operator"]} | others)

    def not_from_pyjwt(**others: Any) -> str:
        payload = json.dumps(claims | others).encode()
        return str(jwt.PyJWS().encode(payload, key, "ES256", {"kid": key_id}))

    return {
        "expired": local(expires_in=-60),
        "not valid yet": local(nbf=now + 600),
        "without an end": local(exp=None),
        "with an end that is no time": not_from_pyjwt(exp="tomorrow"),
        "of another issuer": local(iss="https://evil.example"),
        "of no issuer": local(iss=None),
        "for another audience": local(aud="payments"),
        "for no audience": local(aud=None),
        "signed with another key": jwt.encode(claims, stranger, "ES256", headers={"kid": key_id}),
        "signed with a key it brings": jwt.encode(claims, stranger, "ES256", headers={"jwk": strangers}),
        "signed with the public key as a secret": forged(
            claims, "HS256", lambda text: hmac.new(jwks, text, hashlib.sha256).digest(), kid=key_id
        ),
        "of algorithm none": forged(claims, "none", lambda _: b"", kid=key_id),
        "of algorithm None": forged(claims, "None", lambda _: b"", kid=key_id),
        "with other claims than were signed": f"{head}.{richer}.{signature}",
        "with another signature": f"{head}.{body}.{signature[::-1]}",
        "with half a signature": good[:-43],
        "without a signature": f"{head}.{body}.",
        "without the third part": f"{head}.{body}",
        "text": "let-me-in",
        "dots": "..",
        "long": "A" * 8000,
        "without a subject": local(sub=None),
        "with an empty subject": local(subject=""),
        "with a subject too long": local(subject="s" * 129),
        "with control characters in the subject": local(subject="some\0body"),
        "with a number for a subject": not_from_pyjwt(sub=5),
        "with a text for roles": local(roles="operator"),
        "with numbers for roles": local(roles=[1]),
        "with nested roles": local(roles=[["operator"]]),
        "with an object for roles": local(roles={"operator": True}),
    }


async def test_a_token_that_is_not_valid_is_refused_by_every_way_in(world: World, ways: Ways) -> None:
    for wrong, token in bad_tokens(world).items():
        for way in (ways.grpc, ways.rest, ways.grpc_web):
            answer = await way(token, "ListHospitals", {})
            assert isinstance(answer, Refusal), f"{wrong}: accepted by {way.__name__}"
            told = (answer.code.name, answer.reason, answer.domain)
            assert told == ("UNAUTHENTICATED", "TOKEN_INVALID", "vaccination.edge"), (
                f"{wrong}, {way.__name__}: {answer}"
            )


async def test_every_rpc_wants_a_token(world: World, ways: Ways) -> None:
    stage = await set_stage(world)
    before = await stage.stored()
    expired = world.token("somebody", ["operator", "customer"], expires_in=-60)
    good = stage.people["operator"]
    for rpc, request in stage.good.items():
        await expect(ways, None, rpc, request, "UNAUTHENTICATED", "TOKEN_MISSING")
        await expect(
            ways, None, rpc, request, "UNAUTHENTICATED", "TOKEN_MISSING", authorization="Basic Y3VzdG9tZXI6eA=="
        )
        await expect(ways, None, rpc, request, "UNAUTHENTICATED", "TOKEN_MISSING", cookie=f"access_token={good}")
        await expect(ways, expired, rpc, request, "UNAUTHENTICATED", "TOKEN_INVALID")
    assert await stage.stored() == before


async def test_every_rpc_is_for_its_roles_alone(world: World, ways: Ways) -> None:
    stage = await set_stage(world)
    before = await stage.stored()
    nobody = [world.token("somebody", roles) for roles in ([], ["admin"], ["Operator", "CUSTOMER", "manager "])]
    for rpc, request in stage.good.items():
        wrong = [token for role, token in stage.people.items() if role not in ROLES[rpc]]
        for token in (*wrong, *nobody):
            await expect(ways, token, rpc, request, "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    assert await stage.stored() == before
    assert ROLES.keys() == RPCS.keys()


async def test_a_manager_of_another_hospital_is_refused(world: World, ways: Ways) -> None:
    stage = await set_stage(world)
    before = await stage.stored()
    strangers = [
        world.token("manager", ["manager"], hospital=hospital)
        for hospital in ("elsewhere", None, "", stage.hospital.upper(), f"{stage.hospital} ", [stage.hospital], "*")
    ]
    bound = [rpc for rpc, roles in ROLES.items() if roles == ("manager", "operator")]
    assert len(bound) == 19
    for rpc in bound:
        for token in strangers:
            await expect(ways, token, rpc, stage.good[rpc], "PERMISSION_DENIED", "OTHER_HOSPITAL")
    assert await stage.stored() == before


async def test_another_customers_reservation_is_not_there(world: World, ways: Ways) -> None:
    stage = await set_stage(world)
    before = await stage.stored()
    stranger = world.customer()
    for rpc in ("GetReservation", "CancelReservation", "MoveReservation", "GetMyReservation"):
        await expect(ways, stranger.token, rpc, stage.good[rpc], "NOT_FOUND", "UNKNOWN_RESERVATION", "reservation_id")
        # An unknown reservation has the same answer, so that nobody learns which ids exist.
        unknown = stage.good[rpc] | {"reservation_id": str(uuid.uuid4())}
        await expect(ways, stranger.token, rpc, unknown, "NOT_FOUND", "UNKNOWN_RESERVATION", "reservation_id")
    for rpc in ("ListReservations", "ListMyReservations", "WatchMyReservations"):
        for way in (ways.grpc, ways.rest):
            answer: Any = await way(stranger.token, rpc, {})
            assert list(answer.reservations) == []
    assert await stage.stored() == before


async def test_claims_that_the_caller_sends_as_a_header_have_no_effect(world: World, ways: Ways) -> None:
    stage = await set_stage(world)
    victim, stranger = (stage.customer.token or "").split(".")[1], world.customer().token
    await expect(ways, None, "ListReservations", {}, "UNAUTHENTICATED", "TOKEN_MISSING", x_jwt_payload=victim)
    for way in (ways.grpc, ways.rest, ways.grpc_web):
        answer: Any = await way(stranger, "ListReservations", {}, x_jwt_payload=victim)
        assert list(answer.reservations) == []
    for spelled in (["x-jwt-payload"], ["X-JWT-Payload"], ["x_jwt_payload"], ["x-jwt-payload", "X-Jwt-Payload"]):
        response = await ways.http.get("/v1/reservations", headers=[(name, victim) for name in spelled])
        assert response.status_code == 401


# What: each field alone

A_UUID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
NOT_UUIDS: list[Any] = [
    "", "42", f"{A_UUID}0", A_UUID[:-1], A_UUID.replace("-", ""), f"{{{A_UUID}}}", f"urn:uuid:{A_UUID}",
    f"{A_UUID}\n", f" {A_UUID}", A_UUID.replace("6", "g"), "\0" * 36, "예" * 36, "'; DROP TABLE hospitals; --",
    "u" * MB,
]  # fmt: skip
NOT_HOSPITALS: list[Any] = [
    "", "-h", ".h", "h h", "h\n", "h\0", "h\u200b", "병원", "h/../h", "h%2e", "$ne", "h" * 65, "h" * MB,
]  # fmt: skip
NOT_DAYS: list[Any] = [
    "", "tomorrow", "2026-02-30", "2025-02-29", "2026-13-01", "2026-00-10", "2026-01-00", "0000-01-01", "2026-1-1",
    "20260101", "2026-01-01T00:00:00Z", "2026-01-01 ", "2026-01-01\n", "2026-W01-1", "-2026-01-01", "12026-01-01",
    "२०२६-०१-०१", "2026\u201001\u201001", "9" * MB,
]  # fmt: skip
NOT_NOTES: list[Any] = ["", "n" * 501, "예" * 501, "a\0b", "a\nb", "a\x1b[31mb", "a\x7f", "n" * MB]
NOT_CODES: list[Any] = ["2070", "-1", "20 ", "\uff12\uff10\uff17", "20\n", "\0", "mRNA", "2" * MB]
NOT_LOTS: list[Any] = ["", " L", "L L", "L\n", "L\0", "-L", "로트", "L" * 65, "L" * MB]
NOT_MAKERS: list[Any] = ["", "M", "MODERNA", "mod", "MO\n", "M\0", "M" * MB]
NOT_TOKENS: list[Any] = ["A" * 1025, "A" * MB]
NOT_LATITUDES: list[Any] = [90.001, -91, 1e300]
NOT_LONGITUDES: list[Any] = [180.001, -181, -1e300]
HUGE = [2**31 - 1, -(2**31)]


def not_sizes(most: int) -> list[Any]:
    return [-1, most + 1, *HUGE]


# The values that each field of each request must not have. A field of `deliveries` belongs to the second delivery.
BAD: dict[str, dict[str, list[Any]]] = {
    "CreateReservation": {
        "request_id": NOT_UUIDS, "hospital_id": NOT_HOSPITALS, "date": NOT_DAYS,
        "vaccine_code": NOT_CODES,
    },
    "MoveReservation": {
        "request_id": NOT_UUIDS, "reservation_id": NOT_UUIDS, "hospital_id": NOT_HOSPITALS, "date": NOT_DAYS,
        "vaccine_code": NOT_CODES,
    },
    "GetReservation": {"reservation_id": NOT_UUIDS},
    "ListReservations": {"page_size": not_sizes(100), "page_token": NOT_TOKENS},
    "CancelReservation": {"reservation_id": NOT_UUIDS},
    "UpsertHospital": {
        "hospital": [None],
        "hospital.hospital_id": NOT_HOSPITALS,
        "hospital.name": ["", "n" * 201, "예" * 201, "a\0b", "a\nb", "a\x1b[31mb", "a\x7f", "a\x85", "n" * MB],
        "hospital.time_zone": ["z" * 65, "z" * MB],
        "hospital.vaccine_codes": [["207"] * 101, ["207", ""], ["mRNA"]],
        "hospital.location": [], "hospital.location.latitude": NOT_LATITUDES,
        "hospital.location.longitude": NOT_LONGITUDES,
    },
    "ListHospitals": {
        "page_size": not_sizes(1000), "page_token": NOT_TOKENS,
        "query": ["q" * 101, "예" * 101, "a\0b", "a\nb", "q" * MB],
        "near": [], "near.latitude": NOT_LATITUDES, "near.longitude": NOT_LONGITUDES,
    },
    "SetDailyCapacity": {
        "hospital_id": NOT_HOSPITALS, "first_date": NOT_DAYS, "last_date": NOT_DAYS,
        "capacity": [-1, 1_000_001, *HUGE],
    },
    "ListAvailability": {"hospital_id": NOT_HOSPITALS, "first_date": NOT_DAYS, "last_date": NOT_DAYS},
    "RegisterLots": {
        "hospital_id": NOT_HOSPITALS,
        "deliveries": [[], [a_delivery()] * 501],
        "deliveries.lot_number": NOT_LOTS,
        "deliveries.delivery_id": ["d d", "d\n", "d\0", "납품", "d" * 129, "d" * MB],
        "deliveries.vaccine_code": ["", "2070", "-1", "mRNA", "20\n", "\0", "2" * MB],
        "deliveries.manufacturer": NOT_MAKERS,
        "deliveries.production_date": NOT_DAYS,
        "deliveries.expiry_date": NOT_DAYS,
        "deliveries.quantity": [0, -1, 1_000_001, *HUGE],
    },
    "ListLots": {"hospital_id": NOT_HOSPITALS, "page_size": not_sizes(1000), "page_token": NOT_TOKENS},
    "GetVaccination": {"reservation_id": NOT_UUIDS},
    "ListWaiting": {"hospital_id": NOT_HOSPITALS, "page_size": not_sizes(1000), "page_token": NOT_TOKENS},
    "AssignLot": {"reservation_id": NOT_UUIDS, "lot_id": NOT_UUIDS},
    "CallOffDay": {"hospital_id": NOT_HOSPITALS, "date": NOT_DAYS, "note": NOT_NOTES},
    "ReopenDay": {"hospital_id": NOT_HOSPITALS, "date": NOT_DAYS},
    "CorrectLot": {
        "lot_id": NOT_UUIDS, "request_id": NOT_UUIDS, "note": NOT_NOTES, "received": [-1, 100_000_001, *HUGE],
        "production_date": NOT_DAYS[1:], "expiry_date": NOT_DAYS[1:],
    },
    "WriteOffDoses": {
        "lot_id": NOT_UUIDS, "request_id": NOT_UUIDS, "quantity": [0, -1, 1_000_001, *HUGE], "reason": [0, 4, 99, -1],
        "note": NOT_NOTES[1:],
    },
    "ListMovements": {"lot_id": NOT_UUIDS, "page_size": not_sizes(1000), "page_token": NOT_TOKENS},
    "RecallLot": {
        "vaccine_code": ["", *NOT_CODES], "manufacturer": NOT_MAKERS, "lot_number": NOT_LOTS,
        "hospital_id": NOT_HOSPITALS[1:], "note": NOT_NOTES,
    },
    "GetRecall": {"recall_id": NOT_UUIDS},
    "ListVaccinated": {"recall_id": NOT_UUIDS, "page_size": not_sizes(1000), "page_token": NOT_TOKENS},
    "ListDay": {
        "hospital_id": NOT_HOSPITALS, "date": NOT_DAYS, "page_size": not_sizes(1000), "page_token": NOT_TOKENS,
    },
    "FindBookings": {"hospital_id": NOT_HOSPITALS, "customer_id": ["", "c" * 129, "c" * MB]},
    "CheckIn": {"reservation_id": NOT_UUIDS},
    "Administer": {"reservation_id": NOT_UUIDS, "lot_id": NOT_UUIDS[1:]},
    "MarkMissed": {"reservation_id": NOT_UUIDS},
    "ListAccesses": {"hospital_id": NOT_HOSPITALS, "page_size": not_sizes(1000), "page_token": NOT_TOKENS},
    "ListMyReservations": {"page_size": not_sizes(100), "page_token": NOT_TOKENS},
    "GetMyReservation": {"reservation_id": NOT_UUIDS},
    "WatchMyReservations": {},
}  # fmt: skip


def spoilt(good: Request, field: str, value: Any) -> tuple[Request, str]:
    """The request with that value in the field, or if None without the field; and the field's path in a refusal."""
    outer, _, name = field.partition(".")
    if outer == "deliveries" and name:
        first, second = good["deliveries"]
        return good | {"deliveries": [first, second | {name: value}]}, f"deliveries[1].{name}"
    if name:
        items = value if isinstance(value, list) else []
        index = next((f"[{i}]" for i, item in enumerate(items) if not item.isdigit()), "")  # of the item that is wrong
        told = field + index
        return good | {outer: spoilt(good.get(outer, {}), name, value)[0]}, told
    return {k: v for k, v in good.items() if k != field} if value is None else good | {field: value}, field


def leaves(message: Descriptor, path: str = "") -> set[str]:
    """Every field of a message and of those inside it."""
    found = set()
    for field in message.fields:
        found.add(path + field.name)
        if field.message_type:
            found |= leaves(field.message_type, f"{path}{field.name}.")
    return found


async def test_every_field_is_checked_and_named_and_nothing_is_stored(world: World, ways: Ways) -> None:
    for rpc, fields in BAD.items():
        assert fields.keys() == leaves(RPCS[rpc].method.input_type), f"{rpc}: a field without bad values"
    assert BAD.keys() == RPCS.keys()
    stage = await set_stage(world)
    before = await stage.stored()
    for rpc, fields in BAD.items():
        for field, values in fields.items():
            for value in values:
                request, told = spoilt(stage.good[rpc], field, value)
                await expect(ways, stage.token(rpc), rpc, request, "INVALID_ARGUMENT", "INVALID_FIELD", told)
    assert await stage.stored() == before


async def test_all_missing_fields_are_named(world: World, ways: Ways) -> None:
    everybody = world.token("everybody", ["customer", "operator"])
    may_be_empty = {
        "page_size",
        "page_token",
        "query",
        "near",
        "capacity",
        "production_date",
        "expiry_date",
        "received",
    }
    may_be_empty |= {"CreateReservation.vaccine_code", "MoveReservation.vaccine_code"}
    may_be_empty |= {"RecallLot.hospital_id", "WriteOffDoses.note", "Administer.lot_id"}
    for rpc, fields in BAD.items():
        wanted = {field for field in fields if "." not in field and not {field, f"{rpc}.{field}"} & may_be_empty}
        if wanted:
            await expect(ways, everybody, rpc, {}, "INVALID_ARGUMENT", "INVALID_FIELD", *wanted)


# What: each rule


async def test_a_request_that_breaks_a_rule_is_refused_and_nothing_is_stored(world: World, ways: Ways) -> None:
    stage = await set_stage(world)
    hospital, day, manager = stage.hospital, stage.day, stage.manager
    elsewhere, _ = await world.new_hospital()
    [foreign] = await world.manager(elsewhere).register(elsewhere, delivery(1))
    taken, early, other = await manager.register(
        hospital, delivery(1), delivery(1, expiry_date=str(day - timedelta(1))), delivery(1, vaccine_code="999")
    )
    known = {field.name: value for field, value in delivery(3, lot_number="KNOWN").ListFields()}
    await manager.register(hospital, delivery(3, lot_number="KNOWN"))

    picky, quitter, late, rejected = (world.customer() for _ in range(4))
    wants_207 = await picky.create(hospital, day, vaccine_code="207")
    await picky.reaches(wants_207.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    given_up = await quitter.create(hospital, day)
    await quitter.reaches(given_up.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    await quitter.cancel(given_up.reservation_id)
    await quitter.reaches(given_up.reservation_id, Status.RESERVATION_STATUS_CANCELLED)
    picky_wants = {"reservation_id": wants_207.reservation_id}
    await ways.grpc(manager.token, "AssignLot", picky_wants | {"lot_id": taken.lot_id})
    not_offered = await rejected.create(hospital, day + timedelta(400))
    assert not_offered.status == Status.RESERVATION_STATUS_REJECTED
    passed = await late.create(hospital, day)
    request_id = str(uuid.uuid4())
    again = await picky.create(hospital, day, request_id)  # denied for the active booking; the decision is recorded too
    assert again.status == Status.RESERVATION_STATUS_REJECTED
    # The test changes the date in the store, so that it need not wait until the day has passed.
    await world.query(
        "reservation", "UPDATE reservations SET date = '2020-01-01' WHERE reservation_id = $1",
        uuid.UUID(passed.reservation_id),
    )  # fmt: skip
    await world.quiet()

    called_off, corrected = str(day + timedelta(2)), str(uuid.uuid4())
    await manager.call_off(hospital, day + timedelta(2))
    [miscounted] = await manager.register(hospital, delivery(1))
    await manager.correct(miscounted.lot_id, corrected, received=2)
    withdrawn = (await manager.register(hospital, delivery(1)))[0]
    await manager.recall(withdrawn, hospital)
    known_recall = {f.name: v for f, v in delivery(1).ListFields()}
    known_recall |= {name: getattr(withdrawn, name) for name in ("lot_number", "vaccine_code", "manufacturer")}
    known_recall["delivery_id"] = "late"
    unknown = str(uuid.uuid4())
    create, days, move = "CreateReservation", "SetDailyCapacity", "MoveReservation"
    tomorrow, too_far = str(day + timedelta(1)), str(day + timedelta(366))
    backwards, too_long = {"last_date": str(day - timedelta(1))}, {"last_date": too_far}
    ever = {"first_date": "0001-01-02", "last_date": "9999-12-30"}
    twice = a_delivery(lot_number="TWICE")
    people = stage.people | {
        who: c.token for who, c in (("picky", picky), ("late", late), ("rejected", rejected), ("quitter", quitter))
    }

    def lots(*deliveries: Request) -> Request:
        return {"deliveries": [a_delivery(), *deliveries]}

    def zone(name: str) -> Request:
        return {"hospital": {"hospital_id": "h", "name": "n", "time_zone": name}}

    invalid, exists, forbids, nowhere = "INVALID_ARGUMENT", "ALREADY_EXISTS", "FAILED_PRECONDITION", "NOT_FOUND"
    of_miscounted = {"lot_id": miscounted.lot_id, "request_id": corrected}
    known_before, reused = {"request_id": request_id}, (exists, "REQUEST_ID_REUSED", "request_id")
    # the caller, the RPC, the difference from a good request, the code, the reason, the field
    rows: list[tuple[str, str, Request, str, str, str]] = [
        ("late", create, {"date": "2020-01-01"}, invalid, "DATE_PASSED", "date"),
        ("late", create, {"date": "0001-01-02"}, invalid, "DATE_PASSED", "date"),
        ("late", create, {"date": "0001-01-01"}, invalid, "INVALID_FIELD", "date"),
        ("late", create, {"date": "9999-12-31"}, invalid, "INVALID_FIELD", "date"),
        ("late", create, {"hospital_id": "nowhere"}, nowhere, "UNKNOWN_HOSPITAL", "hospital_id"),
        ("picky", create, known_before | {"date": tomorrow}, *reused),
        ("picky", create, known_before | {"hospital_id": elsewhere}, *reused),
        ("picky", create, known_before | {"vaccine_code": "207"}, *reused),
        ("picky", "GetReservation", {"reservation_id": unknown}, nowhere, "UNKNOWN_RESERVATION", "reservation_id"),
        ("picky", "CancelReservation", {"reservation_id": unknown}, nowhere, "UNKNOWN_RESERVATION", "reservation_id"),
        ("picky", "GetMyReservation", {"reservation_id": unknown}, nowhere, "UNKNOWN_RESERVATION", "reservation_id"),
        ("rejected", "CancelReservation", {"reservation_id": not_offered.reservation_id}, forbids, "REJECTED", ""),
        ("late", "CancelReservation", {"reservation_id": passed.reservation_id}, forbids, "APPOINTMENT_PASSED", ""),
        *[
            ("operator", "UpsertHospital", zone(name), invalid, "UNKNOWN_TIME_ZONE", "hospital.time_zone")
            for name in (
                "Mars/Base", "asia/seoul", "Asia/Seoul\0", "Asia/Seoul ", "UTC+9", "+09:00", "../UTC", "서울",
                "localtime", "Factory",
            )
        ],
        ("manager", days, backwards, invalid, "DATE_RANGE", "last_date"),
        ("manager", days, too_long, invalid, "DATE_RANGE", "last_date"),
        ("manager", days, ever, invalid, "DATE_RANGE", "last_date"),
        ("manager", days, {"first_date": "0001-01-01"}, invalid, "INVALID_FIELD", "first_date"),
        ("manager", days, {"last_date": "9999-12-31"}, invalid, "INVALID_FIELD", "last_date"),
        ("operator", days, {"hospital_id": "nowhere"}, nowhere, "UNKNOWN_HOSPITAL", "hospital_id"),
        ("manager", days, {"last_date": called_off}, forbids, "DAY_CALLED_OFF", "last_date"),
        ("manager", "CallOffDay", {"date": "2020-01-01"}, invalid, "NOTHING_TO_CALL_OFF", "date"),
        ("operator", "CallOffDay", {"hospital_id": "nowhere"}, nowhere, "UNKNOWN_HOSPITAL", "hospital_id"),
        ("operator", "ReopenDay", {"hospital_id": "nowhere"}, nowhere, "UNKNOWN_HOSPITAL", "hospital_id"),
        ("picky", "ListAvailability", backwards, invalid, "DATE_RANGE", "last_date"),
        ("picky", "ListAvailability", too_long, invalid, "DATE_RANGE", "last_date"),
        ("picky", "ListAvailability", {"last_date": "9999-12-31"}, invalid, "INVALID_FIELD", "last_date"),
        ("picky", "ListAvailability", {"hospital_id": "nowhere"}, nowhere, "UNKNOWN_HOSPITAL", "hospital_id"),
        (
            "manager", "RegisterLots", lots(a_delivery(production_date=tomorrow, expiry_date=str(day))),
            invalid, "EXPIRY_BEFORE_PRODUCTION", "deliveries[1].expiry_date",
        ),
        *[
            ("manager", "RegisterLots", lots(known | other_content), exists, "LOT_CONFLICT", "deliveries[1]")
            for other_content in ({"quantity": 4}, {"expiry_date": str(day)}, {"production_date": "2020-01-01"})
        ],
        ("manager", "RegisterLots", lots(twice, twice | {"quantity": 7}), exists, "LOT_CONFLICT", "deliveries[2]"),
        *[
            ("manager", rpc, {"reservation_id": one}, nowhere, "UNKNOWN_VACCINATION", "reservation_id")
            for rpc in ("GetVaccination", "AssignLot")
            for one in (unknown, not_offered.reservation_id)
        ],
        ("manager", "AssignLot", {"lot_id": unknown}, nowhere, "UNKNOWN_LOT", "lot_id"),
        ("manager", "AssignLot", {"lot_id": foreign.lot_id}, nowhere, "UNKNOWN_LOT", "lot_id"),
        ("manager", "AssignLot", {"reservation_id": given_up.reservation_id}, forbids, "VACCINATION_CANCELLED", ""),
        ("manager", "AssignLot", {"lot_id": taken.lot_id}, forbids, "LOT_EMPTY", ""),
        ("manager", "AssignLot", {"lot_id": early.lot_id}, forbids, "LOT_NOT_VALID", ""),
        ("manager", "AssignLot", picky_wants | {"lot_id": other.lot_id}, forbids, "LOT_OTHER_VACCINE", ""),
        ("manager", "AssignLot", {"lot_id": withdrawn.lot_id}, forbids, "LOT_WITHDRAWN", ""),
        ("picky", move, {"reservation_id": unknown}, nowhere, "UNKNOWN_RESERVATION", "reservation_id"),
        *[
            (who, move, {"reservation_id": old.reservation_id}, forbids, "NOTHING_TO_MOVE", "reservation_id")
            for who, old in (("rejected", not_offered), ("quitter", given_up), ("late", passed))
        ],
        ("picky", move, picky_wants | {"date": "2020-01-01"}, invalid, "DATE_PASSED", "date"),
        ("picky", move, picky_wants | {"hospital_id": "nowhere"}, nowhere, "UNKNOWN_HOSPITAL", "hospital_id"),
        *[
            ("manager", rpc, {"lot_id": unknown}, nowhere, "UNKNOWN_LOT", "lot_id")
            for rpc in ("CorrectLot", "WriteOffDoses", "ListMovements")
        ],
        ("manager", "CorrectLot", {"expiry_date": "2020-01-01"}, invalid, "EXPIRY_BEFORE_PRODUCTION", "expiry_date"),
        ("manager", "CorrectLot", of_miscounted | {"received": 3}, *reused),
        ("manager", "WriteOffDoses", of_miscounted, *reused),
        ("manager", "CorrectLot", {"lot_id": withdrawn.lot_id}, forbids, "LOT_WITHDRAWN", ""),
        ("manager", "WriteOffDoses", {"quantity": 4}, forbids, "TOO_FEW_DOSES", "quantity"),
        ("manager", "RegisterLots", lots(known_recall), forbids, "LOT_WITHDRAWN", "deliveries[1]"),
        ("operator", "RecallLot", {"lot_number": "nowhere"}, nowhere, "UNKNOWN_LOT", "lot_number"),
        *[
            ("operator", rpc, {"recall_id": unknown}, nowhere, "UNKNOWN_RECALL", "recall_id")
            for rpc in ("GetRecall", "ListVaccinated")
        ],
        *[
            ("manager", rpc, {"reservation_id": one}, *answer)
            for rpc in ("CheckIn", "Administer", "MarkMissed")
            for one, answer in (
                (unknown, (nowhere, "UNKNOWN_VACCINATION", "reservation_id")),
                (stage.reservation, (forbids, "WRONG_DAY", "")),
                (given_up.reservation_id, (forbids, "VACCINATION_CANCELLED", "")),
            )
        ],
    ]  # fmt: skip
    before = await stage.stored()
    for who, rpc, other_than_good, code, reason, field in rows:
        request = stage.good[rpc] | other_than_good
        await expect(ways, people[who], rpc, request, code, reason, *filter(None, [field]))
    assert await stage.stored() == before


async def test_a_range_of_366_days_and_the_calendars_last_days_are_accepted(world: World, ways: Ways) -> None:
    hospital, day = await world.new_hospital()
    year = {"hospital_id": hospital, "first_date": str(day), "last_date": str(day + timedelta(365)), "capacity": 1}
    assert (await ways.grpc(world.operator.token, "SetDailyCapacity", year)).days_changed == 366  # type: ignore[union-attr]
    last = {"hospital_id": hospital, "first_date": "9999-12-30", "last_date": "9999-12-30"}
    assert not isinstance(await ways.rest(world.operator.token, "SetDailyCapacity", last | {"capacity": 1}), Refusal)
    assert len((await ways.rest(world.operator.token, "ListAvailability", last)).days) == 1  # type: ignore[union-attr]


# What: page tokens


async def test_a_page_token_is_accepted_only_unchanged_and_only_by_its_own_listing(world: World, ways: Ways) -> None:
    hospital, day = await world.new_hospital(capacity=5)
    other, _ = await world.new_hospital()
    manager, customer = world.manager(hospital), world.customer()
    for ahead in (400, 401):  # these days are not offered, so both are REJECTED at once
        await customer.create(hospital, day + timedelta(ahead))
    for _ in range(2):
        await world.customer().create(hospital, day)
    await eventually(customer.screen, lambda screen: len(screen) == 2)
    await eventually(lambda: manager.waiting(hospital), lambda queue: len(queue) == 2)
    # These lots expire before the day, so that those who wait go on waiting.
    await manager.register(hospital, *(delivery(1, expiry_date=str(day - timedelta(1))) for _ in range(2)))

    lot = (await manager.lots(hospital))[0].lot_id
    await manager.correct(lot, received=2)
    today, noon = await world.new_hospital(capacity=2, doses=2, days_ahead=0, time_zone=zone_at_noon())
    given = [await world.customer().create(today, noon) for _ in range(2)]
    await eventually(
        lambda: world.manager(today).of_day(today, noon), lambda of_day: [v.quantity for v in of_day] == [1, 1]
    )
    for reservation in given:
        await world.manager(today).administer(reservation.reservation_id)
    recall = (await world.manager(today).recall((await world.manager(today).lots(today))[0], today)).recall_id
    listings: dict[str, tuple[Client, Request, str, str]] = {
        "ListReservations": (customer, {}, "reservations", f"reservations of {_subject(customer)}"),
        "ListMyReservations": (customer, {}, "reservations", f"my reservations of {_subject(customer)}"),
        "ListHospitals": (customer, {}, "hospitals", "hospitals"),
        "ListLots": (manager, {"hospital_id": hospital}, "lots", f"lots of {hospital}"),
        "ListWaiting": (manager, {"hospital_id": hospital}, "vaccinations", f"waiting at {hospital}"),
        "ListMovements": (manager, {"lot_id": lot}, "movements", f"movements of {lot}"),
        "ListDay": (manager, {"hospital_id": hospital, "date": str(day)}, "vaccinations", f"{day} at {hospital}"),
        "ListAccesses": (world.operator, {"hospital_id": hospital}, "accesses", f"accesses at {hospital}"),
        "ListVaccinated": (world.manager(today), {"recall_id": recall}, "vaccinated", f"vaccinated from {recall}"),
    }
    tokens: dict[str, str] = {}
    for rpc, (who, request, rows, _) in listings.items():
        first: Any = await ways.grpc(who.token, rpc, request | {"page_size": 1})
        tokens[rpc] = first.next_page_token
        second: Any = await ways.rest(who.token, rpc, request | {"page_size": 1, "page_token": tokens[rpc]})
        [one], [two] = getattr(first, rows), getattr(second, rows)
        assert one != two
    assert {rpc for rpc in RPCS if "page_token" in RPCS[rpc].method.input_type.fields_by_name} == listings.keys()

    for rpc, (who, request, _, listing) in listings.items():
        token = tokens[rpc]
        digest, *position = json.loads(base64.urlsafe_b64decode(token))
        changed = [digest, *("2020-01-01T00:00:00+00:00" if i == 0 else p for i, p in enumerate(position))]
        wrong = [
            "x", "====", "...", "토큰", token[:-4], token[4:], f"{token}A", f"{token}\n", f" {token}", token.swapcase(),
            token + token, token.replace("=", "") + "=====", "\0",
            *map(_b64, ([], {}, "x", 1, None, [digest], [digest, *position, "more"], changed, [digest, 1, 2], [[]])),
            base64.urlsafe_b64encode(b"[" * 700).decode(), base64.urlsafe_b64encode(b"\xff\xfe\x00").decode(),
            *(t for other_rpc, t in tokens.items() if other_rpc != rpc),
            # Anybody who reads the source can make a digest that fits. Such a token must not make the store fail.
            *(paging.encode(listing, *parts) for parts in (
                ["a\0b"], ["\n"], ["2026-01-01T00:00:00", A_UUID], ["2026-01-01T00:00:00+09:00", A_UUID],
                ["0001-01-01T00:00:00+23:59", A_UUID], ["2026-01-01T00:00:00+00:00", "x"], ["2026-02-30", A_UUID], [],
            )),
        ]  # fmt: skip
        for bad in wrong:
            await expect(
                ways,
                who.token,
                rpc,
                request | {"page_token": bad},
                "INVALID_ARGUMENT",
                "INVALID_PAGE_TOKEN",
                "page_token",
            )
        for extreme in ("0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"):
            ends = {"page_token": paging.encode(listing, extreme, A_UUID)}
            answer = await ways.grpc(who.token, rpc, request | ends)
            assert not isinstance(answer, Refusal) or answer.reason == "INVALID_PAGE_TOKEN"

    # These tokens are of the same listing, but of another customer or hospital.
    for rpc in ("ListReservations", "ListMyReservations"):
        await expect(
            ways, world.customer().token, rpc, {"page_token": tokens[rpc]},
            "INVALID_ARGUMENT", "INVALID_PAGE_TOKEN", "page_token",
        )  # fmt: skip
    for rpc in ("ListLots", "ListWaiting"):
        await expect(
            ways, world.operator.token, rpc, {"hospital_id": other, "page_token": tokens[rpc]},
            "INVALID_ARGUMENT", "INVALID_PAGE_TOKEN", "page_token",
        )  # fmt: skip


def _b64(content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def _subject(client: Client) -> str:
    payload = (client.token or "").split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"])


# What: not even a request


async def test_bytes_that_are_no_message_are_refused(world: World, ways: Ways) -> None:
    stage = await set_stage(world)
    async with grpc.aio.insecure_channel(world.mesh.gateway) as channel:
        for rpc in RPCS.values():
            fields = rpc.method.input_type.fields
            text = next((f.number for f in fields if f.type == f.TYPE_STRING), None)
            bodies = [b"\xff\xff\xff", b"\x0a\x7f", b"\x07"]
            bodies += [bytes([text << 3 | 2, 2]) + b"\xff\xfe"] if text else []  # a text that is not UTF-8
            for body in bodies:
                metadata = (("authorization", f"Bearer {stage.token(rpc.method.name)}"),)
                call: Any = channel.unary_stream(rpc.path) if rpc.streams else channel.unary_unary(rpc.path)
                call = call(body, metadata=metadata, timeout=15)
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await (call.read() if rpc.streams else call)
                answer = refusal(error.value)
                assert (answer.code.name, answer.reason) == ("INVALID_ARGUMENT", "MALFORMED_REQUEST"), (rpc, answer)


async def test_rest_that_cannot_be_understood_is_refused(world: World, ways: Ways) -> None:
    stage = await set_stage(world)
    hospital, before = stage.hospital, await stage.stored()
    good = {"request_id": str(uuid.uuid4()), "hospital_id": hospital, "date": str(stage.day)}
    malformed, unknown = ("INVALID_ARGUMENT", "MALFORMED_REQUEST"), ("NOT_FOUND", "UNKNOWN_METHOD")
    cancel = f"POST /v1/reservations/{A_UUID}:cancel"
    rows: list[tuple[str, str, Any, tuple[str, str], str]] = [
        # the caller, the request, the body, the code and reason, what the message names
        ("customer", "POST /v1/reservations", b"{", malformed, ""),
        ("customer", "POST /v1/reservations", b"[]", malformed, ""),
        ("customer", "POST /v1/reservations", b"null", malformed, ""),
        ("customer", "POST /v1/reservations", b"<reservation/>", malformed, ""),
        ("customer", "POST /v1/reservations", b"request_id=1&date=2026-01-01", malformed, ""),
        ("customer", "POST /v1/reservations", b"\x00\x01\x02", malformed, ""),
        ("customer", "POST /v1/reservations", b'{"date":"\xff\xfe"}', malformed, ""),
        ("customer", "POST /v1/reservations", b'{"date":"\\ud800"}', malformed, ""),
        ("customer", "POST /v1/reservations", b'{"date":' + b"[" * 5000, malformed, ""),
        ("customer", "POST /v1/reservations", good | {"date": 20260101}, malformed, "date"),
        ("customer", "POST /v1/reservations", good | {"date": ["2026-01-01"]}, malformed, ""),
        ("customer", "POST /v1/reservations", good | {"date": {"year": 2026}}, malformed, "date"),
        ("customer", "POST /v1/reservations", good | {"hospital_id": True}, malformed, "hospital_id"),
        ("customer", "POST /v1/reservations?hospital_id=x", good, malformed, "hospital_id"),
        ("customer", cancel, {"reservation_id": str(uuid.uuid4())}, malformed, "reservation_id"),
        ("customer", "GET /v1/reservations", b"{", malformed, ""),
        ("customer", "GET /v1/reservations?page_size=many", None, malformed, "page_size"),
        ("customer", "GET /v1/reservations?page_size=1.5", None, malformed, "page_size"),
        ("customer", f"GET /v1/reservations?page_size={10**12}", None, malformed, "page_size"),
        ("customer", "GET /v1/reservations?customer_id=C2", None, malformed, "customer_id"),
        ("customer", "GET /v1/reservations?page_token=%FF%FE", None, malformed, ""),
        ("customer", "GET /v1/reservations/%FF%FE", None, malformed, ""),
        ("customer", "GET /v1/my/reservations/%FF", None, malformed, ""),
        ("customer", "GET /v1/reservations/%00", None, malformed, ""),
        ("operator", f"PUT /v1/hospitals/{hospital}", {"hospital_id": "other", "name": "n"}, malformed, "hospital_id"),
        ("operator", f"PUT /v1/hospitals/{hospital}?hospital.name=n", {"name": "m"}, malformed, "name"),
        ("manager", f"PUT /v1/hospitals/{hospital}/capacity", {"capacity": "many"}, malformed, "capacity"),
        ("manager", f"PUT /v1/hospitals/{hospital}/capacity", {"capacity": 1.5}, malformed, "capacity"),
        ("manager", f"PUT /v1/hospitals/{hospital}/capacity", {"capacity": 10**12}, malformed, "capacity"),
        ("manager", f"PUT /v1/hospitals/{hospital}/capacity", {"capacity": -(10**12)}, malformed, "capacity"),
        ("manager", f"POST /v1/hospitals/{hospital}/lots", {"deliveries": 5}, malformed, ""),
        ("manager", f"POST /v1/hospitals/{hospital}/lots", {"deliveries": ["lot"]}, malformed, ""),
        ("manager", f"POST /v1/hospitals/{hospital}/lots", {"deliveries": [a_delivery() | {"quantity": "1 dozen"}]},
         malformed, "quantity"),
        # the wrong method or an unknown path
        ("customer", "DELETE /v1/reservations", None, unknown, ""),
        ("customer", f"DELETE /v1/reservations/{A_UUID}", None, unknown, ""),
        ("customer", f"PATCH /v1/reservations/{A_UUID}", {}, unknown, ""),
        ("customer", f"PUT /v1/reservations/{A_UUID}", {}, unknown, ""),
        ("customer", f"GET /v1/reservations/{A_UUID}:cancel", None, unknown, ""),
        ("customer", f"POST /v1/reservations/{A_UUID}", {}, unknown, ""),
        ("customer", f"POST /v1/reservations/{A_UUID}:Cancel", {}, unknown, ""),
        ("customer", f"POST /v1/reservations/{A_UUID}:complete", {}, unknown, ""),
        ("customer", "OPTIONS /v1/reservations", None, unknown, ""),
        ("customer", "GET /v2/reservations", None, unknown, ""),
        ("customer", "GET /V1/Reservations", None, unknown, ""),
        ("customer", "GET /v1%2Freservations", None, unknown, ""),
        ("customer", "GET /v1/reservations/a/b", None, unknown, ""),
        ("customer", "GET /nothing", None, unknown, ""),
        ("customer", "GET /stats", None, unknown, ""),
        ("customer", "GET /metrics", None, unknown, ""),
        ("customer", "GET /.well-known/jwks.json", None, unknown, ""),
        ("operator", "POST /v1/hospitals", {"hospital_id": "h", "name": "n"}, unknown, ""),
        ("operator", f"DELETE /v1/hospitals/{hospital}", None, unknown, ""),
        *[("customer", f"POST {rpc.path}", {}, unknown, "") for rpc in RPCS.values()],
    ]  # fmt: skip
    for who, line, body, (code, reason), named in rows:
        verb, path = line.split(" ", 1)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        answer = await ways.send(verb, path, stage.people[who], content=content)
        shown = f"{line} {str(body)[:200]}: {answer}"
        assert isinstance(answer, Refusal), f"not refused: {shown}"
        assert (answer.code.name, answer.reason, answer.domain) == (code, reason, "vaccination.edge"), shown
        assert re.search(named, answer.message), shown
    assert await stage.stored() == before


async def test_rest_refuses_what_it_does_not_know(world: World, ways: Ways) -> None:
    token, somewhere = world.operator.token, f"/v1/hospitals/h-{uuid.uuid4().hex[:12]}"
    rows = [
        (b'{"name":"n","beds":[{"x":1}]}', "beds: there is no such field"),
        (b'{"name":"n","location":{"latitud":1}}', "latitud: there is no such field"),
        (b'{"name":"n","b\\u0065ds":1}', "there is no such field"),
        (b'{"name":"n","name":"m"}', "name: it is there twice"),
        (b'{"timeZone":"Asia/Seoul","time_zone":"Asia/Tokyo"}', "time_zone: it is there twice"),
        (b'{"name":"n","location":{"latitude":1,"latitude":2}}', "latitude: it is there twice"),
        (b'{"name":"n","name":{"x":1,"x":2}}', "name: it is there twice"),
        (b"{'name':'n'}", "not JSON"),
        (b'{name:"n"}', "not JSON"),
        (b'{"name":"n",}', "not JSON"),
        (b'{"name":"n"}}', "not JSON"),
        (b'{"name":"n"', "not JSON"),
        (b'{"name":"n"]', "not JSON"),
        (b'{"vaccine_codes":["8",]}', "not JSON"),
        (b'{"name":' + b"[" * 200, "nested too deeply"),
        (b'{"vaccine_codes":[' + b"1," * 100_000 + b"1]}", "too many values"),
        (b'{"name":"' + rb"\n" * 100_000 + b'"}', "not JSON"),
    ]
    for body, told in rows:
        answer = await ways.send("PUT", somewhere, token, content=body)
        assert isinstance(answer, Refusal), body
        assert (answer.code.name, answer.reason) == ("INVALID_ARGUMENT", "MALFORMED_REQUEST"), (body, answer)
        assert told in answer.message, (body, answer)
    strange = (
        b' { "name" : "\\"{[,]}\\\\" ,\r\n\t"vaccineCodes":[ ],"location":{"latitude" : -1.5e+0 ,"longitude":1} } '
    )
    assert not isinstance(await ways.send("PUT", somewhere, token, content=strange), Refusal)
    for line in ROUTES.values():
        verb, path = re.sub(r"{[^}]*}", "x", line).split()
        if verb != "GET":
            for same in (path, path + "/", re.sub(r"(:\w+)$", r"/\1", path)):
                answer = await ways.send(verb, same, token, content=b'{"beds":1}')
                assert isinstance(answer, Refusal)
                assert answer.message == "beds: there is no such field", (line, same)


async def test_rest_takes_json_whatever_it_is_called(world: World, ways: Ways) -> None:
    hospital, token = f"h-{uuid.uuid4().hex[:12]}", world.operator.token
    path, body = f"/v1/hospitals/{hospital}", b'{"name":"n"}'
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain", "application/json; charset=x"):
        assert not isinstance(await ways.send("PUT", path, token, content=body, content_type=kind), Refusal)
    page = await ways.send("GET", "/v1/hospitals?page_size=1", token)
    for in_a_get in (b'{"beds":1}', b"{}", b""):
        assert await ways.send("GET", "/v1/hospitals?page_size=1", token, content=in_a_get) == page


async def test_a_request_that_is_too_large_is_refused_and_the_connection_stays_open(world: World, ways: Ways) -> None:
    stage = await set_stage(world)
    before, manager = await stage.stored(), stage.manager.token
    large = stage.good["RegisterLots"] | {"deliveries": [a_delivery(lot_number="L" * 5 * MB)]}
    over_grpc = await ways.grpc(manager, "RegisterLots", large)
    assert isinstance(over_grpc, Refusal)
    assert (over_grpc.code.name, over_grpc.reason) == ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE")
    header = await ways.rest(manager, "ListLots", stage.good["ListLots"], x_long="h" * 70_000)
    assert isinstance(header, Refusal)
    assert (header.code.name, header.reason) == ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE")
    for way in (ways.grpc, ways.rest, ways.grpc_web):
        # The request has more errors than fit into the headers of an answer.
        wrong = {"hospital_id": stage.hospital, "deliveries": [{"quantity": 0}] * 500}
        answer = await way(manager, "RegisterLots", wrong)
        assert isinstance(answer, Refusal)
        assert (answer.code.name, answer.reason, len(answer.fields)) == ("INVALID_ARGUMENT", "INVALID_FIELD", 10)
        assert answer.message.endswith("and 2990 more")
        assert not isinstance(await way(manager, "ListLots", stage.good["ListLots"]), Refusal)
    assert await stage.stored() == before


async def test_a_method_that_does_not_exist_is_unimplemented(world: World) -> None:
    async with grpc.aio.insecure_channel(world.mesh.gateway) as channel:
        for service in ("vaccination.reservation.v1.ReservationService", "vaccination.none.v1.NoService", "", "a/b"):
            call: Any = channel.unary_unary(f"/{service}/Nothing")
            for metadata in ((), (("authorization", f"Bearer {world.operator.token}"),)):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call(b"", metadata=metadata, timeout=15)
                assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
