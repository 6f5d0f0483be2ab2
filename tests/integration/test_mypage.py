"""The customer's screen has the same rows in whatever order events arrive, and its watchers miss nothing."""

import asyncio
import base64
import itertools
import json
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from services.chassis.caller import CLAIMS_HEADER, CLOCK_SKEW
from services.chassis.edge import Edge, status_of
from services.chassis.events import Event
from services.chassis.postgres import Database
from services.mypage import erasure, queries, server
from services.mypage.projector import View, entry
from services.mypage.queries import SCREENS, Changes, Position, TooManyScreens, Watch
from tests.releases import extract
from vaccination.approval.v1 import appointment_pb2
from vaccination.approval.v1 import approval_events_pb2 as approval
from vaccination.mypage.v1 import my_reservation_pb2, mypage_service_pb2, mypage_service_pb2_grpc
from vaccination.reservation.v1 import reservation_events_pb2 as reservation
from vaccination.reservation.v1 import reservation_pb2
from vaccination.vaccinemgmt.v1 import vaccination_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2 as vaccinemgmt

from .conftest import OpenBus, OpenDatabase, Servers, eventually, within

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)
Status = reservation_pb2.ReservationStatus
DOSE = vaccination_pb2.Dose(
    lot_id=str(uuid.UUID(int=5)),
    lot_number="L1",
    vaccine_code="207",
    manufacturer="MOD",
    production_date="2027-01-01",
    expiry_date="2027-06-30",
)
OTHER = vaccination_pb2.Dose(
    lot_id=str(uuid.UUID(int=6)),
    lot_number="L2",
    vaccine_code="208",
    manufacturer="PFR",
    production_date="2027-01-02",
    expiry_date="2027-07-01",
)


def appointment(number: int = 1, customer: str = "c1", seconds: int = 0) -> appointment_pb2.Appointment:
    return appointment_pb2.Appointment(
        reservation_id=str(uuid.UUID(int=number)),
        customer_id=customer,
        hospital_id="h1",
        hospital_name="Han River Clinic",
        time_zone="Asia/Seoul",
        date="2027-03-10",
        decide_time=NOW + timedelta(seconds=seconds),  # type: ignore[arg-type]
    )


def journey(a: appointment_pb2.Appointment) -> dict[str, Message]:
    """The events of a booking that is completed and cancelled, in the order in which they happen."""
    return {
        "granted": approval.ApprovalGranted(appointment=a),
        "placed": reservation.ReservationPlaced(appointment=a),
        "completed": vaccinemgmt.ReservationCompleted(appointment=a, dose=DOSE, quantity=1, version=1),
        "given up": reservation.CancellationRequested(appointment=a),
        "cancelled": vaccinemgmt.CancellationCompleted(appointment=a, version=2),
        "released": approval.ApprovalReleased(appointment=a),
    }


def long_journey(a: appointment_pb2.Appointment) -> dict[str, Message]:
    """The same journey with a wait, and with a manager's choice of another lot."""
    return {
        "granted": approval.ApprovalGranted(appointment=a),
        "placed": reservation.ReservationPlaced(appointment=a),
        "waiting": vaccinemgmt.ReservationWaiting(appointment=a, version=1),
        "completed": vaccinemgmt.ReservationCompleted(appointment=a, dose=DOSE, quantity=1, version=2),
        "chosen": vaccinemgmt.ReservationCompleted(appointment=a, dose=OTHER, quantity=1, version=3),
    }


