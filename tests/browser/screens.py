"""Every screen of the page with something on it, one after the other: to be looked at by tools and by people."""

import asyncio
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from playwright.async_api import Browser, Route, expect

from tests.e2e.conftest import Client, Status, World, delivery, eventually, zone_at_noon
from vaccination.approval.v1 import hospital_pb2, hospital_service_pb2
from vaccination.vaccinemgmt.v1 import lot_pb2

from .person import DESKTOP, Person, opened

NAME = "마포 보건지소 · Mapo Health Centre"
LONG_NAME = (
    "국립중앙의료원 부설 서울특별시 광역 예방접종지원센터 제2별관 3층 동쪽 접종실 · The National Medical Center "
    "Vaccination Support Centre of the Seoul Metropolitan Area, Second Annex, Third Floor, East Wing"
)
FAMILY = ("kim", "lee", "park", "choi", "jung", "kang", "cho", "yoon", "jang", "lim")
GIVEN = ("minseo", "jiwoo", "seojun", "haeun", "doyun", "sua", "jiho", "yuna", "eunwoo", "chaewon")
CALLED_OFF = "냉난방 공사로 쉽니다. 불편을 드려 죄송합니다. Closed for repairs of the heating; we are sorry."
STATUS = Status
HOUR = 3600_000


@dataclass
class Stage:
    """What the screens show: a hospital with bookings in every status, and one with a very long name."""

    world: World
    hospital: str
    long_named: str
    today: date
    lots: Sequence[lot_pb2.Lot]
    recalled: lot_pb2.Lot
    called_off: str
    """A customer whose booking was called off."""
    waits: str
    """A customer who waits for a dose."""
    waits_long: str
    """A customer who waits for one at the hospital with the long name."""
    empty: str
    """A hospital about which nothing is known but its name, which is long, too."""


async def staged(world: World, rows: int) -> Stage:
    """Makes it, with so many bookings of today."""
    hospital, today = await world.new_hospital(days_ahead=0, time_zone=zone_at_noon())
    long_named, _ = await world.new_hospital(time_zone=zone_at_noon())
    empty, _ = await world.new_hospital(time_zone=zone_at_noon())
    for hospital_id, name in ((hospital, NAME), (long_named, LONG_NAME), (empty, LONG_NAME)):
        known = hospital_pb2.Hospital(
            hospital_id=hospital_id, name=name, time_zone=zone_at_noon(), vaccine_codes=["207", "208", "211"]
        )
        request = hospital_service_pb2.UpsertHospitalRequest(hospital=known)
        await world.operator.call(world.operator.hospital.UpsertHospital, request)
        for ahead in range(40 if hospital_id != empty else 0):
            places = (0, 4, 120, 37, 9, 240, 80)[ahead % 7] if ahead else rows + 20
            await world.operator.set_capacity(hospital_id, today + timedelta(days=ahead), places)
    lots = await world.operator.register(
        hospital,
        delivery(rows + 400, lot_number="MP-P26B7", vaccine_code="208", manufacturer="PFR"),
        delivery(60, lot_number="MP-M26C2", expiry_date=str(today + timedelta(days=12))),
        delivery(25, lot_number="VERY-LONG-LOT-NUMBER/2026.1"),
        delivery(40, lot_number="MP-R26A1", expiry_date=str(today + timedelta(days=100))),
    )
    bookings = await _booked(world, hospital, today, rows)
    manager = world.manager(hospital)
    for count, (_, booking) in enumerate(bookings[: min(rows, 20)]):
        if count % 5 < 3:
            await manager.check_in(booking)
        if count % 5 == 2:
            await manager.administer(booking)
        if count % 5 == 4:
            await manager.miss(booking)
    [waits] = await _booked(world, hospital, today, 1, "211", STATUS.RESERVATION_STATUS_APPROVED)
    approved = STATUS.RESERVATION_STATUS_APPROVED
    [waits_long] = await _booked(world, long_named, today + timedelta(days=1), 1, "211", approved)
    [off] = await _booked(world, hospital, today + timedelta(days=2), 1)
    await manager.call_off(hospital, today + timedelta(days=2), note=CALLED_OFF)
    await world.client(off[0], ["customer"]).reaches(off[1], STATUS.RESERVATION_STATUS_CALLED_OFF)
    recalled = lots[3]
    await manager.recall(recalled, hospital, note="제조사 회수 · Recalled by its manufacturer")
    return Stage(world, hospital, long_named, today, lots, recalled, off[0], waits[0], waits_long[0], empty)


