"""What customers see and do, on a phone."""

import asyncio
import json
import re
import struct
import uuid
from datetime import date, timedelta
from typing import Any

import pytest
from playwright.async_api import Request, Route, expect

from tests.e2e.conftest import Client, Status, World, delivery
from vaccination.approval.v1 import hospital_pb2, hospital_service_pb2

from .conftest import Opens
from .person import DESKTOP, PHONE, Person


def name() -> str:
    """A customer whom nobody knows yet."""
    return f"customer-{uuid.uuid4().hex[:12]}"


def at(world: World, customer: str) -> Client:
    """The same customer, who calls the gateway without the page."""
    return world.client(customer, ["customer"])


async def signed_in(opens: Opens, customer: str, **how: Any) -> Person:
    """A customer with the page open."""
    person = await opens(**how)
    await person.sign_in(customer=customer)
    return person


def asked(person: Person, method: str) -> list[bytes]:
    """Collects the requests of a method that the page sends from now on."""
    sent: list[bytes] = []

    def look(request: Request) -> None:
        if request.url.endswith(f"/{method}"):
            sent.append(request.post_data_buffer or b"")

    person.context.on("request", look)
    return sent


async def kept(person: Person) -> list[dict[str, Any]]:
    """The requests that the tab keeps until there is an answer."""
    text = await person.page.evaluate("Object.entries(sessionStorage).find(([key]) => key.startsWith('asks '))?.[1]")
    return json.loads(text) if text else []


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
async def test_a_customer_signs_in_chooses_books_looks_moves_and_cancels(
    world: World, opens: Opens, size: tuple[int, int]
) -> None:
    hospital, day = await world.new_hospital(capacity=5, doses=5)
    later = day + timedelta(days=1)
    await world.operator.set_capacity(hospital, later, 5)
    person = await opens(size=size)
    await person.page.goto("/")
    await person.see("At a clinic you know")
    await person.press("Sign in")
    await person.choose(person.page, customer=name())
    await person.see("You have no booking yet")

    await person.follow("Book")
    await person.page.get_by_label("Name of the hospital").fill(hospital)
    await person.follow(re.compile(hospital))
    await person.see(re.compile(r"as of \d\d:\d\d:\d\d"))
    await person.fits()
    await person.page.locator(f'button.day[data-date="{day}"]', has_text="5 left").click()
    await person.see("Book this day?", "dialog")
    await person.press("Book it")
    await person.see("You are booked")
    await person.status("COMPLETED")

    await person.follow("Your reservation")
    facts = person.page.locator(".facts")
    for fact in ("Vaccine type", "Produced", "Use by", "Quantity", "1 dose"):
        await expect(facts.get_by_text(fact, exact=True)).to_be_visible()
    await expect(person.page.locator(".timeline li")).to_have_count(3)
    await person.fits()

    await person.follow("Move")
    await person.choose_day(hospital, later)
    await person.press("Move it")
    await person.see("Your booking has moved")
    await person.status("COMPLETED")
    await expect(person.page.locator(".ticket h2")).to_have_text([in_english(later)])
    assert (await world.operator.availability(hospital, day)).left == 5

    await person.follow("Your reservation")
    await person.press("Cancel")
    await person.see("This cannot be undone", "dialog")
    await person.press("Cancel the booking")
    await person.status("CANCELLED")
    await expect(person.page.locator(".timeline")).to_contain_text("You asked to cancel")
    await person.follow("My booking")
    await person.see("You have no current booking")


async def test_a_dose_that_is_set_aside_later_appears_without_loading_anything_again(
    world: World, opens: Opens
) -> None:
    hospital, day = await world.new_hospital(capacity=1)
    person = await signed_in(opens, name())
    await person.book(hospital, day)
    await person.status("APPROVED")
    await person.page.evaluate("window.still = 'the same page'")
    await world.manager(hospital).register(hospital, delivery(1))
    await person.status("COMPLETED")
    assert await person.page.evaluate("window.still") == "the same page"


