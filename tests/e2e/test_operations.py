"""Operators operate a service with grpcurl, as the runbooks say."""

import asyncio
import json
import os
import re
import subprocess
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import nats
import pymongo
import pytest

from mesh import ROOT
from mesh.machine.home import DEFAULT_BASE_PORT
from services.reservation.domain import Request, RequestId
from vaccination.approval.v1 import appointment_pb2, approval_events_pb2
from vaccination.mypage.v1 import view_service_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2

from .conftest import Status, World, eventually
from .ways import ways_into

CANCELLED = "vaccination.vaccinemgmt.v1.CancellationCompleted"


RUNBOOKS = ROOT / "docs/runbooks"
# README.md is typed with each of the others, and these with what they are about.
TYPED_ELSEWHERE = ("README.md", "dead-letters.md", "recall-a-lot.md", "call-off-a-day.md")


def runbook(name: str) -> str:
    """A runbook's commands in their order, after the common commands that prepare the shell."""
    texts = [(RUNBOOKS / page).read_text() for page in ("README.md", name)]
    return "\n".join(block for text in texts for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))


async def typed(world: World, script: str, **env: str) -> str:
    """Types the commands into a shell; returns what they print."""
    moved = world.mesh.home.base_port - DEFAULT_BASE_PORT
    script = re.sub(r"127\.0\.0\.1:(18\d{3})\b", lambda found: f"127.0.0.1:{int(found[1]) + moved}", script)
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", script,
        cwd=ROOT, env=os.environ | {"MESH_HOME": str(world.mesh.home.path)} | env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 300)
    assert process.returncode == 0, out.decode()
    return out.decode()


async def ops(world: World, service: str, method: str, **fields: Any) -> Any:
    """Calls one operation; returns its answer."""
    body = json.dumps({"service": service, **fields})
    call = f"""export TOKEN=$(./dev token --role operator) PATH="$PATH:$PWD/.venv/bin"
        grpcurl -plaintext -H "authorization: Bearer $TOKEN" -H "service: {service}" -d '{body}' \\
          {world.mesh.gateway} vaccination.operations.v1.OperationsService/{method}"""
    return json.loads(await typed(world, call))


async def publish(world: World, subject: str, data: bytes, key: str) -> None:
    """Publishes any bytes to the stream, as a client that keeps no rules."""
    client = await nats.connect(world.mesh.stores.nats_url)
    headers = {"ce-id": str(uuid.uuid4()), "ce-subject": key, "ce-time": datetime.now(UTC).isoformat()}
    await client.jetstream().publish(subject, data, headers=headers)
    await client.close()


def appointment(reservation_id: uuid.UUID, customer_id: str, hospital: str, day: object) -> appointment_pb2.Appointment:
    """An appointment as approval would have written it."""
    return appointment_pb2.Appointment(
        reservation_id=str(reservation_id),
        customer_id=customer_id,
        hospital_id=hospital,
        time_zone="Asia/Seoul",
        date=str(day),
        decide_time=datetime.now(UTC),  # type: ignore[arg-type]
    )


@pytest.fixture
async def clean(world: World) -> None:
    """Removes the dead letters of other tests."""
    client = await nats.connect(world.mesh.stores.nats_url)
    await client.jetstream().purge_stream("DEAD_LETTERS")
    await client.close()


@pytest.mark.parametrize("name", sorted(p.name for p in RUNBOOKS.glob("*.md") if p.name not in TYPED_ELSEWHERE))
async def test_the_commands_of_a_runbook_work_in_their_order(world: World, name: str) -> None:
    await world.new_hospital(capacity=1, doses=1)
    out = await typed(world, runbook(name))
    assert all(state.state == "ready" for state in world.mesh.status()), out


