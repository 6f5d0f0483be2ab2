"""The page as the installation serves it, and people who sign in on it at an OpenID Connect provider of their own."""

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.browser.person import launched, opened
from tests.e2e.conftest import World, delivery
from tests.e2e.provider import CLAIMS, PAGE, PASSWORD, SCOPE, Canaille

from .conftest import Release

Figures = Callable[[str], None]


@pytest.mark.quick
def test_everybody_gets_the_page_and_is_told_where_to_sign_in(release: Release, gateway: str, figures: Figures) -> None:
    issuer = release.values["auth"]["issuer"]
    with httpx.Client(base_url=f"http://{gateway}", trust_env=False, timeout=60) as browser:
        page = browser.get("/")
        assert (page.status_code, page.headers["content-encoding"]) == (200, "gzip")
        assert page.headers["cache-control"] == "no-cache"
        policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
        assert (policy["default-src"], policy["script-src"]) == ("'none'", "'self'")
        assert policy["connect-src"] == f"'self' {issuer}"
        config = browser.get("/config.json").json()
        assert (config["issuer"], config["client_id"]) == (issuer, "vaccination-page")
        named = re.findall(r'(?:src|href)="(/assets/[^"]+)"', page.text)
        files = [browser.get(path) for path in named]
        assert {file.status_code for file in files} == {200}
        assert {file.headers["cache-control"] for file in files} == {"public, max-age=31536000, immutable"}
        assert browser.get("/assets/of-another-version.js").status_code == 404
    compressed = sum(int(file.headers["content-length"]) for file in (page, *files))
    figures(f"the page and the {len(files)} files that it names: {compressed / 1000:.0f} kB compressed")


def address_here(release: Release) -> str:
    """This machine's address that pods reach: the one from which it calls the cluster's node."""
    [node, *_] = release.get("nodes")["items"]
    [internal, *_] = [a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((internal, 9))  # no packet is sent
        return str(way.getsockname()[0])


def free_port(host: str) -> int:
    """A port that nobody has, until somebody takes it."""
    with socket.create_server((host, 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def provider(release: Release, tmp_path: Path) -> Iterator[Canaille]:
    """A provider beside the cluster, at which a customer and an operator have a password. The installation trusts it
    while the test runs: the gateway's pods fetch its keys, and it knows where the page is.
    """
    host, page_at = address_here(release), f"http://127.0.0.1:{free_port('127.0.0.1')}"
    people = [("minji", "customer", ""), ("admin", "operator", "")]
    terminal = [("terminal", "vaccination", "RS256")]
    provider = Canaille(tmp_path / "canaille", free_port(host), people, terminal, host=host, page=page_at)
    auth = {
        "issuer": provider.discovered["issuer"],
        "audiences": ["vaccination"],
        "jwksUri": provider.discovered["jwks_uri"],
        "claims": CLAIMS,
        "signIn": {"clientId": PAGE, "scope": SCOPE},
    }
    try:
        release.upgrade({"auth": auth})
        release.settled()
        yield provider
    finally:
        provider.stop()
        release.upgrade({})


@pytest.fixture
def origin(release: Release, provider: Canaille) -> Iterator[str]:
    """The page's origin. On a machine's own address a browser takes plain text for secure, as it takes HTTPS elsewhere;
    without that it would have no Web Crypto, and without Web Crypto there is no PKCE.
    """
    ports = release.get("service", "gateway")["spec"]["ports"]
    [port] = [port["port"] for port in ports if port["name"] != "metrics"]
    with release.forwarded("service/gateway", port, local=urlsplit(provider.page).port):
        yield provider.page


async def log_in(page: Page, person: str) -> None:
    """Presses the page's button, and fills in the provider's forms, one after the other."""
    await page.locator(".welcome .button.main").click()
    for name, value in (("login", person), ("password", PASSWORD)):
        await page.locator(f"input[name={name}]").fill(value)
        await page.locator(f"input[name={name}]").press("Enter")


async def test_a_customer_signs_in_at_a_provider_books_sees_the_dose_come_and_signs_out(
    provider: Canaille, origin: str, people: World, figures: Figures
) -> None:
    token = (await asyncio.to_thread(provider.log_in, "terminal", "admin"))["access_token"]
    people.operator = people.bearer(token)
    hospital, day = await people.new_hospital(capacity=1)
    async with async_playwright() as playwright, await launched(playwright) as browser:
        customer = await opened(browser, origin)
        await customer.page.goto("/")
        await log_in(customer.page, "minji")
        await customer.see("You have no booking yet")
        customer.faults.clear()  # the provider's pages break their own policy
        await customer.book(hospital, day)
        await customer.status("APPROVED")
        await people.operator.register(hospital, delivery(1))
        await customer.status("COMPLETED")

        await customer.press("Sign out")
        await expect(customer.page).to_have_url(f"{origin}/")
        assert customer.faults == []
        # Who has signed out is out at the provider, too: it asks again.
        await customer.page.locator(".welcome .button.main").click()
        await expect(customer.page.locator("input[name=login]")).to_be_visible()
    figures("a provider's customer booked on the page, saw COMPLETED come, and signed out there and at the provider")
