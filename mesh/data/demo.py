"""The demo, `./dev demo`: a clinic with two places a day, one who cancels, one who is vaccinated, one who does not
come, and a lot that is recalled.

It may be repeated on the same data: each run has its own customers and request ids and, if needed, its own day.
"""

import asyncio
import secrets
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import grpc
from rich.console import Console
from rich.table import Table

from mesh import ROOT
from mesh.data import importer
from mesh.machine import Mesh, Report, identity
from mesh.machine.processes import MeshError
from vaccination.approval.v1 import appointment_pb2, hospital_pb2
from vaccination.approval.v1 import hospital_service_pb2 as hospitals
from vaccination.approval.v1.hospital_service_pb2_grpc import HospitalServiceStub
from vaccination.mypage.v1 import mypage_service_pb2 as mypage
from vaccination.mypage.v1.my_reservation_pb2 import MyReservation
from vaccination.mypage.v1.mypage_service_pb2_grpc import MypageServiceStub
from vaccination.reservation.v1 import reservation_pb2
from vaccination.reservation.v1 import reservation_service_pb2 as reservations
from vaccination.reservation.v1.reservation_service_pb2_grpc import ReservationServiceStub
from vaccination.vaccinemgmt.v1 import counter_service_pb2 as counter
from vaccination.vaccinemgmt.v1 import lot_pb2
from vaccination.vaccinemgmt.v1 import recall_service_pb2 as recalls
from vaccination.vaccinemgmt.v1 import vaccinemgmt_service_pb2 as vaccines
from vaccination.vaccinemgmt.v1.counter_service_pb2_grpc import CounterServiceStub
from vaccination.vaccinemgmt.v1.recall_service_pb2_grpc import RecallServiceStub
from vaccination.vaccinemgmt.v1.vaccinemgmt_service_pb2_grpc import VaccinemgmtServiceStub

# The clinic of mesh/data with two places a day, and another one for those who find it full.
SMALL, LARGE = "jeju-aewol", "seoul-mapo"
TIME_ZONE = ZoneInfo("Asia/Seoul")  # the clinics'
DATA = ROOT / "mesh" / "data"
PATIENCE = 30.0  # seconds for each step, which takes milliseconds on an idle machine
COLOURS = {
    "APPROVED": "yellow", "COMPLETED": "green", "REJECTED": "red", "CANCELLED": "magenta",
    "ADMINISTERED": "bold green", "MISSED": "magenta",
}  # fmt: skip
Metadata = tuple[tuple[str, str], ...]
Status = reservation_pb2.ReservationStatus


def _status(value: "Status.ValueType") -> str:
    name = Status.Name(value).removeprefix("RESERVATION_STATUS_")
    return f"[{COLOURS.get(name, 'cyan')}]{name}[/]"