class Life:
    """A random history of one booking as the services tell it, from the approval to an end, and what the screen shows
    of it then. Not every history has an end."""

    def __init__(self, a: appointment_pb2.Appointment, rng: random.Random) -> None:
        self.a, self.events = a, list[Event]()
        self.status, self.dose, self.replaced_by = Status.RESERVATION_STATUS_APPROVED, vaccination_pb2.Dose(), ""
        self.timeline: list[tuple[str, str, str]] = []
        self._version = 0
        self._happens(approval.ApprovalGranted(appointment=a))
        self._happens(reservation.ReservationPlaced(appointment=a))
        self._waits() if rng.random() < 0.5 else self._gets(DOSE)
        for _ in range(rng.randrange(4)):
            if self.has_dose and rng.random() < 0.3:
                self._waits(vaccination_pb2.DoseChangeReason.DOSE_CHANGE_REASON_LOT_RECALLED, "the authority says so")
            else:
                self._gets(OTHER if self.dose == DOSE else DOSE)
        if self.has_dose and rng.random() < 0.5:
            self._vaccinemgmt(vaccinemgmt.VaccinationCheckedIn)
            if rng.random() < 0.3:
                self._gets(OTHER if self.dose == DOSE else DOSE)
        rng.choice([self._goes_on, self._given, self._missed, self._late, self._cancelled, self._called_off,
                    self._moved, self._unserved, self._too_late])()  # fmt: skip

    @property
    def has_dose(self) -> bool:
        return bool(self.dose.lot_id)

    def _happens(self, message: Any, reason: str = "", note: str = "") -> None:
        self.events.append(event(message, len(self.events)))
        self.timeline.append((type(message).__name__, reason, note))

    def _vaccinemgmt(self, kind: Any, reason: str = "", **fields: Any) -> None:
        self._version += 1
        self._happens(kind(appointment=self.a, version=self._version, **fields), reason, fields.get("note", ""))

    def _waits(self, why: Any = 0, note: str = "") -> None:
        reason = vaccination_pb2.DoseChangeReason.Name(why).removeprefix("DOSE_CHANGE_REASON_") if why else ""
        self._vaccinemgmt(vaccinemgmt.ReservationWaiting, reason, dose_change_reason=why, note=note)
        self.status, self.dose = Status.RESERVATION_STATUS_APPROVED, vaccination_pb2.Dose()

    def _gets(self, dose: vaccination_pb2.Dose) -> None:
        self._vaccinemgmt(vaccinemgmt.ReservationCompleted, dose=dose, quantity=1)
        self.status, self.dose = Status.RESERVATION_STATUS_COMPLETED, dose

    def _ends(self, kind: Any, status: Any) -> None:
        self._vaccinemgmt(kind)
        self.status, self.dose = max(self.status, status), vaccination_pb2.Dose()

    def _goes_on(self) -> None:
        pass

    def _given(self) -> None:
        given = self.dose if self.has_dose else OTHER
        self._vaccinemgmt(vaccinemgmt.VaccinationAdministered, dose=given, quantity=1)
        self.status, self.dose = Status.RESERVATION_STATUS_ADMINISTERED, given

    def _missed(self) -> None:
        self._ends(vaccinemgmt.VaccinationMissed, Status.RESERVATION_STATUS_MISSED)
        self._happens(approval.ApprovalReleased(appointment=self.a))

    def _late(self) -> None:
        self._missed()
        self._given()

    def _cancelled(self) -> None:
        self._happens(reservation.CancellationRequested(appointment=self.a))
        self._ends(vaccinemgmt.CancellationCompleted, Status.RESERVATION_STATUS_CANCELLED)
        self._happens(approval.ApprovalReleased(appointment=self.a))

    def _too_late(self) -> None:
        """The customer asks to cancel while the dose is given."""
        self._given()
        self._happens(reservation.CancellationRequested(appointment=self.a))

    def _revoked(self, why: str, status: Any, **fields: Any) -> None:
        reason = approval.RevocationReason.Value(f"REVOCATION_REASON_{why}")
        message = approval.ApprovalRevoked(appointment=self.a, revocation_reason=reason, **fields)
        self._happens(message, why, message.note)
        self.status, self.replaced_by = status, message.replaced_by
        self._ends(vaccinemgmt.CancellationCompleted, status)

    def _called_off(self) -> None:
        self._revoked("DAY_CALLED_OFF", Status.RESERVATION_STATUS_CALLED_OFF, note="the pipes are frozen")

    def _moved(self) -> None:
        self._revoked("MOVED", Status.RESERVATION_STATUS_MOVED, replaced_by=str(uuid.UUID(int=77)))

    def _unserved(self) -> None:
        if self.has_dose:
            self._waits(vaccination_pb2.DoseChangeReason.DOSE_CHANGE_REASON_GIVEN_TO_ANOTHER)
        self._ends(vaccinemgmt.VaccinationUnserved, Status.RESERVATION_STATUS_UNSERVED)
        self._happens(approval.ApprovalReleased(appointment=self.a))

    def shown(self) -> my_reservation_pb2.MyReservation:
        """The customer's screen, when every event has come."""
        return my_reservation_pb2.MyReservation(
            reservation_id=self.a.reservation_id,
            hospital_id=self.a.hospital_id,
            hospital_name=self.a.hospital_name,
            time_zone=self.a.time_zone,
            date=self.a.date,
            status=self.status,
            vaccine_code=self.dose.vaccine_code,
            manufacturer=self.dose.manufacturer,
            lot_number=self.dose.lot_number,
            production_date=self.dose.production_date,
            expiry_date=self.dose.expiry_date,
            quantity=int(self.has_dose),
            replaced_by=self.replaced_by,
            timeline=[
                my_reservation_pb2.TimelineEntry(
                    event=name, time=NOW + timedelta(seconds=i), reason=reason, note=note  # type: ignore[arg-type]
                )
                for i, (name, reason, note) in enumerate(self.timeline)
            ],
        )  # fmt: skip