async def test_while_approval_is_busy_one_request_is_repeated_also_after_a_reload(world: World, opens: Opens) -> None:
    hospital, day = await world.new_hospital(capacity=5, doses=5)
    customer = name()
    person = await signed_in(opens, customer)
    await person.page.locator('a.button.main[href="/customer/book"]').click()
    await person.choose_day(hospital, day)
    sent = asked(person, "CreateReservation")
    await world.stop("approval")
    await person.press("Book it")
    busy = person.page.locator('[data-ask="busy"]')
    await expect(busy).to_be_visible()
    await expect(busy.get_by_role("timer")).to_have_accessible_name(re.compile(r"Trying again in \d+ second"))
    [before] = await kept(person)
    repeated = len(sent) + 1
    async with person.page.expect_request("**/CreateReservation"):
        pass  # by itself
    await person.page.reload()
    await expect(busy).to_be_visible()
    [after] = await kept(person)
    assert after["request"] == before["request"]
    await world.start("approval")
    await person.status("COMPLETED")
    await expect(person.page.locator("[data-ask]")).to_have_count(0)  # the answer may come after the event
    assert len(sent) > repeated
    assert all(before["request"]["requestId"].encode() in body for body in sent)
    assert await kept(person) == []
    assert len(await at(world, customer).screen()) == 1


async def test_who_does_not_want_to_wait_any_longer_stops_the_repetition(world: World, opens: Opens) -> None:
    hospital, day = await world.new_hospital(capacity=5)
    person = await signed_in(opens, name())
    await person.page.locator('a.button.main[href="/customer/book"]').click()
    await person.choose_day(hospital, day)
    await person.context.set_offline(True)
    await person.press("Book it")
    await expect(person.page.locator('[data-ask="lost"]')).to_be_visible()
    await person.press("Stop trying")
    await person.see("We no longer repeat it.")
    await person.context.set_offline(False)
    assert await kept(person) == []


async def test_a_double_click_books_once(world: World, opens: Opens) -> None:
    hospital, day = await world.new_hospital(capacity=5, doses=5)
    customer = name()
    person = await signed_in(opens, customer)
    await person.page.locator('a.button.main[href="/customer/book"]').click()
    await person.choose_day(hospital, day)
    sent = asked(person, "CreateReservation")
    async with person.page.expect_response("**/CreateReservation"):
        await person.button("Book it").dblclick()
    assert len(sent) == 1
    await person.status("COMPLETED")
    assert len(set(sent)) == 1  # who is told to try again repeats the same
    assert len(await at(world, customer).screen()) == 1


async def test_a_reload_while_the_answer_is_on_its_way_books_once(world: World, opens: Opens) -> None:
    hospital, day = await world.new_hospital(capacity=5, doses=5)
    customer = name()
    person = await signed_in(opens, customer)
    sent, arrived = asked(person, "CreateReservation"), asyncio.Event()

    async def lose_the_answer(route: Route) -> None:
        await route.fetch()
        arrived.set()  # and nothing comes back to the page

    await person.page.route("**/CreateReservation", lose_the_answer, times=1)
    await person.book(hospital, day)
    await asyncio.wait_for(arrived.wait(), 60)
    async with person.page.expect_response("**/CreateReservation"):
        await person.page.reload()
    assert len(sent) == 2
    await person.status("COMPLETED")
    assert len(set(sent)) == 1  # who is told to try again repeats the same
    assert len(await at(world, customer).screen()) == 1


async def test_what_happened_while_the_connection_was_lost_is_seen_when_it_is_back(world: World, opens: Opens) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    customer = name()
    person = await signed_in(opens, customer)
    await person.book(hospital, day)
    await person.status("COMPLETED")
    await person.context.set_offline(True)
    await person.see("Connection lost. Reconnecting; this is what we knew last.")
    await person.status("COMPLETED")
    [booking] = await at(world, customer).screen()
    await at(world, customer).cancel(booking.reservation_id)
    await at(world, customer).reaches(booking.reservation_id, Status.RESERVATION_STATUS_CANCELLED)
    await person.context.set_offline(False)
    await person.see("You have no current booking")
    await expect(person.page.locator(".connection.live")).to_be_attached()


