"""What the vaccine manager sees and does at the counter, on a tablet and on a phone."""

import asyncio
import re
import struct
import uuid
from dataclasses import dataclass
from datetime import date, timedelta

import pytest
import pytest_asyncio
from playwright.async_api import Locator, Route, expect

from tests.e2e.conftest import Client, Status, World, delivery, eventually, zone_at_noon
from vaccination.vaccinemgmt.v1 import lot_pb2, vaccinemgmt_service_pb2

from .conftest import Opens
from .person import PHONE, TABLET, Person

COMPLETED = Status.RESERVATION_STATUS_COMPLETED


@dataclass
class Counter:
    """A hospital on a day for which there are bookings, and its manager at the page."""

    world: World
    hospital: str
    today: date
    person: Person

    async def booked(self, status: int = COMPLETED) -> tuple[Client, str]:
        """A new customer with a booking of today; its reservation's id."""
        customer = self.world.customer()
        reservation_id = (await customer.book(self.hospital, self.today)).reservation_id
        await customer.reaches(reservation_id, status)
        manager = self.world.manager(self.hospital)  # who is APPROVED may not be known to vaccine management yet
        await eventually(
            lambda: manager.of_day(self.hospital, self.today),
            lambda day: any(one.reservation_id == reservation_id for one in day),
        )
        return customer, reservation_id

    def row(self, reservation_id: str) -> Locator:
        """A booking's row in the day's list."""
        return self.person.page.locator(f'tr[data-reservation="{reservation_id}"]')

    async def refresh(self) -> None:
        """Reads the screen's list again."""
        await self.person.press("Refresh")

    async def open_lot(self, lot_number: str) -> None:
        """To the screen of a lot."""
        await self.person.follow("Lots")
        await self.person.follow(lot_number)
        await expect(self.person.page.locator(".tally")).to_be_visible()

    async def tally(self, **doses: int) -> None:
        """Waits until the lot's screen shows these numbers."""
        for name, count in doses.items():
            shown = self.person.page.locator(f".tally .{name.replace('written_off', 'writtenOff')} dd")
            await expect(shown).to_have_text(str(count))


@pytest_asyncio.fixture(loop_scope="session")
async def counter(world: World, opens: Opens) -> Counter:
    """A hospital with twenty places and ten doses today."""
    hospital, today = await world.new_hospital(capacity=20, doses=10, days_ahead=0, time_zone=zone_at_noon())
    person = await opens(size=TABLET)
    await person.sign_in(manager=hospital)
    await person.see("There are no bookings on this day.")
    return Counter(world, hospital, today, person)


async def test_a_manager_finds_checks_in_and_vaccinates_those_who_come_and_records_who_did_not(
    counter: Counter,
) -> None:
    person = counter.person
    (comes, first), (late, second) = await counter.booked(), await counter.booked()
    await counter.refresh()
    await expect(person.page.locator("tbody tr")).to_have_count(2)
    await person.page.get_by_label("Customer, reservation or lot").fill(first[:8])
    await expect(person.page.locator("tbody tr")).to_have_count(1)
    row = counter.row(first)
    await row.get_by_role("button", name="Check in").click()
    await expect(row).to_contain_text("arrived")
    await row.get_by_role("button", name="Record the dose").click()
    await person.see(re.compile(r"given 0 → 1"), "dialog .effects")
    await person.confirm()
    await expect(row).not_to_contain_text("arrived")
    await comes.reaches(first, Status.RESERVATION_STATUS_ADMINISTERED)

    await person.page.get_by_label("Customer, reservation or lot").fill("")
    await counter.row(second).get_by_role("button", name="Did not come").click()
    await person.see(re.compile(r"free \d+ → \d+"), "dialog .effects")
    await person.confirm()
    await expect(person.page.get_by_role("button", name=re.compile("^All"))).to_contain_text("2")
    await expect(counter.row(second)).to_contain_text("missed")
    await late.reaches(second, Status.RESERVATION_STATUS_MISSED)

    await counter.row(second).get_by_role("button", name="Record the dose").click()  # they came after all
    await person.dialog.get_by_label("Choose a lot").select_option(index=1)
    await person.see(re.compile(r"given 1 → 2"), "dialog .effects")
    await person.confirm()
    await late.reaches(second, Status.RESERVATION_STATUS_ADMINISTERED)