class Demo:
    """One run of the demo."""

    def __init__(self, mesh: Mesh, console: Console, channel: grpc.aio.Channel) -> None:
        self.mesh, self.console = mesh, console
        self.run = secrets.token_hex(2)
        self.hospitals = HospitalServiceStub(channel)
        self.reservations = ReservationServiceStub(channel)
        self.vaccines = VaccinemgmtServiceStub(channel)
        self.counter = CounterServiceStub(channel)
        self.recalls = RecallServiceStub(channel)
        self.mypage = MypageServiceStub(channel)
        self.operator = self._metadata("operator", "operator")
        self.other_day = ""
        # By reservation: who asked and when, and what MyPage has shown since, each with its time.
        self.asked: dict[str, tuple[str, float]] = {}
        self.screens: dict[str, list[tuple[MyReservation, float]]] = defaultdict(list)
        self.changed = asyncio.Condition()

    def _metadata(self, subject: str, role: str) -> Metadata:
        return (("authorization", f"Bearer {identity.token(self.mesh.home.path, subject=subject, roles=[role])}"),)

    def _customer(self, name: str) -> Metadata:
        return self._metadata(f"{name.lower()}-{self.run}", "customer")

    async def _staff(self, call: Any, request: Any) -> Any:
        """A call that the clinic's manager or an operator makes."""
        return await call(request, metadata=self.operator, timeout=PATIENCE)

    def say(self, headline: str) -> None:
        """Prints a heading."""
        self.console.print(f"\n[bold]{headline}[/]")

    async def journey(self) -> None:
        """Everything, from an empty day to doses in arms, and to one that nobody may be given."""
        names = ("Minji", "Joon", "Sora", "Hana", "Yuna", "Dohun")
        followers = [asyncio.create_task(self._follow(name)) for name in names]
        try:
            joon = await self._booking()
            await self._at_the_counter()
            await self._recall(joon)
        finally:
            for follower in followers:
                follower.cancel()
            await asyncio.wait(followers)

    async def _booking(self) -> str:
        """Places and doses; returns Joon's reservation, which still has its dose."""
        day, left = await self._day_with_two_places()
        await self._enough_doses()
        self.say(f"{left} places are left at {SMALL} on {day}. Its stock:")
        await self._show_lots()

        self.say("Minji and Joon book there, Sora comes too late, Hana books elsewhere")
        request_id = str(uuid.uuid4())
        minji = await self._book("Minji", SMALL, day, request_id)
        joon = await self._book("Joon", SMALL, day)
        await self._book("Sora", SMALL, day)
        self.other_day = await self._first_day(LARGE)
        hana = await self._book("Hana", LARGE, self.other_day)

        self.say("Minji's answer was lost on the way: her client repeats the request with the same request_id")
        again = await self._book("Minji", SMALL, day, request_id)
        assert again == minji, "a repeated request made another reservation"
        self.console.print(f"  the same reservation, {minji}")

        self.say("Each of them watches MyPage; what it said since they asked:")
        done = Status.RESERVATION_STATUS_COMPLETED
        self._show_screens([await self._reached(each, done) for each in (minji, joon, hana)])
        await self._show_lots()

        self.say("Minji cancels: her dose goes back to its lot, her place to the day")
        cancel = reservations.CancelReservationRequest(reservation_id=minji)
        self.asked[minji] = ("Minji", time.perf_counter())
        await self.reservations.CancelReservation(cancel, metadata=self._customer("Minji"), timeout=PATIENCE)
        self._show_screens([await self._reached(minji, Status.RESERVATION_STATUS_CANCELLED)])
        await self._show_lots()

        self.say("So there is a place for Sora after all (a new intent: a new request_id)")
        await self._until_free(day)
        self._show_screens([await self._reached(await self._book("Sora", SMALL, day), done)])
        await self._show_lots()
        return joon

    async def _at_the_counter(self) -> None:
        """The day itself. The counter takes nobody whose appointment is on another day, so these are for today."""
        today = str(datetime.now(TIME_ZONE).date())
        await self._enough_doses()
        request = hospitals.ListAvailabilityRequest(hospital_id=SMALL, first_date=today, last_date=today)
        days = (await self._staff(self.hospitals.ListAvailability, request)).days
        await self._set_places(today, sum(day.approved for day in days) + 2)
        self.say("Yuna and Dohun book for today. Yuna comes and is vaccinated; Dohun does not come")
        yuna, dohun = [await self._book(name, SMALL, today) for name in ("Yuna", "Dohun")]
        for each in (yuna, dohun):
            await self._reached(each, Status.RESERVATION_STATUS_COMPLETED)
        await self._staff(self.counter.CheckIn, counter.CheckInRequest(reservation_id=yuna))
        await self._staff(self.counter.Administer, counter.AdministerRequest(reservation_id=yuna))
        await self._staff(self.counter.MarkMissed, counter.MarkMissedRequest(reservation_id=dohun))
        ends = [(yuna, Status.RESERVATION_STATUS_ADMINISTERED), (dohun, Status.RESERVATION_STATUS_MISSED)]
        self._show_screens([await self._reached(*end) for end in ends])
        await self._show_lots()

    async def _recall(self, reservation_id: str) -> None:
        """A customer's lot is withdrawn, and the customer gets a dose of another one."""
        bad = await self._deliver(f"RC-{self.run}", 20)
        choice = vaccines.AssignLotRequest(reservation_id=reservation_id, lot_id=bad.lot_id)
        await self._staff(self.vaccines.AssignLot, choice)
        await self._shown(reservation_id, lambda screen: screen.lot_number == bad.lot_number, f"lot {bad.lot_number}")

        self.say(f"Joon has a dose of lot {bad.lot_number}, which the authority recalls")
        request = recalls.RecallLotRequest(
            vaccine_code=bad.vaccine_code, manufacturer=bad.manufacturer, lot_number=bad.lot_number,
            hospital_id=SMALL, note="particles were found in several vials",
        )  # fmt: skip
        recall_id = (await self._staff(self.recalls.RecallLot, request)).recall.recall_id
        screen = await self._shown(
            reservation_id,
            lambda screen: any(entry.reason == "LOT_RECALLED" for entry in screen.timeline),
            "the recall",
        )
        recall = (await self._staff(self.recalls.GetRecall, recalls.GetRecallRequest(recall_id=recall_id))).recall
        self.console.print(
            f"  {recall.written_off} doses written off, {recall.reassigned} booking with a dose of another lot, "
            f"{recall.waiting} waiting, {recall.administered} given before"
        )
        told = next(entry for entry in reversed(screen.timeline) if entry.reason)
        self.console.print(f"  Joon is told {told.reason}: {told.note}")
        self._show_screens([screen])
        await self._show_lots()

    async def _availability(self, hospital: str) -> list[hospital_pb2.DayAvailability]:
        tomorrow = date.today() + timedelta(days=1)
        request = hospitals.ListAvailabilityRequest(
            hospital_id=hospital, first_date=str(tomorrow), last_date=str(tomorrow + timedelta(days=60))
        )
        answer = await self._staff(self.hospitals.ListAvailability, request)
        return list(answer.days)

    async def _day_with_two_places(self) -> tuple[str, int]:
        days = await self._availability(SMALL)
        for day in days:
            if day.left == 2:
                return day.date, 2
        # Earlier runs have filled every day, so the clinic opens two more places on one of them.
        last = days[-1] if days else hospital_pb2.DayAvailability(date=str(date.today() + timedelta(days=1)))
        await self._set_places(last.date, last.approved + 2)
        return last.date, 2

    async def _set_places(self, day: str, places: int) -> None:
        request = hospitals.SetDailyCapacityRequest(hospital_id=SMALL, first_date=day, last_date=day, capacity=places)
        await self._staff(self.hospitals.SetDailyCapacity, request)

    async def _first_day(self, hospital: str) -> str:
        return next((day.date for day in await self._availability(hospital) if day.left), str(date.today()))

    async def _until_free(self, wanted: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not any(day.date == wanted and day.left for day in await self._availability(SMALL)):
            if time.monotonic() > deadline:
                raise MeshError(f"the place at {SMALL} on {wanted} was not given back within {PATIENCE:.0f} s")
            await asyncio.sleep(0.02)

    async def _lots(self) -> list[lot_pb2.Lot]:
        request = vaccines.ListLotsRequest(hospital_id=SMALL)
        return list((await self._staff(self.vaccines.ListLots, request)).lots)

    async def _enough_doses(self) -> None:
        if sum(lot.free for lot in await self._lots()) < 3:
            await self._deliver(f"AW-{self.run}", 50)

    async def _deliver(self, lot_number: str, quantity: int) -> lot_pb2.Lot:
        """Doses of any lot arrive at the small clinic; each delivery has an id of its own and adds to its lot."""
        today = datetime.now(TIME_ZONE).date()
        delivery = lot_pb2.Delivery(
            lot_number=lot_number, vaccine_code="208", manufacturer="PFR", quantity=quantity,
            production_date=str(today), expiry_date=str(today + timedelta(days=180)), delivery_id=str(uuid.uuid4()),
        )  # fmt: skip
        request = vaccines.RegisterLotsRequest(hospital_id=SMALL, deliveries=[delivery])
        lot: lot_pb2.Lot = (await self._staff(self.vaccines.RegisterLots, request)).lots[0]
        return lot

    async def _book(self, name: str, hospital: str, day: str, request_id: str = "") -> str:
        request = reservations.CreateReservationRequest(
            request_id=request_id or str(uuid.uuid4()), hospital_id=hospital, date=day
        )
        begin = time.perf_counter()
        answer = await self.reservations.CreateReservation(request, metadata=self._customer(name), timeout=PATIENCE)
        took, booked = (time.perf_counter() - begin) * 1000, answer.reservation
        line = f"  {name:<6} {hospital:<12} {day}  {_status(booked.status)}"
        if booked.rejection_reason:
            reason = appointment_pb2.DenialReason.Name(booked.rejection_reason)
            line += f" {reason.removeprefix('DENIAL_REASON_')}"
        self.console.print(f"{line}  [dim]{took:.0f} ms[/]")
        self.asked.setdefault(booked.reservation_id, (name, begin))
        return booked.reservation_id

    async def _follow(self, name: str) -> None:
        """Watches MyPage, as the customer's browser would."""
        request = mypage.WatchMyReservationsRequest()
        async for answer in self.mypage.WatchMyReservations(request, metadata=self._customer(name)):
            async with self.changed:
                for screen in answer.reservations:
                    self.screens[screen.reservation_id].append((screen, time.perf_counter()))
                self.changed.notify_all()

    async def _reached(self, reservation_id: str, wanted: "Status.ValueType") -> MyReservation:
        """Waits until MyPage shows the status, and prints the statuses that it showed before."""
        reached = await self._shown(reservation_id, lambda screen: screen.status == wanted, Status.Name(wanted))
        name, asked = self.asked[reservation_id]
        steps: dict[str, str] = {}  # each status once, since several events may leave the status as it is
        for screen, at in self.screens[reservation_id]:
            if at > asked:
                status = _status(screen.status)
                steps.setdefault(status, f"{status} [dim]{(at - asked) * 1000:.0f} ms[/]")
        self.console.print(f"  {name:<6} {' → '.join(steps.values())}")
        return reached

    async def _shown(self, reservation_id: str, is_so: Callable[[MyReservation], bool], what: str) -> MyReservation:
        """Waits until MyPage shows a reservation as it shall be, and returns it."""
        screens = self.screens[reservation_id]
        try:
            async with self.changed, asyncio.timeout(PATIENCE):
                await self.changed.wait_for(lambda: screens and is_so(screens[-1][0]))
        except TimeoutError:
            raise MeshError(f"MyPage did not show {what} within {PATIENCE:.0f} s") from None
        return screens[-1][0]

    def _show_screens(self, screens: list[MyReservation]) -> None:
        table = Table(
            "MyPage", "status", "hospital", "day", "CVX", "made by", "lot", "produced", "use by", "doses", box=None
        )
        for s in screens:
            cells = (
                s.hospital_id,
                s.date,
                s.vaccine_code,
                s.manufacturer,
                s.lot_number,
                s.production_date,
                s.expiry_date,
            )
            table.add_row(f"  {self.asked[s.reservation_id][0]}", _status(s.status), *cells, str(s.quantity))
        self.console.print(table)

    async def _show_lots(self) -> None:
        table = Table("Lots", "CVX", "use by", "received", "free", "reserved", "given", "written off", box=None)
        for lot in await self._lots():
            doses = (lot.reserved, lot.administered, lot.written_off)
            numbers = (str(lot.received), f"[bold]{lot.free}[/]", *map(str, doses))
            table.add_row(f"  {lot.lot_number}", lot.vaccine_code, lot.expiry_date, *numbers)
        self.console.print(table)

    async def is_imported(self) -> bool:
        """Whether an earlier run has imported. Another import would move the lots' dates, which is refused."""
        return bool(await self._lots())


def run(mesh: Mesh, console: Console, report: Report, *, stop: bool) -> int:
    """Starts the mesh, shows the journey, and stops the mesh again if asked to. Returns the exit code."""
    if not console.is_terminal:
        console.width = 110  # a pipe has no width; the tables need this much
    begin = time.monotonic()
    console.print("[bold]Starting the mesh[/]")
    with console.status("starting"):
        mesh.up(report=report)

    async def show() -> int:
        async with mesh.connect_aio() as channel:
            demo = Demo(mesh, console, channel)
            if await demo.is_imported():
                demo.say(f"The clinics and lots of {DATA.relative_to(ROOT)} are there already")
            else:
                demo.say(f"Importing the clinics and lots of {DATA.relative_to(ROOT)}")
                operator = identity.token(mesh.home.path, subject="operator", roles=["operator"])
                tomorrow = date.today() + timedelta(days=1)
                code = await asyncio.to_thread(importer.run, DATA, mesh.connect_aio, operator, tomorrow)
                if code:
                    return code
            await demo.journey()
            if not stop:
                console.print("\nIt keeps running.", mesh.how_to_call(LARGE, demo.other_day), soft_wrap=True)
            return 0

    try:
        code = asyncio.run(show())
    except grpc.RpcError as error:
        raise MeshError(f"{error.code().name}: {error.details()}") from error
    finally:
        if stop:
            console.print("\n[bold]Stopping the mesh[/]")
            mesh.down(report)
    console.print(f"[dim]{time.monotonic() - begin:.0f} s in all[/]")
    return code