async def test_a_lot_is_recalled_and_a_day_called_off_as_the_runbooks_say(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    customer = world.customer()
    booked = (await customer.create(hospital, day)).reservation_id
    await customer.reaches(booked, Status.RESERVATION_STATUS_COMPLETED)
    [lot] = await world.operator.lots(hospital)
    notice = {"VACCINE": lot.vaccine_code, "MANUFACTURER": lot.manufacturer, "LOT": lot.lot_number}

    out = await typed(world, runbook("recall-a-lot.md"), HOSPITAL=hospital, **notice)
    assert '"waiting": 1' in out
    shown = await customer.reaches(booked, Status.RESERVATION_STATUS_APPROVED)
    assert (shown.lot_number, shown.timeline[-1].reason) == ("", "LOT_RECALLED")

    out = await typed(world, runbook("call-off-a-day.md"), HOSPITAL=hospital, DAY=str(day))
    assert '"called_off": "The heating has failed.' in out
    shown = await customer.reaches(booked, Status.RESERVATION_STATUS_CALLED_OFF)
    [told] = [entry.note for entry in shown.timeline if entry.reason == "DAY_CALLED_OFF"]
    assert told.startswith("The heating has failed.")
    again = await world.customer().create(hospital, day)  # it is reopened in the end
    assert again.status == Status.RESERVATION_STATUS_APPROVED


async def test_a_replica_tells_what_it_has_measured_and_which_one_it_is(world: World) -> None:
    granted = {"subject": "vaccination.approval.v1.ApprovalGranted"}
    asked = "GET", "/v1/operations/approval/metrics?names=events_published_total&names=nobody_counts_this"

    async def published() -> tuple[str, float]:
        """Who answers, and how often it has published that approval was granted."""
        async with ways_into(world) as ways:
            answer = json.loads(cast(str, await ways.send(*asked, world.operator.token)))
        assert {sample["name"] for sample in answer["samples"]} <= {"events_published_total"}
        [value] = [sample["value"] for sample in answer["samples"] if sample["labels"] == granted] or [0.0]
        return answer["replica"], value

    await world.quiet()  # nothing of other tests is published from now on
    replica, before = await published()
    hospital, day = await world.new_hospital(capacity=1)
    await world.customer().create(hospital, day)
    assert await eventually(published, lambda told: told[1] > before) == (replica, before + 1)
    [ready] = (await ops(world, "approval", "GetMetrics", names=["component_ready"]))["samples"]
    assert ready == {"name": "component_ready", "labels": {"component": "approval"}, "value": 1}
    await world.stop("approval")
    await world.start("approval")
    another, counted = await published()
    assert (another != replica, counted) == (True, 0)


@pytest.mark.usefixtures("clean")
async def test_garbage_is_found_explained_and_discarded_while_the_rest_flows(world: World) -> None:
    await publish(world, CANCELLED, b"\xff\xfe garbage", "nobody")
    await publish(world, "vaccination.approval.v1.NobodyKnowsThis", b"", "nobody")
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    customer = world.customer()
    booked = await customer.create(hospital, day)
    await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_COMPLETED)

    async def letters() -> int:
        return len((await ops(world, "approval", "ListDeadLetters")).get("dead_letters", []))

    await eventually(letters, lambda n: n == 1)
    out = await typed(world, runbook("dead-letters.md"))
    assert "Unprocessable: undecodable: DecodeError" in out
    assert '"failed": 1' in out
    assert await letters() == 0
    status = await ops(world, "approval", "GetStatus")
    assert "consumer_paused_until" not in status


@pytest.mark.usefixtures("clean")
async def test_an_event_that_could_not_be_handled_is_redriven_when_it_can(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=1)
    name, request_id = f"customer-{uuid.uuid4()}", uuid.uuid4()
    customer = world.client(name, ["customer"])
    reservation_id = uuid.UUID(Request(name, RequestId(str(request_id)), hospital, day, "").reservation_id)
    message = vaccinemgmt_events_pb2.CancellationCompleted(
        appointment=appointment(reservation_id, name, hospital, day), version=1
    )
    await publish(world, CANCELLED, message.SerializeToString(), str(reservation_id))

    async def letter() -> Any:
        return (await ops(world, "approval", "ListDeadLetters")).get("dead_letters")

    [found] = await eventually(letter, lambda found: bool(found))
    assert "was never granted" in found["history"][0]["reason"]
    assert found["reservation_id"] == str(reservation_id)

    await customer.create(hospital, day, str(request_id))
    assert (await world.operator.availability(hospital, day)).approved == 1
    assert (await ops(world, "approval", "RedriveDeadLetters", sequence=found["sequence"]))["handled"] == 1
    assert (await world.operator.availability(hospital, day)).approved == 0
    assert await letter() is None


@pytest.mark.usefixtures("clean")
async def test_an_event_whose_handling_always_fails_is_tried_and_then_laid_aside(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    reservation_id = uuid.uuid4()
    # The contract's rules allow a text with NUL, but Postgres cannot store it.
    poison = approval_events_pb2.ApprovalGranted(appointment=appointment(reservation_id, "a\0b", hospital, day))
    await publish(world, "vaccination.approval.v1.ApprovalGranted", poison.SerializeToString(), str(reservation_id))
    customer = world.customer()
    booked = await customer.create(hospital, day)
    await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_APPROVED)  # the poison event took the dose

    async def letters() -> Any:
        return (await ops(world, "reservation", "ListDeadLetters")).get("dead_letters", [])

    # The two letters are the approval, and the completion that vaccine management made of it.
    for letter in await eventually(letters, lambda found: len(found) == 2, within=120):
        assert [failure["tries"] for failure in letter["history"]] == [1, 2, 3, 4, 5]
        await ops(world, "reservation", "DiscardDeadLetter", sequence=letter["sequence"], reason="poison of a test")