def event(message: Any, at: int = 0) -> Event:
    """The event as the consumer hands it over."""
    kind = message.DESCRIPTOR.full_name
    return Event(str(uuid.uuid4()), message.appointment.reservation_id, kind, NOW + timedelta(seconds=at), message)


async def project(database: Database, events: Sequence[Event]) -> None:
    """Projects events as the consumer does: it reads each, and projects all in one call."""
    await View(database).project([entry(e) for e in events])


def events_of(messages: dict[str, Message]) -> dict[str, Event]:
    return {name: event(message, i) for i, (name, message) in enumerate(messages.items())}


async def rows(database: Database, sql: str, *arguments: object) -> list[asyncpg.Record]:
    async with database.connection() as connection:
        return list(await connection.fetch(sql, *arguments))


async def contents(database: Database) -> dict[str, tuple[Any, ...]]:
    """Everything that the view has of each reservation."""
    found = await rows(
        database,
        """
        SELECT r.*, ARRAY(SELECT (event, version, time, reason, note)::text FROM timeline t
                          WHERE t.reservation_id = r.reservation_id ORDER BY time, event, version) AS timeline
        FROM my_reservations r""",
    )
    return {str(row["reservation_id"]): tuple(map(str, list(row.values())[1:])) for row in found}


def batches(streams: Sequence[Sequence[Event]], rng: random.Random) -> Iterator[list[Event]]:
    """Interleaves streams, each in its own order, and cuts the result into batches of random sizes."""
    turns = [i for i, stream in enumerate(streams) for _ in stream]
    rng.shuffle(turns)
    iterators = [iter(stream) for stream in streams]
    mixed = [next(iterators[i]) for i in turns]
    while mixed:
        size = rng.choice([1, 7, 60, 256])
        yield mixed[:size]
        del mixed[:size]


@pytest.fixture
async def view(open_database: OpenDatabase) -> Database:
    return await open_database("mypage")


async def test_every_order_and_repetition_in_any_batches_ends_in_the_same_rows(
    view: Database, seeded: random.Random
) -> None:
    streams = []
    for number, order in enumerate(itertools.permutations(range(6)), 1):
        told = list(events_of(journey(appointment(number))).values())
        stream = [told[i] for i in order]
        for _ in range(seeded.randrange(4)):
            stream.insert(seeded.randrange(len(stream) + 1), seeded.choice(told))
        streams.append(stream)
    for batch in batches(streams, seeded):
        await project(view, batch)
    found = await contents(view)
    assert len(found) == 720
    [same] = set(found.values())
    await project(view, list(events_of(journey(appointment(9999))).values()))
    assert (await contents(view))[str(uuid.UUID(int=9999))] == same
    [row] = await rows(view, "SELECT * FROM my_reservations WHERE reservation_id = $1", uuid.UUID(int=1))
    assert (row["status"], row["quantity"], row["vaccine_code"]) == (Status.RESERVATION_STATUS_CANCELLED, 0, "")


async def test_the_rows_are_a_function_of_the_set_of_events_seen(view: Database, seeded: random.Random) -> None:
    number, expected, streams = itertools.count(1), {}, []
    for make in (journey, long_journey):
        names = list(make(appointment()))
        for size in range(1, len(names) + 1):
            for subset in itertools.combinations(names, size):
                group = []
                for _ in range(3):
                    told = events_of(make(appointment(n := next(number))))
                    stream = [told[name] for name in subset]
                    stream += seeded.choices(stream, k=2)
                    seeded.shuffle(stream)
                    streams.append(stream)
                    group.append(str(uuid.UUID(int=n)))
                expected[make.__name__, subset] = group
    for batch in batches(streams, seeded):
        await project(view, batch)
    found = await contents(view)
    for which, group in expected.items():
        assert len({found[key] for key in group}) == 1, which


async def test_a_doses_whole_life_ends_on_the_same_screen_in_whatever_order_and_however_often_it_is_told(
    view: Database, seeded: random.Random
) -> None:
    numbers, streams, expected = itertools.count(1), [], dict[str, my_reservation_pb2.MyReservation]()
    for _ in range(150):
        same = seeded.random()
        for _ in range(6):
            life = Life(appointment(next(numbers)), random.Random(same))
            stream = life.events + seeded.choices(life.events, k=seeded.randrange(4))
            seeded.shuffle(stream)
            streams.append(stream)
            expected[life.a.reservation_id] = life.shown()
    assert {shown.status for shown in expected.values()} == set(Status.values()) - {0, 2, 4}
    for batch in batches(streams, seeded):
        await project(view, batch)
    before = await contents(view)
    for reservation_id, shown in expected.items():
        assert await queries.one(view, "c1", uuid.UUID(reservation_id)) == shown
    stored = await rows(view, "SELECT reservation_id::text AS id, status FROM my_reservations")
    assert {row["id"]: row["status"] for row in stored} == {key: shown.status for key, shown in expected.items()}
    for batch in batches([seeded.sample(stream, len(stream)) for stream in streams], seeded):
        await project(view, batch)
    assert await contents(view) == before


