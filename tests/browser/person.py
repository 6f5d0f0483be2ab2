"""Somebody at a browser."""

import re
import shutil
from dataclasses import dataclass, field
from typing import Any, Literal

from playwright.async_api import Browser, BrowserContext, Locator, Page, Playwright, expect

PHONE, TABLET, DESKTOP = (390, 844), (1024, 768), (1280, 900)
# Chromium says so on the console when a request fails, which is no fault of the page.
OF_THE_NETWORK = re.compile(r"Failed to load resource|net::ERR_")

# What is waited for is there within a fraction of a second, except on a machine that is busy.
expect.set_options(timeout=60_000)


async def launched(playwright: Playwright) -> Browser:
    """Debian's Chromium, which `./dev test` installs. As root, as in a container, it has no sandbox of its own; and a
    container may have little shared memory."""
    program = shutil.which("chromium")
    assert program, "the tests need Debian's package chromium"
    return await playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])


async def opened(
    browser: Browser,
    origin: str,
    size: tuple[int, int] = PHONE,
    language: Literal["en-GB", "ko-KR"] = "en-GB",
    **context: Any,
) -> "Person":
    """A new browser profile with an empty page in it, which nobody has signed in at."""
    width, height = size
    made = await browser.new_context(
        base_url=origin, viewport={"width": width, "height": height}, locale=language, **context
    )
    made.set_default_timeout(60_000)
    person = Person(made, origin)
    made.on("weberror", lambda error: person.faults.append(str(error.error)))
    made.on(
        "console",
        lambda said: (
            person.faults.append(said.text) if said.type == "error" and not OF_THE_NETWORK.search(said.text) else None
        ),
    )
    person.page = await made.new_page()
    return person


@dataclass
class Person:
    """A person with one browser; `page` is the tab in front, and `faults` is what went wrong in any of the tabs."""

    context: BrowserContext
    origin: str
    faults: list[str] = field(default_factory=list)
    page: Page = field(init=False)

    async def sign_in(
        self, *, customer: str = "", manager: str = "", operator: bool = False, to: str = "/", page: Page | None = None
    ) -> None:
        """Opens the page and signs in, as the customer, as the manager of a hospital, or as the operator."""
        page = page or self.page
        await page.goto(to)
        await page.locator(".welcome .button.main").click()
        await self.choose(page, customer=customer, manager=manager, operator=operator)
        await expect(page.locator("header .tools button")).to_have_count(2)  # the language, and signing out

    async def choose(self, page: Page, *, customer: str = "", manager: str = "", operator: bool = False) -> None:
        """Chooses at the issuer's page who one is."""
        if operator:
            await page.locator("button[name=operator]").click()
        else:
            name, value = ("customer", customer) if customer else ("manager", manager)
            await page.locator(f"input[name={name}]").fill(value)
            await page.locator(f"input[name={name}]").press("Enter")

    async def see(self, text: str | re.Pattern[str], within: str = "body") -> None:
        """Waits until the text can be seen."""
        await expect(self.page.locator(within).get_by_text(text).first).to_be_visible()

    def button(self, name: str) -> Locator:
        """The button of exactly this name."""
        return self.page.get_by_role("button", name=name, exact=True)

    async def press(self, name: str) -> None:
        """Presses the button of exactly this name."""
        await self.button(name).click()

    async def follow(self, name: str | re.Pattern[str]) -> None:
        """Follows a link."""
        await self.page.get_by_role("link", name=name).first.click()

    @property
    def dialog(self) -> Locator:
        """The open dialog."""
        return self.page.locator("dialog[open]")

    async def confirm(self) -> None:
        """Does what the open dialog is about, and waits until it is done."""
        await self.dialog.locator("button.main, button.danger").last.click()
        await expect(self.dialog).to_have_count(0)

    async def choose_day(self, hospital: str, day: object) -> None:
        """From the list of hospitals to the dialog that asks whether to book this day."""
        await self.page.locator("input[type=search]").fill(hospital)
        await self.page.locator(f'.cards a[href*="/book/{hospital}"]').click()
        await self.page.locator(f'button.day[data-date="{day}"]').click()
        await expect(self.dialog).to_be_visible()

    async def book(self, hospital: str, day: object) -> None:
        """Books, from the screen of somebody who has no booking."""
        await self.page.locator('a.button.main[href="/customer/book"]').click()
        await self.choose_day(hospital, day)
        await self.dialog.locator(".button.main").click()

    async def status(self, status: str, *, page: Page | None = None) -> None:
        """Waits until the booking on the screen has the status."""
        await expect((page or self.page).locator(f'.ticket[data-status="{status}"]')).to_be_visible()

    async def fits(self) -> None:
        """The page is nowhere wider than its window."""
        width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert await self.page.evaluate(width) <= 0, f"{self.page.url} has to be scrolled sideways"
