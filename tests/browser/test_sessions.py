"""Signing in lasts, is renewed, ends, and goes on without losing what is on the screen."""

import asyncio
import json
import re
import uuid
from datetime import timedelta

from playwright.async_api import Route, expect

from mesh.machine.home import ISSUER
from tests.e2e.conftest import World, zone_at_noon

from .conftest import Opens
from .person import DESKTOP, Person

HOUR = 3600_000  # milliseconds; as long as the local issuer's tokens live


async def signed_in(opens: Opens, to: str = "/") -> Person:
    """A customer with the page open, whose browser's clock can be put forward."""
    person = await opens()
    await person.context.clock.install()
    await person.sign_in(customer=f"customer-{uuid.uuid4().hex[:12]}", to=to)
    return person


async def forget_everybody(world: World) -> None:
    """Restarts the issuer, which has its sessions and refresh tokens in memory."""
    await asyncio.to_thread(world.mesh.stop, ISSUER)
    await asyncio.to_thread(world.mesh.up, [ISSUER])


async def test_a_token_is_renewed_before_it_expires_and_nobody_notices(opens: Opens) -> None:
    person = await signed_in(opens)
    await person.see("You have no booking yet")
    async with person.page.expect_response("**/token") as renewal:
        await person.context.clock.fast_forward(HOUR - 20_000)
    assert (await renewal.value).status == 200
    await person.follow("Book")
    await person.see("Choose a hospital")
    await expect(person.dialog).to_have_count(0)


async def test_when_a_session_has_expired_one_signs_in_beside_the_page_and_goes_on_where_one_was(
    world: World, opens: Opens
) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    person = await signed_in(opens)
    customer = await person.page.locator("header .tools button").last.get_attribute("title")
    await person.follow("Book")
    await person.page.get_by_label("Name of the hospital").fill(hospital)
    await forget_everybody(world)
    await person.context.clock.fast_forward(HOUR + 1000)
    await person.see("Your session has ended", "dialog")
    async with person.context.expect_page() as opening:
        await person.press("Sign in again")
    beside = await opening.value
    await person.choose(beside, customer=customer or "")
    await expect(person.dialog).to_have_count(0)
    assert beside.is_closed() or await beside.wait_for_event("close") is not None
    await expect(person.page.get_by_label("Name of the hospital")).to_have_value(hospital)
    await person.choose_day(hospital, day)
    await person.press("Book it")
    await person.status("COMPLETED")


async def test_when_the_gateway_refuses_a_token_one_signs_in_again_and_what_was_typed_is_sent(
    world: World, opens: Opens
) -> None:
    """As when the provider's keys have changed: the token is not expired, and yet no longer valid."""
    hospital, today = await world.new_hospital(days_ahead=0, time_zone=zone_at_noon())
    person = await opens(size=DESKTOP)
    await person.context.clock.install()
    await person.sign_in(manager=hospital, to="/manager/lots")
    await person.see("There are no lots.")
    await person.press("Take a delivery")
    for label, value in {
        "Lot": "N-1", "Delivery note": "DN-78", "Vaccine": "208", "Manufacturer": "PFR",
        "Produced": str(today - timedelta(days=60)), "Use by": str(today + timedelta(days=300)), "How many": "4",
    }.items():  # fmt: skip
        await person.dialog.get_by_label(label, exact=True).fill(value)
    refused = ""

    async def spoil(route: Route) -> None:
        nonlocal refused
        token = route.request.headers["authorization"]
        refused = refused or token
        spoilt = {"authorization": f"{token[:-8]}AAAAAAAA"} if token == refused else {}
        await route.continue_(headers={**route.request.headers, **spoilt})

    await person.page.route("**/vaccination.*/*", spoil)
    await forget_everybody(world)
    await person.press("Add to stock")
    again = person.page.locator("dialog", has_text="Your session has ended")
    await expect(again).to_be_visible()
    await expect(person.dialog.get_by_label("Delivery note")).to_have_value("DN-78")
    await person.context.clock.fast_forward(HOUR)  # nobody is in a hurry; no time limit may run out meanwhile
    async with person.context.expect_page() as opening:
        await person.press("Sign in again")
    await person.choose(await opening.value, manager=hospital)
    await person.see("4 doses taken into stock.")
    await expect(person.page.locator("dialog")).to_have_count(0)
    assert [lot.received for lot in await world.manager(hospital).lots(hospital)] == [4]


async def test_where_the_browser_opens_no_window_one_signs_in_in_this_one_and_comes_back_to_where_one_was(
    world: World, opens: Opens
) -> None:
    hospital, _ = await world.new_hospital(capacity=1)
    person = await signed_in(opens, to=f"/customer/book/{hospital}")
    await expect(person.page.locator("button.day")).to_have_count(1)
    await person.page.evaluate("window.open = () => null")
    await forget_everybody(world)
    await person.context.clock.fast_forward(HOUR + 1000)
    await person.press("Sign in again")
    await person.choose(person.page, customer="somebody")
    await expect(person.page.locator("button.day")).to_have_count(1)
    await expect(person.page).to_have_url(re.compile(f"/customer/book/{hospital}$"))