async def test_arriving_at_the_counter_leaves_the_dose_on_the_screen(view: Database) -> None:
    told = events_of(long_journey(appointment()))
    arrived = event(vaccinemgmt.VaccinationCheckedIn(appointment=appointment(), version=4), 9)
    await project(view, [arrived, *told.values()])
    await project(view, [arrived])
    [shown], _ = await queries.page(view, "c1", None, 10)
    assert (shown.status, shown.lot_number) == (Status.RESERVATION_STATUS_COMPLETED, "L2")
    assert shown.timeline[-1].event == "VaccinationCheckedIn"


async def test_a_recall_takes_the_dose_away_and_the_screen_says_why(view: Database) -> None:
    told = events_of(long_journey(appointment()))
    recalled = vaccinemgmt.ReservationWaiting(
        appointment=appointment(),
        version=4,
        dose_change_reason=vaccination_pb2.DoseChangeReason.DOSE_CHANGE_REASON_LOT_RECALLED,
        note="particles were found",
    )
    await project(view, [*told.values(), event(recalled, 9)])
    [shown], _ = await queries.page(view, "c1", None, 10)
    assert (shown.status, shown.lot_number, shown.quantity) == (Status.RESERVATION_STATUS_APPROVED, "", 0)
    assert (shown.timeline[-1].reason, shown.timeline[-1].note) == ("LOT_RECALLED", "particles were found")
    again = vaccinemgmt.ReservationCompleted(appointment=appointment(), dose=DOSE, quantity=1, version=5)
    await project(view, [event(again, 10)])
    [shown], _ = await queries.page(view, "c1", None, 10)
    assert (shown.status, shown.lot_number) == (Status.RESERVATION_STATUS_COMPLETED, "L1")


async def test_a_place_that_is_free_again_does_not_tell_that_the_customer_cancelled(view: Database) -> None:
    a = appointment()
    await project(view, [event(journey(a)["granted"]), event(journey(a)["released"])])
    [shown], _ = await queries.page(view, "c1", None, 10)
    assert shown.status == Status.RESERVATION_STATUS_APPROVED
    await project(view, [event(vaccinemgmt.VaccinationMissed(appointment=a, version=2))])
    [shown], _ = await queries.page(view, "c1", None, 10)
    assert shown.status == Status.RESERVATION_STATUS_MISSED


async def test_a_screen_shows_the_dose_of_the_highest_version_and_the_furthest_status(view: Database) -> None:
    told = events_of(long_journey(appointment()))
    await project(view, [told["chosen"]])
    await project(view, [told["waiting"], told["granted"]])
    await project(view, [told["completed"], told["placed"]])
    [shown], _ = await queries.page(view, "c1", None, 10)
    assert (shown.lot_number, shown.vaccine_code, shown.quantity) == ("L2", "208", 1)
    assert (shown.production_date, shown.expiry_date) == ("2027-01-02", "2027-07-01")
    assert shown.status == Status.RESERVATION_STATUS_COMPLETED
    assert [entry.event for entry in shown.timeline] == [
        "ApprovalGranted",
        "ReservationPlaced",
        "ReservationWaiting",
        "ReservationCompleted",
        "ReservationCompleted",
    ]


async def test_a_rejected_request_shows_why(view: Database) -> None:
    a, reason = appointment(), appointment_pb2.DenialReason.DENIAL_REASON_DAY_FULL
    for message in (
        reservation.ReservationRejected(appointment=a, rejection_reason=reason),
        approval.ApprovalDenied(appointment=a, denial_reason=reason),
    ):
        await project(view, [event(message)])
        [shown], _ = await queries.page(view, "c1", None, 10)
        assert (shown.status, shown.rejection_reason) == (Status.RESERVATION_STATUS_REJECTED, reason)
        assert {entry.reason for entry in shown.timeline} == {"DAY_FULL"}


async def test_values_of_a_newer_version_are_shown_by_their_numbers(view: Database) -> None:
    newer: Any = 77  # a reason, a status and a number of doses that this version has no name for
    await project(view, [event(approval.ApprovalDenied(appointment=appointment(), denial_reason=newer))])
    await rows(view, "UPDATE my_reservations SET status = 77, quantity = 2")
    [shown], _ = await queries.page(view, "c1", None, 10)
    assert (shown.rejection_reason, shown.status, shown.quantity) == (newer, newer, 2)
    assert shown.timeline[0].reason == "77"
    as_json = json_format.MessageToDict(shown)
    assert (as_json["rejectionReason"], as_json["status"]) == (newer, newer)