async def test_a_paused_consumer_waits_and_then_catches_up(world: World) -> None:
    until = (datetime.now(UTC) + timedelta(minutes=5)).isoformat().replace("+00:00", "Z")
    await ops(world, "vaccinemgmt", "PauseConsumer", until=until)
    hospital, day = await world.new_hospital(capacity=5, doses=5)
    customer = world.customer()
    booked = await customer.create(hospital, day)
    status = await eventually(
        lambda: ops(world, "vaccinemgmt", "GetStatus"), lambda s: int(s.get("consumer_pending", 0)) >= 1
    )
    assert status["consumer_paused_until"]
    assert (await customer.get(booked.reservation_id)).status == Status.RESERVATION_STATUS_APPROVED
    await ops(world, "vaccinemgmt", "ResumeConsumer")
    await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_COMPLETED)


async def test_the_view_is_rebuilt_beside_the_one_that_is_read(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=50, doses=50)
    customers = [world.customer() for _ in range(10)]
    booked = [await customer.create(hospital, day) for customer in customers]
    for customer, reservation in zip(customers, booked, strict=True):
        await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    stop = asyncio.Event()
    reads = 0

    async def read() -> None:
        nonlocal reads
        while not stop.is_set():
            for customer in customers:
                assert len(await customer.screen()) == 1, "readers see the old view or the new one, and never none"
                reads += 1

    async def book() -> None:
        while not stop.is_set():
            await world.customer().create(hospital, day)

    reading, booking = asyncio.create_task(read()), asyncio.create_task(book())
    await asyncio.to_thread(world.mesh.rebuild_mypage)
    stop.set()
    await asyncio.gather(reading, booking)
    assert reads > 10
    await world.quiet()
    rows = "SELECT reservation_id FROM {} WHERE hospital_id = $1 ORDER BY 1"
    shown = await world.query("mypage", rows.format("my_reservations"), hospital)
    assert shown == await world.query("reservation", rows.format("reservations"), hospital)


async def test_a_view_rebuilt_since_a_time_keeps_what_was_before(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=2, doses=2)
    early, late = world.customer(), world.customer()
    await early.reaches((await early.create(hospital, day)).reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    since = datetime.now(UTC)
    await late.reaches((await late.create(hospital, day)).reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    request = view_service_pb2.RebuildViewRequest(since=since)  # type: ignore[arg-type]
    phases = [p.phase async for p in world.operator.view.RebuildView(request, metadata=world.operator.metadata)]
    assert phases[-1] == view_service_pb2.RebuildPhase.REBUILD_PHASE_DONE
    for customer in (early, late):
        [shown] = await customer.screen()
        assert (shown.status, len(shown.timeline)) == (Status.RESERVATION_STATUS_COMPLETED, 3)


async def test_a_person_is_erased_everywhere_as_the_runbook_says_and_a_rebuild_brings_nothing_back(
    world: World,
) -> None:
    hospital, day = await world.new_hospital(capacity=2, doses=2)
    name, other = f"customer-{uuid.uuid4()}", world.customer()
    person = world.client(name, ["customer"])
    kept = await other.create(hospital, day)
    booked = await person.create(hospital, day)
    for who, reservation in ((other, kept), (person, booked)):
        await who.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    with pytest.raises(AssertionError, match=r"PERSON_ACTIVE|FailedPrecondition"):
        await typed(world, runbook("erase-a-person.md"), SUBJECT=name)
    assert len(await person.screen()) == 1

    await person.cancel(booked.reservation_id)
    await person.reaches(booked.reservation_id, Status.RESERVATION_STATUS_CANCELLED)
    await world.quiet()
    assert '"rows": "1"' in await typed(world, runbook("erase-a-person.md"), SUBJECT=name)
    await asyncio.to_thread(world.mesh.rebuild_mypage)
    assert await person.screen() == []
    assert len(await other.screen()) == 1
    for service, table in (
        ("approval", "decisions"), ("approval", "active_bookings"), ("reservation", "reservations"),
        ("mypage", "my_reservations"),
    ):  # fmt: skip
        assert not await world.query(service, f"SELECT FROM {table} WHERE customer_id = $1", name)
    with pymongo.MongoClient[Any](world.mesh.stores.mongo_url) as client:
        assert client["vaccinemgmt"]["vaccinations"].count_documents({"customer_id": name}) == 0