async def _booked(
    world: World,
    hospital: str,
    day: date,
    count: int,
    code: str = "",
    status: int = STATUS.RESERVATION_STATUS_COMPLETED,
) -> list[tuple[str, str]]:
    """Customers with a booking each; (customer's id, reservation's id)."""
    few, tag = asyncio.Semaphore(8), uuid.uuid4().hex[:8]

    async def one(number: int) -> tuple[str, str]:
        name = f"{GIVEN[number % 10]}.{FAMILY[number // 10 % 10]}-{tag}{number:03}"
        customer: Client = world.client(name, ["customer"])
        async with few:
            booked = await customer.book(hospital, day, vaccine_code=code)
        assert booked.status != STATUS.RESERVATION_STATUS_REJECTED, booked
        return name, booked.reservation_id

    made = await asyncio.gather(*map(one, range(count)))
    for name, reservation_id in (made[0], made[-1]):
        await world.client(name, ["customer"]).reaches(reservation_id, status)
    manager = world.manager(hospital)
    if status == STATUS.RESERVATION_STATUS_COMPLETED:
        await eventually(
            lambda: manager.of_day(hospital, day),
            lambda all_: len(all_) >= count and all(one.HasField("dose") for one in all_),
        )
    return made


Screens = AsyncIterator[tuple[str, Person]]


async def screens(
    browser: Browser, stage: Stage, size: tuple[int, int] = DESKTOP, language: Literal["en-GB", "ko-KR"] = "en-GB"
) -> Screens:
    """Opens one screen after the other; yields its name and the person who looks at it. Everything but the customer's
    own booking is left as it was.
    """
    for tour in (_signed_out, _customer, _others, _manager, _empty, _operator):
        person = await opened(browser, f"http://{stage.world.mesh.gateway}", size, language)
        async for name in tour(person, stage):
            yield name, person
        await person.context.close()
        assert person.faults == []


async def _signed_out(person: Person, stage: Stage) -> AsyncIterator[str]:
    page = person.page
    await page.goto("/signed-in?error=access_denied&state=any")
    await expect(page.locator(".notice.bad")).to_be_visible()
    person.faults.clear()  # the page says so on the console, too
    yield "welcome-refused"
    await page.route("**/config.json", lambda route: route.fulfill(status=503))
    await page.goto("/")
    await expect(page.locator(".empty button")).to_be_visible()
    person.faults.clear()
    yield "broken"