async def test_reasons_of_a_newer_version_end_a_booking_and_change_a_dose_all_the_same(view: Database) -> None:
    newer: Any = 77
    a, b = appointment(1), appointment(2, seconds=1)
    await project(
        view,
        [
            event(approval.ApprovalRevoked(appointment=a, revocation_reason=newer)),
            event(vaccinemgmt.ReservationWaiting(appointment=b, version=1, dose_change_reason=newer)),
        ],
    )
    [waiting, revoked], _ = await queries.page(view, "c1", None, 10)
    assert (waiting.status, revoked.status) == (
        Status.RESERVATION_STATUS_APPROVED,
        Status.RESERVATION_STATUS_CANCELLED,
    )
    assert [shown.timeline[0].reason for shown in (waiting, revoked)] == ["77", "77"]


BY_0_3 = """
import asyncio, sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from services.chassis.events import Event
from services.chassis.postgres import Database
from services.mypage import projector

async def project(url, kind, payload):
    database = Database(url)
    await database.open(Path(projector.__file__).parent / "migrations")
    message = getattr(import_module("vaccination.vaccinemgmt.v1.vaccinemgmt_events_pb2"), kind)
    message = message.FromString(bytes.fromhex(payload))
    event = Event("e", message.appointment.reservation_id, kind, datetime.now(UTC), message)
    await projector.View(database).project([projector.entry(event)])
    await database.close()

asyncio.run(project(*sys.argv[1:]))
"""


async def test_what_the_version_before_makes_of_a_dose_taken_away_is_shown_as_it_is(
    view: Database, servers: Servers, tmp_path: Path
) -> None:
    release = extract("0.3.0", tmp_path / "0.3.0")
    [database] = await rows(view, "SELECT current_database() AS name")

    async def project_by_0_3(message: Any) -> None:
        """It knows the event, but not its reason, and no way back from COMPLETED."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", BY_0_3, servers.postgres_url(database["name"]),
            type(message).__name__, message.SerializeToString().hex(), cwd=release,
            env=os.environ | {"PYTHONPATH": str(release)},
        )  # fmt: skip
        assert await asyncio.wait_for(process.wait(), 60) == 0

    a, told = appointment(), events_of(journey(appointment()))
    recalled = vaccination_pb2.DoseChangeReason.DOSE_CHANGE_REASON_LOT_RECALLED
    await project(view, [told["granted"], told["completed"]])
    await project_by_0_3(vaccinemgmt.ReservationWaiting(appointment=a, version=2, dose_change_reason=recalled))
    for _ in range(2):
        [shown], _ = await queries.page(view, "c1", None, 10)
        assert (shown.status, shown.lot_number) == (Status.RESERVATION_STATUS_APPROVED, "")
        assert ("ReservationWaiting", "") in [(entry.event, entry.reason) for entry in shown.timeline]
        await project_by_0_3(told["completed"].message)  # once more
    again = vaccinemgmt.ReservationCompleted(appointment=a, dose=OTHER, quantity=1, version=3)
    await project(view, [event(again)])
    [shown], _ = await queries.page(view, "c1", None, 10)
    assert (shown.status, shown.lot_number) == (Status.RESERVATION_STATUS_COMPLETED, "L2")


async def test_a_persons_rows_may_go_when_bookings_have_ended_and_not_before_a_dose_is_back(
    view: Database, open_bus: OpenBus
) -> None:
    erase = erasure.eraser(view, await open_bus("mypage")).rows

    def of(customer: str, number: int) -> appointment_pb2.Appointment:
        a = appointment(number, customer)
        a.date = str(datetime.now(UTC).date() + timedelta(5))
        return a

    for number, kind in enumerate((vaccinemgmt.VaccinationMissed, vaccinemgmt.VaccinationUnserved), 1):
        await project(view, [event(kind(appointment=of("c1", number), version=2))])
    await project(view, [event(vaccinemgmt.VaccinationAdministered(appointment=of("c1", 3), version=2, dose=DOSE))])
    assert await erase("c1") == 3
    for reason in approval.RevocationReason.values()[1:]:
        a = of("c2", 10 + reason)
        await project(view, [event(approval.ApprovalRevoked(appointment=a, revocation_reason=reason))])
        assert await erase("c2") is None
        await project(view, [event(vaccinemgmt.CancellationCompleted(appointment=a, version=2))])
        assert await erase("c2") == 1
    await project(view, [event(vaccinemgmt.VaccinationCheckedIn(appointment=of("c3", 20), version=2))])
    assert await erase("c3") is None


async def test_two_replicas_that_project_the_same_events_at_once_do_not_block_each_other(
    view: Database, open_database: OpenDatabase, seeded: random.Random
) -> None:
    other = await open_database("mypage")
    told = [e for number in range(1, 61) for e in events_of(journey(appointment(number))).values()]
    shuffled = [seeded.sample(told, len(told)) for _ in range(4)]
    await asyncio.gather(*(project(view if i % 2 else other, events) for i, events in enumerate(shuffled)))
    assert len(set((await contents(view)).values())) == 1


async def test_ones_own_reservations_are_listed_newest_first_page_by_page(view: Database) -> None:
    mine = [appointment(n, seconds=n // 2) for n in range(1, 8)]
    await project(view, [event(journey(a)["granted"]) for a in [*mine, appointment(99, "c2")]])
    seen: list[my_reservation_pb2.MyReservation] = []
    position = None
    while True:
        page, position = await queries.page(view, "c1", position, 3)
        seen += page
        if position is None:
            break
    assert [r.reservation_id for r in seen] == [a.reservation_id for a in mine[::-1]]
    assert await queries.one(view, "c2", uuid.UUID(int=1)) is None
    found = await queries.one(view, "c1", uuid.UUID(int=1))
    assert found is not None
    assert found.hospital_name == "Han River Clinic"


@contextmanager
def running(work: Any) -> Iterator[asyncio.Task[None]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()


async def heard(changed: asyncio.Event) -> None:
    """Waits until the watcher is woken, and clears the event for the next time."""
    await asyncio.wait_for(changed.wait(), 10)
    changed.clear()


async def test_a_change_wakes_the_customers_watchers_in_every_replica_and_nobody_else(
    view: Database, open_database: OpenDatabase
) -> None:
    replicas = [Changes(view), Changes(await open_database("mypage"))]
    with (
        running(replicas[0].run()),
        running(replicas[1].run()),
        replicas[0].of("c1") as mine,
        replicas[1].of("c1") as mine_too,
        replicas[0].of("c2") as theirs,
    ):
        for changed in (mine, mine_too, theirs):
            await heard(changed)  # a watcher is also woken when listening begins, because it may have missed a change
        await project(view, [event(journey(appointment())["granted"])])
        await heard(mine)
        await heard(mine_too)
        assert not theirs.is_set()


async def listener(view: Database) -> int:
    """The id of the server's process for the connection that listens."""

    async def look() -> list[asyncpg.Record]:
        return await rows(
            view,
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query ~ '^(LISTEN|SELECT 1$)'",
        )

    [row] = await eventually(look, lambda found: len(found) == 1)
    return int(row["pid"])