async def test_a_dose_of_another_lot_is_recorded_by_its_scanned_code(counter: Counter) -> None:
    person = counter.person
    _, booking = await counter.booked()
    other = f"SCAN-{uuid.uuid4().hex[:6].upper()}"
    await counter.world.manager(counter.hospital).register(counter.hospital, delivery(1, lot_number=other))
    await person.page.reload()
    await counter.row(booking).get_by_role("button", name="Record the dose").click()
    await person.page.get_by_label("Another lot").check()
    await person.page.get_by_label("Lot", exact=True).fill("NO-SUCH-LOT")
    await person.see("There is no lot “NO-SUCH-LOT” here.", "dialog")
    await expect(person.dialog.locator("button[type=submit]")).to_be_disabled()
    await person.page.get_by_label("Lot", exact=True).fill(f"]d201088065000000001728011010{other}")
    await person.see(f"Lot {other}: given 0 → 1", "dialog .effects")
    await person.confirm()
    await expect(counter.row(booking)).to_contain_text(other)


async def test_a_customer_of_another_day_is_found(counter: Counter) -> None:
    person, world = counter.person, counter.world
    tomorrow = counter.today + timedelta(days=1)
    await world.operator.set_capacity(counter.hospital, tomorrow, 1)
    name = f"early-{uuid.uuid4().hex[:6]}"
    booked = await world.client(name, ["customer"]).book(counter.hospital, tomorrow)
    await world.client(name, ["customer"]).reaches(booked.reservation_id, COMPLETED)
    await person.page.get_by_label("Customer, reservation or lot").fill(name)
    await person.press(f"Look for customer “{name}” on other days")
    await person.dialog.get_by_role("button", name="Open").click()
    await expect(counter.row(booked.reservation_id)).to_be_visible()
    await expect(person.page).to_have_url(re.compile(f"day={tomorrow}"))
    await person.page.go_back()
    await person.see(re.compile("^Today, "))


async def test_a_delivery_serves_those_who_wait_and_the_same_note_is_taken_once(world: World, opens: Opens) -> None:
    hospital, today = await world.new_hospital(capacity=5, days_ahead=0, time_zone=zone_at_noon())
    person = await opens(size=TABLET)
    await person.sign_in(manager=hospital)
    counter = Counter(world, hospital, today, person)
    waits, booking = await counter.booked(Status.RESERVATION_STATUS_APPROVED)
    await person.follow("Waiting")
    await expect(person.page.locator("tbody tr")).to_have_count(1)
    await person.follow("Lots")
    for taken in ("4 doses taken into stock.", "This delivery was taken before. Nothing has changed."):
        await person.press("Take a delivery")
        for label, value in {
            "Lot": "N-1", "Delivery note": "DN-77", "Vaccine": "208", "Manufacturer": "PFR",
            "Produced": str(today - timedelta(days=60)), "Use by": str(today + timedelta(days=300)), "How many": "4",
        }.items():  # fmt: skip
            await person.dialog.get_by_label(label, exact=True).fill(value)
        await person.see("Customers who wait for a dose get theirs at once.", "dialog .effects")
        await person.confirm()
        await person.see(taken)
    await waits.reaches(booking, COMPLETED)
    await person.follow("Waiting")
    await person.see("Nobody is waiting for a dose.")


async def test_a_lot_is_assigned_from_the_waiting_list_also_when_stock_came_since_it_was_read(
    world: World, opens: Opens
) -> None:
    """Who waits gets a dose by itself as soon as one fits. A manager who has the list from before can still choose."""
    hospital, today = await world.new_hospital(capacity=5, days_ahead=0, time_zone=zone_at_noon())
    person = await opens(size=TABLET)
    counter = Counter(world, hospital, today, person)
    customer, booking = await counter.booked(Status.RESERVATION_STATUS_APPROVED)
    await person.sign_in(manager=hospital)
    await person.see("waits for a dose", "tbody")
    delivered = asyncio.Event()

    async def once_delivered(route: Route) -> None:
        await delivered.wait()
        await route.continue_()

    await person.page.route("**/ListLots", once_delivered, times=1)
    await person.follow("Waiting")
    await expect(person.page.locator("tbody tr")).to_have_count(1)
    chosen = delivery(2, lot_number="CHOSEN-1", expiry_date=str(today + timedelta(days=400)))
    await world.manager(hospital).register(hospital, delivery(1), chosen)
    shown = await customer.reaches(booking, COMPLETED)
    assert shown.lot_number != "CHOSEN-1", "the dose that expires first is set aside"
    delivered.set()
    await person.press("Assign a lot")
    await person.dialog.get_by_label("CHOSEN-1").check()
    await person.see("Lot CHOSEN-1: free 2 → 1", "dialog .effects")
    await person.confirm()
    await person.see("Nobody is waiting for a dose.")
    await eventually(customer.screen, lambda screen: screen[0].lot_number == "CHOSEN-1")