async def test_nobody_is_asked_to_sign_in_again_because_the_provider_could_not_be_reached_once(opens: Opens) -> None:
    person = await signed_in(opens)
    await person.see("You have no booking yet")

    async def unreachable(route: Route) -> None:
        await route.abort()

    await person.page.route("**/token", unreachable, times=1)
    async with person.page.expect_event("requestfailed", lambda request: request.url.endswith("/token")):
        await person.context.clock.fast_forward(HOUR - 20_000)
    async with person.page.expect_response("**/token") as renewal:
        await person.context.clock.fast_forward(10_000)
    assert (await renewal.value).status == 200
    await expect(person.dialog).to_have_count(0)


async def test_nothing_is_left_on_the_screen_of_who_signs_out_not_even_on_the_way_to_the_provider(
    world: World, opens: Opens
) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    person = await signed_in(opens)
    await person.book(hospital, day)
    await person.status("COMPLETED")

    async def stays(route: Route) -> None:
        await route.fulfill(status=204)  # with this answer a browser stays on the page

    await person.page.route("**/end-session*", stays)
    await person.press("Sign out")
    await expect(person.page.locator(".welcome")).to_be_visible()
    await expect(person.page.locator(".ticket")).to_have_count(0)


async def test_nothing_of_the_one_before_is_left_when_somebody_else_signs_in(world: World, opens: Opens) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    person = await signed_in(opens)
    await person.book(hospital, day)
    await person.status("COMPLETED")
    await forget_everybody(world)
    await person.context.clock.fast_forward(HOUR + 1000)
    async with person.context.expect_page() as opening:
        await person.press("Sign in again")
    await person.choose(await opening.value, customer=f"another-{uuid.uuid4().hex[:12]}")
    await expect(person.page.locator(".ticket")).to_have_count(0)
    await expect(person.dialog).to_have_count(0)


async def test_a_reload_and_a_link_need_no_new_sign_in_and_tokens_are_nowhere_to_be_found(
    world: World, opens: Opens
) -> None:
    hospital, _ = await world.new_hospital(capacity=1)
    person = await signed_in(opens)
    await person.see("You have no booking yet")
    await person.page.reload()
    await person.see("You have no booking yet")
    await person.page.goto(f"/customer/book/{hospital}")
    await person.see("Choose a day")
    stored = await person.page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie])")
    assert "eyJ" not in stored, "no token is kept where a script could find it"
    assert json.loads(stored)[2] == ""


async def test_a_screen_that_needs_a_sign_in_comes_after_it(world: World, opens: Opens) -> None:
    hospital, _ = await world.new_hospital(capacity=1)
    person = await signed_in(opens, to=f"/customer/book/{hospital}")
    await expect(person.page.locator("button.day")).to_have_count(1)
    assert person.page.url.endswith(f"/customer/book/{hospital}")


async def test_who_has_signed_out_is_out_also_after_going_back(opens: Opens) -> None:
    person = await signed_in(opens)
    await person.see("You have no booking yet")
    # The id_token tells the provider whom to sign out; without it many ask first, and do not lead back.
    async with person.page.expect_request("**/*id_token_hint=eyJ*"):
        await person.press("Sign out")
    await expect(person.page).to_have_url(re.compile("/$"))
    await expect(person.page.locator(".welcome")).to_be_visible()
    await person.page.go_back()
    await person.page.goto("/customer")
    await expect(person.page.locator(".welcome .button.main")).to_be_visible()
    assert await person.page.evaluate("Object.keys(sessionStorage)") == []


async def test_a_code_that_this_tab_did_not_ask_for_signs_nobody_in(opens: Opens) -> None:
    person = await opens()
    await person.page.goto("/signed-in?code=somebody-elses&state=guessed")
    await expect(person.page.locator(".welcome .button.main")).to_be_visible()
    await expect(person.page).to_have_url(re.compile("/$"))


async def test_an_id_token_that_another_sign_in_asked_for_signs_nobody_in(opens: Opens) -> None:
    async def of_another(route: Route) -> None:
        await route.continue_(url=re.sub("nonce=[^&]+", "nonce=of-another", route.request.url))

    person = await opens()
    await person.page.route("**/authorize?*nonce=*", of_another)
    await person.page.goto("/")
    await person.press("Sign in")
    await person.choose(person.page, customer="minji")
    await person.see("Signing in did not work.")
    person.faults.clear()  # the page says so on the console, too


async def test_a_sign_in_that_the_issuer_refuses_is_told_and_can_be_repeated(opens: Opens) -> None:
    person = await opens()
    await person.page.goto("/signed-in?error=access_denied&state=any")
    await person.see("Signing in did not work.")
    person.faults.clear()  # the page says so on the console, too
    await expect(person.button("Sign in")).to_be_visible()