async def _customer(person: Person, stage: Stage) -> AsyncIterator[str]:
    page, book = person.page, 'a.button.main[href="/customer/book"]'
    customer = f"{GIVEN[0]}.{FAMILY[0]}-{uuid.uuid4().hex[:8]}"
    await person.context.clock.install()
    await page.goto("/")
    await expect(page.locator(".welcome")).to_be_visible()
    yield "welcome"
    await page.locator(".welcome .button.main").click()
    await expect(page.locator("button[name=operator]")).to_be_visible()
    yield "sign-in"
    await person.choose(page, customer=customer)
    await expect(page.locator(book)).to_be_visible()
    yield "customer-none"
    await page.locator(book).click()
    await expect(page.locator(".cards .card").first).to_be_visible()
    yield "customer-hospitals"
    await page.locator("input[type=search]").fill("nowhere")
    await expect(page.locator(".cards .card")).to_have_count(0)
    yield "customer-hospitals-none"
    await page.locator("input[type=search]").fill(stage.long_named)
    await page.locator(".cards .card").click()
    await expect(page.locator("button.day").first).to_be_visible()
    yield "customer-days-long"
    await page.go_back()
    await person.choose_day(stage.hospital, stage.today + timedelta(days=3))
    yield "customer-confirm"
    await page.keyboard.press("Escape")
    await expect(person.dialog).to_have_count(0)
    yield "customer-days"
    await page.route("**/CreateReservation", _busy, times=1)
    await page.locator(f'button.day[data-date="{stage.today + timedelta(days=3)}"]').click()
    await person.dialog.locator(".button.main").click()
    await expect(page.locator('[data-ask="busy"]')).to_be_visible()
    yield "customer-busy"
    await person.status("COMPLETED")
    await expect(page.locator(".notice.good")).to_be_visible()
    yield "customer-booked"
    await person.context.clock.fast_forward(7000)
    await expect(page.locator(".toast p")).to_have_count(0)  # it would cover the next screens
    await page.locator(".ticket a").click()
    await expect(page.locator(".timeline li")).to_have_count(3)
    yield "customer-reservation"
    await page.locator(".ticket .button.danger").click()
    await expect(person.dialog).to_be_visible()
    yield "customer-cancel"
    await page.keyboard.press("Escape")
    await page.locator(".ticket a.button").click()
    await person.choose_day(stage.hospital, stage.today + timedelta(days=5))
    yield "customer-move"
    await page.keyboard.press("Escape")
    await page.goto(f"/customer/book/{stage.hospital}")
    await page.locator(f'button.day[data-date="{stage.today + timedelta(days=5)}"]').click()
    await person.dialog.locator(".button.main").click()
    await expect(page.locator(".notice.bad")).to_be_visible()
    yield "customer-refused"
    await person.context.set_offline(True)
    await expect(page.locator(".connection.lost .notice")).to_be_visible()
    yield "customer-offline"
    await person.context.set_offline(False)
    await expect(page.locator(".connection.live")).to_be_attached()
    await page.route("**/token", lambda route: route.fulfill(status=400))
    await person.context.clock.fast_forward(HOUR)
    await expect(person.dialog).to_be_visible()
    yield "customer-expired"


async def _busy(route: Route) -> None:
    """What the gateway answers while approval is busy."""
    status = status_pb2.Status(code=8, message="busy")
    for detail in (
        error_details_pb2.ErrorInfo(reason="APPROVAL_BUSY", domain="vaccination"),
        error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=3)),
    ):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    headers = {
        "content-type": "application/grpc-web+proto",
        "grpc-status": "8",
        "grpc-status-details-bin": b64encode(status.SerializeToString()).decode(),
    }
    await route.fulfill(status=200, headers=headers)


async def _others(person: Person, stage: Stage) -> AsyncIterator[str]:
    for customer, status, name in (
        (stage.called_off, "CALLED_OFF", "called-off"),
        (stage.waits_long, "APPROVED", "waits-long"),
    ):
        await person.sign_in(customer=customer)
        await expect(person.page.locator(".ticket, .cards a.card").first).to_be_visible()
        yield f"customer-{name}-home"
        await person.page.locator(".ticket a, .cards a.card").first.click()
        await expect(person.page.locator(".timeline li").first).to_be_visible()
        await person.status(status)
        yield f"customer-{name}"
        await person.page.locator("header .tools button").last.click()
        await expect(person.page.locator(".welcome")).to_be_visible()
    await person.sign_in(customer=stage.called_off)
    await person.page.goto("/customer/nowhere")
    await expect(person.page.locator(".empty a")).to_be_visible()
    yield "not-found"