async def test_no_lot_can_be_assigned_that_does_not_suit_who_waits(world: World, opens: Opens) -> None:
    hospital, today = await world.new_hospital(capacity=5, days_ahead=0, time_zone=zone_at_noon())
    person = await opens(size=TABLET)
    counter = Counter(world, hospital, today, person)
    customer, booking = await counter.booked(Status.RESERVATION_STATUS_APPROVED)
    await person.sign_in(manager=hospital)
    await person.follow("Waiting")
    await person.press("Assign a lot")
    await person.see("No lot suits this booking.", "dialog")
    await expect(person.dialog.locator("button[type=submit]")).to_be_disabled()
    await person.page.keyboard.press("Escape")
    await expect(person.dialog).to_have_count(0)
    await world.manager(hospital).register(hospital, delivery(1))
    await customer.reaches(booking, COMPLETED)


async def test_doses_are_written_off_counted_anew_and_recalled_each_as_was_said_before(counter: Counter) -> None:
    person, world = counter.person, counter.world
    [lot] = await world.operator.lots(counter.hospital)
    had, given = await counter.booked()
    await world.manager(counter.hospital).administer(given)
    waits, booking = await counter.booked()
    await counter.open_lot(lot.lot_number)
    await counter.tally(free=8, reserved=1, administered=1, written_off=0, received=10)

    await person.press("Write off")
    await person.dialog.get_by_label("How many").fill("2")
    await person.see(f"Lot {lot.lot_number}: free 8 → 6", "dialog .effects")
    await person.confirm()
    await counter.tally(free=6, written_off=2)

    await person.press("Correct")
    await person.dialog.get_by_label("Doses received in all").fill("9")
    await person.dialog.get_by_label("Reason").fill("counted anew")
    await person.see("Received 10 → 9", "dialog .effects")
    await person.confirm()
    await counter.tally(free=5, received=9)

    await person.press("Recall")
    await person.see("5 free doses are written off. 1 booking gets another dose", "dialog .effects")
    await expect(person.dialog.locator("button[type=submit]")).to_be_disabled()
    await person.dialog.get_by_label("What customers are told").fill("The cold chain was interrupted.")
    await person.confirm()
    await person.see("“The cold chain was interrupted.”", ".notice.bad")
    await counter.tally(free=0, reserved=0, administered=1, written_off=8)
    await person.page.reload()  # what the recall has done is still told
    await person.see(re.compile("^8 written off"))
    await person.page.get_by_role("button", name=re.compile(r"Who had a dose \(1\)")).click()
    await expect(person.page.locator(".notice.bad tbody tr")).to_contain_text(given)
    shown = await waits.reaches(booking, Status.RESERVATION_STATUS_APPROVED)
    assert shown.timeline[-1].note == "The cold chain was interrupted."
    assert (await had.screen())[0].status == Status.RESERVATION_STATUS_ADMINISTERED
    await expect(person.page.locator("tbody").last.locator("tr").first).to_be_visible()  # the ledger


