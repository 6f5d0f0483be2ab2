"""What the operator sees and does."""

import asyncio
import re
import uuid

import nats
import pytest
from playwright.async_api import expect

from mesh.machine.home import SERVICES
from tests.e2e.conftest import World, eventually

from .conftest import Opens
from .person import DESKTOP, PHONE, Person

UNKNOWN = "\N{EN DASH}"


async def operator(opens: Opens, size: tuple[int, int] = DESKTOP, to: str = "/") -> Person:
    """The operator with the page open."""
    person = await opens(size=size)
    await person.sign_in(operator=True, to=to)
    return person


async def garbage(world: World, letters: int) -> None:
    """Publishes events that no service can read; they end among the dead letters of those that subscribe."""
    client = await nats.connect(world.mesh.stores.nats_url)
    for _ in range(letters):
        headers = {"ce-id": str(uuid.uuid4()), "ce-subject": str(uuid.uuid4())}
        event = "vaccination.approval.v1.ApprovalGranted"
        await client.jetstream().publish(event, b"\x0a\xff\xff garbage", headers=headers)
    await client.close()


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
async def test_the_operator_sees_every_service_and_how_the_events_flow(opens: Opens, size: tuple[int, int]) -> None:
    person = await operator(opens, size)
    for service in SERVICES:
        await expect(person.page.locator(f'tr[data-service="{service}"]')).to_contain_text("running")
    await expect(person.page.locator("canvas")).to_have_count(8)
    await person.fits()


async def test_bookings_completions_and_refusals_are_plotted_as_they_happen(world: World, opens: Opens) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    person = await operator(opens)

    async def now(plot: str, values: str) -> None:
        label = re.compile(f", now: {values}$")
        await expect(person.page.locator(f'[data-plot="{plot}"] .plot')).to_have_attribute("aria-label", label)

    for plot, name in (("bookings", "Bookings"), ("completions", "Completions")):
        await now(plot, f"{name} 0")
    await now("toCompletion", f"mean {UNKNOWN}, 99 % are faster {UNKNOWN}")
    some = r"(0\.\d+|[1-9][\d.]*)"
    await world.customer().book(hospital, day)
    await asyncio.gather(
        now("bookings", f"Bookings {some}"),
        now("completions", f"Completions {some}"),
        now("toCompletion", f"mean {some}, 99 % are faster {some}"),
    )
    await world.customer().book(hospital, day)
    await now("breaker", f"denied by approval {some}, turned away since approval is busy 0")


async def test_services_that_do_not_tell_what_they_measure_are_seen_all_the_same(opens: Opens) -> None:
    person = await opens(size=DESKTOP)
    await person.page.route("**/GetMetrics", lambda route: route.abort())
    await person.sign_in(operator=True)
    for service in SERVICES:
        await expect(person.page.locator(f'tr[data-service="{service}"]')).to_contain_text("running")
    plot = person.page.locator('[data-plot="bookings"] .plot')
    await expect(plot).to_have_attribute("aria-label", f"Bookings, now: Bookings {UNKNOWN}")


async def test_a_service_that_stops_is_seen_to_stop_and_to_come_back(world: World, opens: Opens) -> None:
    person = await operator(opens)
    row = person.page.locator('tr[data-service="vaccinemgmt"]')
    await expect(row).to_contain_text("running")
    await world.stop("vaccinemgmt")
    await expect(row).to_contain_text("no answer")
    await world.start("vaccinemgmt")
    await expect(row).to_contain_text("running")


async def test_dead_letters_are_looked_at_redriven_and_discarded_with_a_reason(world: World, opens: Opens) -> None:
    client = await nats.connect(world.mesh.stores.nats_url)
    await client.jetstream().purge_stream("DEAD_LETTERS")
    await client.close()
    person = await operator(opens, to="/operator/dead-letters?service=vaccinemgmt")
    await person.see("There are none: every event was handled.")
    await garbage(world, 2)
    rows = person.page.locator("tbody tr")

    async def refreshed() -> int:
        await person.press("Refresh")  # does nothing while the list is being read
        return await rows.count()

    await eventually(refreshed, lambda shown: shown == 2)
    await person.fits()
    number = rows.first.locator("td.number")  # what fails again is kept under a new one
    before = await number.inner_text()
    await rows.first.get_by_role("button", name="Open").click()
    await expect(person.dialog.locator(".failures li")).to_have_count(1)
    await person.dialog.get_by_role("button", name="Redrive").click()
    await person.see("0 handled · 1 failed again")
    await expect(number).not_to_have_text(before)
    await expect(rows).to_have_count(2)
    await rows.first.get_by_role("button", name="Open").click()
    await person.press("Discard")
    await expect(person.button("Give it up")).to_be_disabled()
    await person.dialog.get_by_label("Reason").fill("Garbage of a test")
    await person.press("Give it up")
    await expect(rows).to_have_count(1)
    before = await number.inner_text()
    await person.press("Redrive all")
    await person.dialog.get_by_role("button", name="Redrive all").click()
    await person.see("0 handled · 1 failed again · 0 left", "dialog .progress")
    await person.dialog.get_by_role("button", name="Close").last.click()
    await expect(number).not_to_have_text(before)
    await rows.first.get_by_role("button", name="Open").click()
    await person.press("Discard")
    await person.dialog.get_by_label("Reason").fill("Garbage of a test")
    await person.press("Give it up")
    await person.see("There are none: every event was handled.")


async def test_the_books_of_places_and_of_doses_agree(world: World, opens: Opens) -> None:
    hospital, day = await world.new_hospital(capacity=2, doses=2)
    await world.customer().book(hospital, day)
    await world.quiet()
    person = await operator(opens, to="/operator/books")
    for service in ("approval", "vaccinemgmt"):
        book = person.page.locator(f'[data-books="{service}"]')
        await book.get_by_role("button", name="Check").click()
        await expect(book).to_have_attribute("data-done", "true")
        await expect(book.locator(".notice")).to_contain_text(re.compile(r"All \d+ accounts? agree"))


async def test_the_operator_helps_out_at_the_counter_of_any_hospital(world: World, opens: Opens) -> None:
    hospital, _ = await world.new_hospital(doses=3)
    person = await operator(opens)
    await person.follow("Counter")
    await person.page.get_by_label("Hospital").select_option(hospital)
    await person.page.locator(".tabs").get_by_role("link", name="Lots").click()
    await expect(person.page.locator("tbody tr")).to_have_count(1)