async def test_watching_goes_on_after_the_listening_connection_was_lost(view: Database) -> None:
    changes = Changes(view)
    with running(changes.run()), changes.of("c1") as changed:
        await heard(changed)
        await rows(view, "SELECT pg_terminate_backend($1)", await listener(view))
        await project(view, [event(journey(appointment())["granted"])])  # while nobody listens
        await heard(changed)
        await listener(view)
        await project(view, [event(journey(appointment())["placed"])])
        await heard(changed)


async def test_a_listening_connection_that_keeps_quiet_for_ever_is_noticed(
    view: Database, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "STILL_THERE", 0.2)
    changes = Changes(view)
    writer = await open_database("mypage")
    with running(changes.run()), changes.of("c1") as changed:
        await heard(changed)
        pid = await listener(view)
        with frozen(pid):  # as after a cable was cut, the connection stays open and silent
            await project(writer, [event(journey(appointment())["granted"])])
            await heard(changed)  # it now listens on another connection
            await project(writer, [event(journey(appointment())["placed"])])
            await heard(changed)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stops a process of the tests' own Postgres for the time of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def token(valid_for: float = 2**31) -> tuple[tuple[str, str], ...]:
    """The claims of customer c1 as the gateway hands them on; the token ends in `valid_for` seconds."""
    claims = {"sub": "c1", "roles": ["customer"], "exp": time.time() + valid_for}
    return ((CLAIMS_HEADER, base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()),)


@asynccontextmanager
async def watching(
    view: Database, changes: Changes, valid_for: float = 2**31, options: Sequence[tuple[str, int]] = ()
) -> AsyncIterator[Any]:
    grpc_server = grpc.aio.server(interceptors=[Edge(server.ERRORS, max_calls=100, max_streams=100)])
    server.register(grpc_server, view, changes)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        stub = mypage_service_pb2_grpc.MypageServiceStub(channel)
        yield stub.WatchMyReservations(mypage_service_pb2.WatchMyReservationsRequest(), metadata=token(valid_for))
    await grpc_server.stop(None)