async def test_a_cancellation_that_is_asked_for_without_a_connection_is_made_when_it_is_back(
    world: World, opens: Opens
) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    person = await signed_in(opens, name())
    await person.book(hospital, day)
    await person.status("COMPLETED")
    await person.see("You are booked")
    await person.follow("Your reservation")
    await person.context.set_offline(True)
    await person.press("Cancel")
    await person.press("Cancel the booking")
    await expect(person.page.locator('[data-ask="lost"]')).to_be_visible()
    await person.context.set_offline(False)
    await person.status("CANCELLED")


async def test_what_one_tab_does_is_seen_in_the_other_and_two_tabs_never_hold_two_bookings(
    world: World, opens: Opens
) -> None:
    hospital, day = await world.new_hospital(capacity=5, doses=5)
    customer = name()
    person = await signed_in(opens, customer)
    first, second = person.page, await person.context.new_page()
    await person.sign_in(customer=customer, page=second)
    person.page = second
    await second.locator('a.button.main[href="/customer/book"]').click()
    await person.choose_day(hospital, day)
    person.page = first
    await person.book(hospital, day)
    await person.status("COMPLETED")
    person.page = second
    await person.press("Book it")
    await person.see("This could not be booked")
    await person.status("COMPLETED")  # of the one that there is
    await person.follow("Your reservation")
    await person.press("Cancel")
    await person.press("Cancel the booking")
    await expect(first.get_by_text("You have no current booking")).to_be_visible()


async def test_a_day_that_filled_up_meanwhile_is_explained_and_another_can_be_chosen(
    world: World, opens: Opens
) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=2)
    await world.operator.set_capacity(hospital, day + timedelta(days=1), 1)
    person = await signed_in(opens, name())
    await person.page.locator('a.button.main[href="/customer/book"]').click()
    await person.choose_day(hospital, day)
    await world.customer().book(hospital, day)
    await person.press("Book it")
    await person.see("This could not be booked")
    await person.press("Choose another day")
    await expect(person.page.locator(".day.none", has_text="full")).to_be_visible()
    await person.page.locator(f'button.day[data-date="{day + timedelta(days=1)}"]').click()
    await person.press("Book it")
    await person.status("COMPLETED")


async def test_who_is_called_off_reads_why_at_once(world: World, opens: Opens) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    person = await signed_in(opens, name())
    await person.book(hospital, day)
    await person.status("COMPLETED")
    await person.follow("Your reservation")
    await world.manager(hospital).call_off(hospital, day, note="A pipe has burst: we are closed.")
    await person.status("CALLED_OFF")
    await person.see("“A pipe has burst: we are closed.”")
    await expect(person.page.get_by_role("link", name="Book again")).to_be_visible()


SEOUL = {"latitude": 37.566512, "longitude": 126.978044}


async def clinics(world: World, **latitudes: float | None) -> str:
    """Registers a hospital of each of these names; returns a word that is in all of their names and in no other's."""
    mark = uuid.uuid4().hex[:10]

    async def register(name: str, latitude: float | None) -> None:
        known = hospital_pb2.Hospital(hospital_id=f"{mark}-{name}", name=f"Clinic {mark} {name}")
        if latitude is not None:
            known.location.latitude, known.location.longitude = latitude, 127.0
        request = hospital_service_pb2.UpsertHospitalRequest(hospital=known)
        await world.operator.call(world.operator.hospital.UpsertHospital, request)

    await asyncio.gather(*(register(*one) for one in latitudes.items()))
    return mark