async def _manager(person: Person, stage: Stage) -> AsyncIterator[str]:
    page, rows = person.page, person.page.locator("tbody tr")

    async def dialog(button: int | str, within: str = "main") -> None:
        """Opens a dialog by the button of this number, or of this style."""
        found = page.locator(within)
        await (found.locator("button").nth(button) if isinstance(button, int) else found.locator(button).first).click()
        await expect(person.dialog).to_be_visible()

    async def close() -> None:
        await page.keyboard.press("Escape")
        await expect(person.dialog).to_have_count(0)

    await person.sign_in(manager=stage.hospital)
    await expect(rows.first).to_be_visible()
    yield "manager-day"
    await page.locator(".chip").nth(1).click()
    expected = rows.first
    for number, name in ((1, "administer"), (2, "assign"), (3, "missed")):
        await expected.locator("button").nth(number).click()
        await expect(person.dialog).to_be_visible()
        yield f"manager-{name}"
        await close()
    await expected.locator("button").nth(1).click()
    await person.dialog.locator("input[type=radio]").nth(1).check()
    await person.dialog.locator(".form input").fill("NO-SUCH-LOT")
    yield "manager-administer-other"
    await close()
    await page.locator(".chip").first.click()
    await page.locator(".search").fill("nobody")
    await expect(page.locator(".empty")).to_be_visible()
    yield "manager-nobody"
    await page.locator(".empty button").click()
    await expect(person.dialog.locator(".empty")).to_be_visible()
    yield "manager-elsewhere"
    await close()
    tabs = page.locator(".tabs a")
    await tabs.nth(1).click()
    await expect(rows).to_have_count(1)
    yield "manager-waiting"
    await dialog(0, "tbody")
    yield "manager-waiting-assign"
    await close()
    await tabs.nth(2).click()
    await expect(rows.first).to_be_visible()
    yield "manager-lots"
    await dialog(".button.main")
    yield "manager-delivery"
    await close()
    await page.goto(f"/manager/lots/{stage.lots[1].lot_id}")
    await expect(page.locator(".tally")).to_be_visible()
    await expect(rows.first).to_be_visible()
    yield "manager-lot"
    for number, name in enumerate(("correct", "write-off", "recall")):
        await dialog(number, ".between .actions")
        if name == "write-off":
            await person.dialog.locator("input[type=number]").fill("3")
            await expect(person.dialog.locator(".effects")).to_be_visible()
        yield f"manager-{name}"
        await close()
    await page.goto(f"/manager/lots/{stage.recalled.lot_id}")
    await page.locator(".notice.bad button").click()
    await expect(page.locator(".notice.bad p").last).to_be_visible()
    yield "manager-recalled"
    await tabs.nth(3).click()
    await expect(rows.first).to_be_visible()
    yield "manager-places"
    await dialog(0, "tbody tr:first-child")
    await person.dialog.locator("input[type=number]").fill("1")
    yield "manager-capacity"
    await close()
    await dialog(1, "tbody tr:first-child")
    yield "manager-call-off"
    await close()
    await dialog(0, "tbody tr:nth-child(3)")
    yield "manager-reopen"
    await close()
    await page.route("**/ListLots", lambda route: route.abort())
    await tabs.nth(2).click()
    await expect(page.locator(".notice.bad")).to_be_visible()
    yield "manager-failed"


async def _empty(person: Person, stage: Stage) -> AsyncIterator[str]:
    await person.sign_in(manager=stage.empty)
    for number, name in enumerate(("day", "waiting", "lots", "places")):
        await person.page.locator(".tabs a").nth(number).click()
        await expect(person.page.locator(".empty")).to_be_visible()
        yield f"manager-{name}-empty"


async def _operator(person: Person, stage: Stage) -> AsyncIterator[str]:
    page = person.page
    await person.sign_in(operator=True)
    await expect(page.locator("canvas")).to_have_count(8)
    async with page.expect_response("**/GetStatus"):
        pass  # the plots have a line
    yield "operator-flow"
    await page.goto("/operator/dead-letters?service=approval")
    await expect(page.locator(".empty")).to_be_visible()
    yield "operator-dead-letters-none"
    await page.goto("/operator/dead-letters?service=mypage")
    await expect(page.locator("tbody tr, .empty").first).to_be_visible()
    yield "operator-dead-letters"
    if await page.locator("tbody tr").count():
        await page.locator("tbody button").first.click()
        await expect(person.dialog.locator(".failures li").first).to_be_visible()
        yield "operator-dead-letter"
        await page.keyboard.press("Escape")
    await page.locator(".tabs a").nth(2).click()
    for book in await page.locator("[data-books]").all():
        await book.locator("button").click()
        await expect(book).to_have_attribute("data-done", "true", timeout=60_000)
    yield "operator-books"