@pytest.fixture
def never_draining(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the process' event, which belongs to the event loop of an earlier test."""
    monkeypatch.setattr(server, "draining", asyncio.Event())


async def told(call: Any) -> dict[int, my_reservation_pb2.MyReservation]:
    """The next message of a watch, by the reservations' numbers."""
    message = await asyncio.wait_for(call.read(), 10)
    return {uuid.UUID(r.reservation_id).int: r for r in message.reservations}


async def test_a_watcher_gets_everything_then_each_change_and_an_end_without_error_when_the_replica_stops(
    view: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    draining = asyncio.Event()
    monkeypatch.setattr(server, "draining", draining)
    changes = Changes(view)
    first, second = appointment(1), appointment(2)
    await project(view, [event(journey(a)["granted"]) for a in (first, second)])
    with running(changes.run()), running(server.end_watches(changes)):
        async with watching(view, changes) as call:
            everything = await asyncio.wait_for(call.read(), 10)
            assert {r.reservation_id for r in everything.reservations} == {first.reservation_id, second.reservation_id}
            await project(view, [event(journey(second)["completed"])])
            [changed] = (await asyncio.wait_for(call.read(), 10)).reservations
            assert (changed.reservation_id, changed.lot_number) == (second.reservation_id, "L1")
            await rows(view, "SELECT pg_terminate_backend($1)", await listener(view))
            await project(view, [event(journey(first)["given up"])])
            [changed] = (await asyncio.wait_for(call.read(), 10)).reservations
            assert changed.status == Status.RESERVATION_STATUS_CANCEL_REQUESTED
            draining.set()
            assert await asyncio.wait_for(call.read(), 10) == grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK


@pytest.mark.usefixtures("never_draining")
async def test_a_watcher_who_leaves_is_forgotten(view: Database) -> None:
    changes, before = Changes(view), asyncio.all_tasks()
    async with watching(view, changes) as call:
        assert (await asyncio.wait_for(call.read(), 10)).reservations == []  # there is nothing yet
        await within(10, lambda: bool(changes._watchers))
        call.cancel()
        await within(10, lambda: not changes._watchers)
    # No task goes on waiting for changes that nobody will tell it of.
    await within(10, lambda: not [t for t in asyncio.all_tasks() - before if "Event.wait" in repr(t)])


@pytest.mark.usefixtures("never_draining")
async def test_one_customer_cannot_have_every_stream(view: Database) -> None:
    changes = Changes(view)
    with ExitStack() as open_screens:
        for _ in range(SCREENS - 1):
            open_screens.enter_context(changes.of("c1"))
        async with watching(view, changes) as call:
            assert (await asyncio.wait_for(call.read(), 10)).reservations == []
            with pytest.raises(TooManyScreens), changes.of("c1"):
                pass
            with changes.of("c2"):
                pass
    async with watching(view, changes) as call:
        assert (await asyncio.wait_for(call.read(), 10)).reservations == []


@pytest.mark.usefixtures("never_draining")
async def test_a_watcher_hears_of_every_reservation_that_changes_however_old_it_is(view: Database) -> None:
    mine = [appointment(n, seconds=n) for n in range(1, 501)]
    await project(view, [event(journey(a)["granted"]) for a in mine])
    changes = Changes(view)
    with running(changes.run()):
        async with watching(view, changes) as call:
            assert list(await told(call)) == list(range(500, 400, -1))
            await project(view, [event(journey(mine[0])["completed"])])
            changed = await told(call)
            assert {number: r.status for number, r in changed.items()} == {1: Status.RESERVATION_STATUS_COMPLETED}
            await project(view, [event(journey(a)["completed"]) for a in mine[:250]])
            changed = {}
            while len(changed) < 250:
                changed |= (page := await told(call))
                assert len(page) <= queries.WATCHED
            assert {r.status for r in changed.values()} == {Status.RESERVATION_STATUS_COMPLETED}


class Open:
    """A transaction of another writer (an older version, or an operator) that stays open."""

    def __init__(self, view: Database) -> None:
        self._view, self._end = view, asyncio.Event()

    async def __aenter__(self) -> "Open":
        begun = asyncio.Event()
        self._task = asyncio.create_task(self._run(begun))
        await asyncio.wait_for(begun.wait(), 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end.set()
        await self._task

    async def _run(self, begun: asyncio.Event) -> None:
        async with self._view.transaction() as connection:
            await connection.execute("CREATE TEMPORARY TABLE numbered (x integer) ON COMMIT DROP")  # takes a number
            async with connection.transaction():  # a savepoint's writes have numbers of their own
                await connection.execute(WRITE, uuid.UUID(int=1))
            begun.set()
            await self._end.wait()
            await connection.execute("SELECT pg_notify('my_reservations', 'c1')")


WRITE = "UPDATE my_reservations SET hospital_name = 'Another Name' WHERE reservation_id = $1"


async def news(watch: Watch) -> list[int]:
    """The numbers of the reservations that a watcher is told of now."""
    return [uuid.UUID(r.reservation_id).int async for message in watch.news() for r in message]


async def test_a_change_that_commits_after_a_later_one_is_told_too_and_no_change_is_told_twice(view: Database) -> None:
    await project(view, [event(journey(appointment(n, seconds=n))["granted"]) for n in (1, 2, 3)])
    watch = Watch(view, "c1")
    assert await news(watch) == [3, 2, 1]
    async with Open(view):
        await rows(view, WRITE, uuid.UUID(int=2))
        assert await news(watch) == [2]
        await rows(view, WRITE, uuid.UUID(int=3))
        assert await news(watch) == [3]
        assert await news(watch) == []
    assert await news(watch) == [1]
    assert await news(watch) == []


async def test_a_watch_misses_no_commit_of_many_at_once(
    view: Database, open_database: OpenDatabase, seeded: random.Random
) -> None:
    writers = [view, await open_database("mypage")]
    journeys = [events_of(long_journey(appointment(n, seconds=n))) for n in range(1, 61)]
    told = [e for stream in journeys for e in stream.values()]
    seeded.shuffle(told)
    watch, screen = Watch(await open_database("mypage"), "c1"), dict[str, my_reservation_pb2.MyReservation]()

    async def write(writer: Database, events: Sequence[Event]) -> None:
        for one in events:
            await project(writer, [one])

    async def look() -> None:
        async for message in watch.news():
            screen.update({r.reservation_id: r for r in message})

    writing = [asyncio.create_task(write(writers[i % 2], told[i::8])) for i in range(8)]
    while not all(task.done() for task in writing):
        await look()
    await asyncio.gather(*writing)
    await look()
    shown, _ = await queries.page(view, "c1", None, 100)
    assert screen == {r.reservation_id: r for r in shown}


async def test_a_watch_tells_everything_again_when_transaction_numbers_may_have_started_again(view: Database) -> None:
    await project(view, [event(journey(appointment(n, seconds=n))["granted"]) for n in range(1, 151)])
    assert await news(Watch(view, "c1", since=Position("another server's", 2**40))) == list(range(150, 0, -1))
    assert await news(watch := Watch(view, "c2")) == []
    assert await news(watch) == []


async def test_a_watcher_that_does_not_read_for_a_while_is_told_only_the_latest_state(view: Database) -> None:
    watch = Watch(view, "c1")
    assert await news(watch) == []
    for told in events_of(long_journey(appointment())).values():
        await project(view, [told])
    [[shown]] = [message async for message in watch.news()]
    assert (shown.lot_number, len(shown.timeline)) == ("L2", 5)


@pytest.mark.usefixtures("never_draining")
async def test_nothing_piles_up_for_a_watcher_that_does_not_read(view: Database) -> None:
    mine = [appointment(n, seconds=n) for n in range(1, queries.WATCHED + 1)]
    changes, rounds = Changes(view), 25
    # A client that receives and does not read may have as large a buffer of its own as it likes. This one has none.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    with running(changes.run()):
        async with watching(view, changes, options=options) as call:
            assert await told(call) == {}
            for version in range(1, rounds + 1):  # each is a message of 30 to 180 kB
                told_of = [
                    vaccinemgmt.ReservationCompleted(appointment=a, dose=DOSE, quantity=1, version=version)
                    for a in mine
                ]
                await project(view, list(map(event, told_of)))
            lengths = [0]
            while lengths[-1] < rounds:
                lengths.append(max(len(r.timeline) for r in (await told(call)).values()))
            assert len(lengths) < 10, lengths


@pytest.mark.usefixtures("never_draining")
async def test_watches_that_all_look_at_once_leave_connections_to_the_others(view: Database) -> None:
    changes = Changes(view)
    async with AsyncExitStack() as looking:
        for _ in range(queries.LOOKS):
            await looking.enter_async_context(changes.turn)
        async with watching(view, changes) as call:
            first = asyncio.create_task(told(call))
            await within(10, lambda: bool(changes._watchers))
            assert await queries.page(view, "c1", None, 1) == ([], None)
            assert not first.done()
            await looking.aclose()
            assert await first == {}


@pytest.mark.usefixtures("never_draining")
async def test_a_watch_ends_when_its_token_does(view: Database) -> None:
    changes = Changes(view)
    async with watching(view, changes, valid_for=0.5 - CLOCK_SKEW) as call:
        assert await told(call) == {}
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await asyncio.wait_for(call.read(), 10)
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
    status = status_of(ended.value)
    assert status is not None
    reason = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(reason)
    assert (reason.domain, reason.reason) == ("vaccination.edge", "TOKEN_INVALID")
    assert not changes._watchers