async def test_a_recall_that_is_over_before_its_progress_is_read_is_shown_as_it_ended(counter: Counter) -> None:
    person, world = counter.person, counter.world
    [lot] = await world.operator.lots(counter.hospital)
    await counter.booked()
    await counter.open_lot(lot.lot_number)
    await counter.tally(free=9, reserved=1)

    async def once_over() -> lot_pb2.Lot:
        [over] = await eventually(
            lambda: world.operator.lots(counter.hospital), lambda lots: bool(lots[0].withdrawn) and not lots[0].reserved
        )
        return over

    async def as_it_was_in_the_middle(route: Route) -> None:
        middle = lot_pb2.Lot()
        middle.CopyFrom(await once_over())
        middle.reserved, middle.written_off = 1, 9
        message = vaccinemgmt_service_pb2.ListLotsResponse(lots=[middle]).SerializeToString()
        frames = [struct.pack(">BI", kind, len(part)) + part for kind, part in ((0, message), (128, b"grpc-status:0"))]
        await route.fulfill(headers={"content-type": "application/grpc-web+proto"}, body=b"".join(frames))

    async def when_it_is_over(route: Route) -> None:
        await once_over()
        await route.continue_()

    await person.page.route("**/ListLots", as_it_was_in_the_middle, times=1)
    await person.page.route("**/GetRecall", when_it_is_over)
    await person.press("Recall")
    await person.dialog.get_by_label("What customers are told").fill("The cold chain was interrupted.")
    await person.confirm()
    await counter.tally(free=0, reserved=0, written_off=10)


async def test_a_day_is_called_off_and_reopened_each_as_was_said_before(counter: Counter) -> None:
    person, world = counter.person, counter.world
    customer, booking = await counter.booked()
    await person.follow("Places")
    row = person.page.locator("tbody tr").first
    await expect(row.locator("td").nth(1)).to_have_text("1")
    await row.get_by_role("button", name="Call off").click()
    await person.dialog.get_by_label("What customers are told").fill("A pipe has burst: we are closed.")
    await person.see(re.compile("^1 booking end"), "dialog .effects")
    await person.confirm()
    await expect(row).to_contain_text("called off")
    shown = await customer.reaches(booking, Status.RESERVATION_STATUS_CALLED_OFF)
    assert any(entry.note == "A pipe has burst: we are closed." for entry in shown.timeline)
    await row.get_by_role("button", name="Reopen").click()
    await person.see("20 places can be booked again.", "dialog .effects")
    await person.confirm()
    await expect(row).not_to_contain_text("called off")
    assert (await world.operator.availability(counter.hospital, counter.today)).left == 20


async def test_fewer_places_than_bookings_are_told_before_they_are_set(counter: Counter) -> None:
    person = counter.person
    await counter.booked()
    await counter.booked()
    await person.follow("Places")
    row = person.page.locator("tbody tr").first
    await row.get_by_role("button", name="Change places").click()
    await person.dialog.get_by_label("Places a day").fill("1")
    await person.see(re.compile("1 booking more than places"), "dialog .effects")
    await person.confirm()
    await expect(row).to_contain_text("1 too many")


async def test_what_is_done_while_the_connection_is_lost_is_done_once_when_it_is_back(counter: Counter) -> None:
    person = counter.person
    _, booking = await counter.booked()
    await counter.refresh()
    await expect(counter.row(booking)).to_be_visible()
    await person.context.set_offline(True)
    await counter.row(booking).get_by_role("button", name="Check in").click()
    await expect(person.page.locator('[data-ask="lost"]')).to_be_visible()
    await person.context.set_offline(False)
    await expect(counter.row(booking)).to_contain_text("arrived")


@pytest.mark.parametrize("size", [PHONE, TABLET], ids=["phone", "tablet"])
async def test_no_screen_of_the_manager_is_wider_than_its_window(
    counter: Counter, opens: Opens, size: tuple[int, int]
) -> None:
    await counter.booked()
    person = await opens(size=size)
    await person.sign_in(manager=counter.hospital)
    await expect(person.page.locator("tbody tr")).to_have_count(1)
    await person.fits()
    for tab in ("Waiting", "Lots", "Places"):
        await person.page.locator(".tabs").get_by_role("link", name=tab).click()
        await expect(person.page.locator("tbody tr, .empty").first).to_be_visible()
        await person.fits()


async def test_a_manager_sees_the_own_hospital_and_nothing_of_the_other_areas(counter: Counter) -> None:
    person = counter.person
    await expect(person.page.locator("nav a", has_text="Operations")).to_have_count(0)
    await person.page.goto("/operator")
    await person.see("There is no such screen")
    await person.follow("Back to the start")
    await person.see(f"Hospital {counter.hospital}")
