"""Everybody can use the page: with a screen reader, by keyboard alone, enlarged, and on the smallest phone."""

import uuid

import pytest
from playwright.async_api import Browser, expect

from mesh import ROOT
from tests.e2e.conftest import World

from .conftest import Opens
from .person import DESKTOP, PHONE
from .screens import screens, staged

AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
VIOLATIONS = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations.map(
    (one) => `${one.id} (${one.impact}): ${one.nodes.slice(0, 3).map((node) => node.target.join(" ")).join(", ")}`)"""


@pytest.mark.parametrize(("language", "size"), [("en-GB", PHONE), ("ko-KR", DESKTOP)], ids=["phone-en", "desktop-ko"])
async def test_no_screen_has_a_barrier_that_axe_knows_or_is_wider_than_its_window(
    world: World, chromium: Browser, language: str, size: tuple[int, int]
) -> None:
    found: dict[str, list[str]] = {}
    async for name, person in screens(chromium, await staged(world, rows=12), size, language):  # type: ignore[arg-type]
        await person.page.evaluate(AXE.read_text())  # the developer's tools run it, so the page's policy can stay
        if violations := await person.page.evaluate(VIOLATIONS):
            found[name] = violations
        await person.fits()
    assert found == {}


async def test_a_booking_is_made_by_keyboard_alone(world: World, opens: Opens) -> None:
    hospital, _ = await world.new_hospital(capacity=2, doses=2)
    person = await opens()
    keys = person.page.keyboard

    async def tab_to(text: str) -> None:
        for _ in range(80):
            await keys.press("Tab")
            focus = "document.activeElement"
            if text in await person.page.evaluate(f"{focus}.innerText || {focus}.labels?.[0]?.innerText || ''"):
                return
        pytest.fail(f"{text} cannot be reached with Tab")

    await person.page.goto("/")
    await expect(person.button("Sign in")).to_be_visible()
    await tab_to("Sign in")
    await keys.press("Enter")
    await expect(person.page.locator("input[name=customer]")).to_be_visible()
    await tab_to("Name of another customer")
    await keys.type(f"keyboard-{uuid.uuid4().hex[:8]}")
    await keys.press("Enter")
    await person.see("You have no booking yet")
    await tab_to("Book")
    await keys.press("Enter")
    await expect(person.page.get_by_role("heading", name="Choose a hospital")).to_be_focused()
    await tab_to("Name of the hospital")
    await keys.type(hospital)
    await expect(person.page.locator(".cards .card")).to_have_count(1)
    await tab_to(hospital)
    await keys.press("Enter")
    await expect(person.page.locator("button.day")).to_be_visible()
    await tab_to("2 left")
    await keys.press("Enter")
    await tab_to("Book it")
    await keys.press("Enter")
    await person.status("COMPLETED")
    await person.see("You are booked")
    await tab_to("Your reservation")
    await keys.press("Enter")
    await tab_to("Cancel")
    await keys.press("Enter")
    await expect(person.dialog).to_be_visible()
    await keys.press("Escape")
    await expect(person.button("Cancel")).to_be_focused()  # where one was


@pytest.mark.parametrize("size", [(320, 568), (640, 450)], ids=["320 px", "200 percent of 1280 px"])
async def test_nothing_is_cut_off_on_the_smallest_phone_and_at_double_size(
    world: World, opens: Opens, size: tuple[int, int]
) -> None:
    hospital, day = await world.new_hospital(capacity=2, doses=2)
    person = await opens(size=size, reduced_motion="reduce")
    await person.sign_in(customer=f"small-{uuid.uuid4().hex[:8]}")
    await person.see("You have no booking yet")
    await person.fits()
    await person.book(hospital, day)
    await person.status("COMPLETED")
    await person.fits()
    await person.follow("Your reservation")
    await expect(person.page.locator(".timeline li")).to_have_count(3)
    await person.fits()
    moving = "document.getAnimations().filter((one) => one.playState === 'running').length"
    assert await person.page.evaluate(moving) == 0, "who asked for less motion sees none"