async def test_a_search_asks_the_service_and_shows_what_it_finds_page_by_page(world: World, opens: Opens) -> None:
    mark = await clinics(world, **{f"n{number:02}": None for number in range(51)})
    person = await signed_in(opens, name())
    await person.follow("Book")
    cards = person.page.locator(".cards .card")
    searching = person.page.get_by_label("Name of the hospital")
    await searching.fill(f"clinic {mark.upper()}")
    await expect(person.page.locator(f'.cards[data-query="clinic {mark.upper()}"] .card')).to_have_count(50)
    await person.see("The first 50 hospitals")
    await person.press("Show more")
    await person.see("51 hospitals")
    await expect(cards).to_have_count(51)
    await expect(person.button("Show more")).to_have_count(0)
    await searching.fill(f"{mark}n07")
    await expect(cards).to_have_count(1)
    await searching.fill(f"{mark} 100%")
    await person.see(f"No hospital is called “{mark} 100%”")
    await person.fits()


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
async def test_hospitals_near_by_come_first_and_where_one_is_leaves_the_page_only_roughly(
    world: World, opens: Opens, size: tuple[int, int]
) -> None:
    mark = await clinics(world, a=None, b=35.1, c=37.6)
    person = await signed_in(opens, name(), size=size, geolocation=SEOUL, permissions=["geolocation"])
    await person.follow("Book")
    sent = asked(person, "ListHospitals")
    cards = person.page.locator(".cards .card")
    await person.page.get_by_label("Name of the hospital").fill(mark)
    await expect(cards).to_have_text([re.compile(f"{mark} {one}$") for one in "abc"])
    await person.press("Near me")
    await expect(cards).to_have_text([re.compile("c *about 4 km"), re.compile("b *about 275 km"), re.compile("a$")])
    await person.fits()
    told = [request for request in sent if struct.pack("<d", 37.57) in request]
    assert len(told) == 1
    assert struct.pack("<d", 126.98) in told[0]
    await cards.first.click()
    await person.see(f"Clinic {mark} c")
    await person.page.go_back()
    await expect(cards.first).to_contain_text("about 4 km")
    await person.press("Not by distance")
    await expect(cards).to_have_text([re.compile(f"{mark} {one}$") for one in "abc"])


async def test_who_does_not_tell_where_they_are_is_told_how_to_go_on(world: World, opens: Opens) -> None:
    mark = await clinics(world, a=37.6)
    person = await signed_in(opens, name())
    await person.follow("Book")
    await person.press("Near me")
    await person.see("This browser may not tell where you are.")
    await person.page.get_by_label("Name of the hospital").fill(mark)
    await expect(person.page.locator(".cards .card")).to_have_text([re.compile(f"{mark} a$")])
    await person.fits()


async def test_the_back_button_leads_through_the_screens_and_a_link_opens_its_screen(
    world: World, opens: Opens
) -> None:
    hospital, _ = await world.new_hospital(capacity=1)
    person = await signed_in(opens, name())
    await person.follow("Book")
    await person.page.get_by_label("Name of the hospital").fill(hospital)
    await person.follow(re.compile(hospital))
    await person.see("Choose a day")
    await person.page.go_back()
    await expect(person.page.get_by_label("Name of the hospital")).to_have_value(hospital)
    await person.page.go_back()
    await person.see("You have no booking yet")
    await person.page.go_forward()
    await person.see("Choose a hospital")
    await person.page.goto(f"/customer/book/{hospital}")
    await expect(person.page.locator("button.day")).to_have_count(1)


async def test_the_page_speaks_the_browsers_language_and_the_one_that_is_chosen(world: World, opens: Opens) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    person = await signed_in(opens, name(), language="ko-KR")
    await person.see("아직 예약이 없습니다")
    await person.book(hospital, day)
    await person.status("COMPLETED")
    await expect(person.page.locator(".ticket h2")).to_have_text(
        re.compile(rf"{day.year}년 {day.month}월 {day.day}일 .요일")
    )
    await person.press("English")
    await person.see("My booking")
    await expect(person.page.locator(".ticket h2")).to_have_text(in_english(day))
    assert await person.page.evaluate("document.documentElement.lang") == "en"
    await person.page.reload()
    await expect(person.page.locator(".ticket h2")).to_have_text(in_english(day))
    await person.press("한국어")
    await person.see("내 예약")


def in_english(day: date) -> str:
    """A day as the page writes it in English."""
    return f"{day:%a}, {day.day} {day:%B} {day.year}"
