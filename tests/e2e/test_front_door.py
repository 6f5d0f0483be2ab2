"""The gateway is the only way in. It serves every public RPC by gRPC, REST, gRPC-Web and grpcurl, and nothing else."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from vaccination.approval.v1 import approval_service_pb2
from vaccination.operations.v1 import operations_service_pb2

from .conftest import Refusal, Status, World, delivery, eventually, refusal, zone_at_noon
from .ways import DESCRIBED, ROUTES, RPCS, SERVICES, Ways, grpcurl, ways_into

OPERATIONS = operations_service_pb2.DESCRIPTOR.services_by_name["OperationsService"].full_name


@pytest.fixture
async def ways(world: World) -> AsyncIterator[Ways]:
    async with ways_into(world) as ways:
        yield ways


async def test_reflection_lists_every_public_service_with_its_methods_and_nothing_internal(world: World) -> None:
    listed = (await grpcurl(world.mesh.gateway, "list")).split()
    services = {service.full_name for service in SERVICES.values()}
    assert {name for name in listed if name.startswith("vaccination.")} == services | {
        OPERATIONS,
        "vaccination.mypage.v1.ViewService",
    }
    methods = {method for name in services for method in (await grpcurl(world.mesh.gateway, "list", name)).split()}
    assert methods == {rpc.path[1:].replace("/", ".") for rpc in RPCS.values()}
    assert ROUTES.keys() == RPCS.keys()


async def test_everybody_can_read_the_description_of_rest(ways: Ways) -> None:
    answer = await ways.http.get("/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == DESCRIBED


@pytest.mark.parametrize("way", ["grpc", "rest", "grpc_web", "grpcurl"])
async def test_hospitals_are_found_by_name_and_the_nearest_come_first_by(way: str, world: World, ways: Ways) -> None:
    mark, token = uuid.uuid4().hex[:8], world.customer().token
    for name, latitude in (("far", 37.9), ("near", 37.51), ("nowhere", None)):
        hospital: dict[str, Any] = {"hospital_id": f"{mark}-{name}", "name": f"Clinic {mark} 100%"}
        if latitude:
            hospital["location"] = {"latitude": latitude, "longitude": -127.5}
        assert not isinstance(await ways.grpc(world.operator.token, "UpsertHospital", {"hospital": hospital}), Refusal)

    async def listed(**request: Any) -> list[str]:
        found: list[str] = []
        page: Any = None
        while page is None or page.next_page_token:
            more = {"page_size": 1, "page_token": page.next_page_token} if page else {"page_size": 1}
            page = await getattr(ways, way)(token, "ListHospitals", request | more)
            assert not isinstance(page, Refusal)
            found += [one.hospital_id.removeprefix(f"{mark}-") for one in page.hospitals]
        return found

    here = {"latitude": 37.5, "longitude": -127.5}
    assert await listed(query=f"{mark.upper()} clinic 100%") == ["far", "near", "nowhere"]
    assert await listed(query=f"{mark}", near=here) == ["near", "far", "nowhere"]
    assert await listed(query=f"{mark}_", near=here) == []


@pytest.mark.parametrize("way", ["grpc", "rest", "grpc_web", "grpcurl"])
async def test_every_public_rpc_can_be_called_by(way: str, world: World, ways: Ways) -> None:
    hospital, day = await world.new_hospital(days_ahead=0, time_zone=zone_at_noon())
    customer, manager, called = world.customer(), world.manager(hospital), set()

    async def call(token: str | None, rpc: str, **request: Any) -> Any:
        called.add(rpc)
        answer = await getattr(ways, way)(token, rpc, request)
        assert not isinstance(answer, Refusal)
        return answer

    content = {"hospital_id": hospital, "name": "보건소 №1", "time_zone": zone_at_noon()}
    assert (await call(world.operator.token, "UpsertHospital", hospital=content)).changed
    found = (await call(customer.token, "ListHospitals", page_size=1000)).hospitals
    assert "보건소 №1" in [h.name for h in found if h.hospital_id == hospital]
    days = {"hospital_id": hospital, "first_date": str(day), "last_date": str(day)}
    assert (await call(manager.token, "SetDailyCapacity", **days, capacity=2)).days_changed == 1
    [places] = (await call(customer.token, "ListAvailability", **days)).days
    assert (places.date, places.left) == (str(day), 2)

    created = await call(
        customer.token, "CreateReservation", request_id=str(uuid.uuid4()), hospital_id=hospital, date=str(day)
    )
    assert created.reservation.status == Status.RESERVATION_STATUS_APPROVED
    mine = {"reservation_id": created.reservation.reservation_id}
    assert (await call(customer.token, "GetReservation", **mine)).reservation.date == str(day)
    assert len((await call(customer.token, "ListReservations")).reservations) == 1
    await eventually(lambda: manager.waiting(hospital), lambda queue: len(queue) == 1)
    [waiting] = (await call(manager.token, "ListWaiting", hospital_id=hospital)).vaccinations
    assert waiting.reservation_id == mine["reservation_id"]

    lots = [
        {f.name: value for f, value in lot.ListFields()} for lot in (delivery(1, expiry_date=str(day)), delivery(5))
    ]
    registered = (await call(manager.token, "RegisterLots", hospital_id=hospital, deliveries=lots)).lots
    assert [lot.received for lot in registered] == [1, 5]
    assert len((await call(manager.token, "ListLots", hospital_id=hospital)).lots) == 2
    await customer.reaches(mine["reservation_id"], Status.RESERVATION_STATUS_COMPLETED)
    assert (await call(manager.token, "GetVaccination", **mine)).vaccination.dose.lot_id == registered[0].lot_id
    chosen = await call(manager.token, "AssignLot", **mine, lot_id=registered[1].lot_id)
    assert chosen.vaccination.dose.lot_id == registered[1].lot_id

    assert (await call(customer.token, "GetMyReservation", **mine)).reservation.quantity == 1
    assert len((await call(customer.token, "ListMyReservations")).reservations) == 1
    assert len((await call(customer.token, "WatchMyReservations")).reservations) == 1
    cancelled = (await call(customer.token, "CancelReservation", **mine)).reservation
    assert cancelled.status == Status.RESERVATION_STATUS_CANCEL_REQUESTED
    await customer.reaches(mine["reservation_id"], Status.RESERVATION_STATUS_CANCELLED)
    await _counter_and_stock(call, world, hospital, str(day), [lot.lot_id for lot in registered])
    assert called == RPCS.keys()


async def _counter_and_stock(call: Any, world: World, hospital: str, day: str, lots: list[str]) -> None:
    """What the rest of the day brings: somebody comes, somebody does not, a lot is recalled, the day is called off."""
    manager, place = world.manager(hospital).token, {"hospital_id": hospital, "date": day}
    people = [world.customer() for _ in range(2)]
    mine = []
    for customer in people:
        booked = await customer.create(hospital, day)
        await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
        moved = {"reservation_id": booked.reservation_id, "request_id": str(uuid.uuid4())} | place
        new = (await call(customer.token, "MoveReservation", **moved)).reservation.reservation_id
        await customer.reaches(new, Status.RESERVATION_STATUS_COMPLETED)
        mine.append({"reservation_id": new})
    first, second = mine
    assert (await call(manager, "CheckIn", **first)).vaccination.HasField("check_in_time")
    given = (await call(manager, "Administer", **first, lot_id=lots[1])).vaccination
    assert (given.dose.lot_id, given.HasField("administer_time")) == (lots[1], True)
    missed = (await call(manager, "MarkMissed", **second)).vaccination
    assert (missed.quantity, missed.HasField("dose")) == (0, False)
    assert len((await call(manager, "ListDay", **place)).vaccinations) == 5
    found = await call(manager, "FindBookings", hospital_id=hospital, customer_id=given.customer_id)
    assert first["reservation_id"] in [v.reservation_id for v in found.vaccinations]

    change: dict[str, Any] = {"lot_id": lots[1], "request_id": str(uuid.uuid4()), "note": "counted anew"}
    assert (await call(manager, "CorrectLot", **change, received=6)).lot.received == 6
    change |= {"request_id": str(uuid.uuid4()), "quantity": 2, "reason": 1}
    lot = (await call(manager, "WriteOffDoses", **change)).lot
    assert (lot.received, lot.free, lot.administered, lot.written_off) == (6, 3, 1, 2)
    names = {"vaccine_code": lot.vaccine_code, "manufacturer": lot.manufacturer, "lot_number": lot.lot_number}
    recall = (await call(manager, "RecallLot", **names, hospital_id=hospital, note="Glass")).recall
    assert (recall.written_off, recall.administered) == (5, 1)
    by_id = {"recall_id": recall.recall_id}
    assert (await call(manager, "GetRecall", **by_id)).recall.bookings_to_go == 0
    [vaccinated] = (await call(manager, "ListVaccinated", **by_id)).vaccinated
    assert vaccinated.reservation_id == first["reservation_id"]
    assert len((await call(manager, "ListMovements", lot_id=lots[1])).movements) >= 5

    off = await call(manager, "CallOffDay", **place, note="No heating")
    assert off.day.called_off == "No heating"
    assert (await call(manager, "ReopenDay", **place)).day.called_off == ""
    accesses = (await call(world.operator.token, "ListAccesses", hospital_id=hospital)).accesses
    assert {"ListDay", "FindBookings", "ListVaccinated"} <= {access.call for access in accesses}


APPROVE = "vaccination.approval.v1.ApprovalService/Approve"
PUBLIC = "vaccination.approval.v1.HospitalService"
# A route that reads another path than the service does would let these spellings of Approve through.
DISGUISES = [
    f"/{APPROVE}",
    f"/{APPROVE}/",
    f"//{APPROVE}",
    f"/{APPROVE}".replace("/", "//"),
    f"/./{APPROVE}",
    f"/{APPROVE}".lower(),
    f"/{APPROVE}".upper(),
    f"/{APPROVE}".replace("A", "%41"),
    f"/{APPROVE}".replace("/Approve", "%2FApprove"),
    f"/{APPROVE}".replace("/Approve", "\\Approve"),
    f"/{APPROVE}?x=1",
    f"/{APPROVE};x=1",
    f"/{APPROVE}%00",
    f"/{APPROVE}%20",
    f"/{PUBLIC}/Approve",
    f"/{PUBLIC}/{APPROVE}",
    f"/{PUBLIC}/../{APPROVE}",
    f"/{PUBLIC}/%2e%2e/{APPROVE}",
    f"/{PUBLIC}/..%2f{APPROVE}",
    f"/{PUBLIC}/..\\{APPROVE}",
    f"/{PUBLIC}/ListHospitals/../../{APPROVE}",
    "/v1/approvals",
    "/v1/reservations:approve",
    f"/v1/{APPROVE}",
]


async def test_approve_cannot_be_reached_from_outside(world: World, ways: Ways) -> None:
    hospital, day = await world.new_hospital(capacity=5)
    request = approval_service_pb2.ApproveRequest(
        reservation_id=str(uuid.uuid4()), customer_id="intruder", hospital_id=hospital, date=str(day)
    )
    body = request.SerializeToString()
    frame = b"\0" + len(body).to_bytes(4, "big") + body
    everything = world.token("intruder", ["customer", "manager", "operator"], hospital=hospital)
    bearer = {"authorization": f"Bearer {everything}"}
    as_json = f'{{"reservation_id":"{uuid.uuid4()}","customer_id":"x","hospital_id":"{hospital}","date":"{day}"}}'
    async with grpc.aio.insecure_channel(world.mesh.gateway) as channel:
        for path in DISGUISES:
            for metadata in ((), tuple(bearer.items())):
                call: Any = channel.unary_unary(path)
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call(body, metadata=metadata, timeout=15)
                refused = refusal(error.value)
                assert refused.code.name in ("UNIMPLEMENTED", "INVALID_ARGUMENT"), (path, refused)
            for kind, content in (
                ("application/json", as_json.encode()),
                ("application/grpc", frame),
                ("application/grpc-web+proto", frame),
            ):
                headers = bearer | {"content-type": kind, "te": "trailers"}
                response = await ways.http.post(path, content=content, headers=headers)
                told = int(response.headers.get("grpc-status", "0"))
                assert response.status_code in (400, 404) or told in (3, 5, 12), (path, kind, response)
    assert not await world.query("approval", "SELECT * FROM decisions WHERE hospital_id = $1", hospital)
