"""The page comes through the gateway to everybody, is kept by browsers, and stays when everything else is down."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from mesh.machine.home import ISSUER, SERVICES, WEB

from .conftest import World, refused


@pytest.fixture
async def browser(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """Asks the gateway as a browser does, without a token."""
    async with httpx.AsyncClient(base_url=f"http://{world.mesh.gateway}", trust_env=False, timeout=15) as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/", "/index.html", "/customer", "/manager/lots", "/operator", "/signed-in?code=a&state=b"]
)
async def test_everybody_gets_the_page_and_asks_for_it_again_each_time(browser: httpx.AsyncClient, path: str) -> None:
    page = await browser.get(path)
    assert page.status_code == 200
    assert page.text.lower().startswith("<!doctype html>")
    assert page.headers["cache-control"] == "no-cache"
    again = await browser.get(path, headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_the_page_names_files_that_are_kept_for_a_year(browser: httpx.AsyncClient) -> None:
    page = (await browser.get("/")).text
    named = re.findall(r'(?:src|href)="(/assets/[^"]+)"', page)
    assert named
    for path in named:
        file = await browser.get(path)
        assert file.status_code == 200
        assert file.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert file.headers["content-type"].split(";")[0] in (
            "text/javascript",
            "text/css",
            "image/svg+xml",
            "image/png",
        )
    missing = await browser.get("/assets/of-another-version.js")
    assert (missing.status_code, missing.headers["cache-control"]) == (404, "no-store")


async def test_the_page_may_load_only_its_own_files_and_call_only_the_gateway_and_the_issuer(
    world: World, browser: httpx.AsyncClient
) -> None:
    page = await browser.get("/")
    config = (await browser.get("/config.json")).json()
    issuer = f"http://{world.mesh.home.address(ISSUER)}"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["connect-src"] == f"'self' {config['issuer']} {issuer}"
    assert policy["frame-ancestors"] == "'none'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert config["token_endpoint"] == f"{issuer}/token"
    assert not re.findall(r"(?:https?:)?//[^\s\"'<>]+", page.text), "no third-party host is contacted"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/my/reservations", 401),
        ("POST", "/v1/reservations", 401),
        ("POST", "/", 405),
        ("GET", "/readyz", 404),
        ("GET", "/.stamp", 404),
        ("GET", "/customers", 404),
        ("GET", "/assets/../config.json", 200),  # as browsers and Envoy read it: /config.json
        ("GET", "/assets/%2e%2e/%2e%2e/pyproject.toml", 404),
        ("GET", "/assets/..%2f..%2fpyproject.toml", 404),
    ],
)
async def test_beside_the_page_nothing_is_open_that_was_not(
    browser: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    url = httpx.URL(str(browser.base_url)).copy_with(raw_path=path.encode())
    answer = await browser.request(method, url)
    assert answer.status_code == status, answer.text


async def test_the_page_stays_up_while_every_service_is_down(world: World, browser: httpx.AsyncClient) -> None:
    await asyncio.gather(*(world.stop(service) for service in SERVICES))
    for path in ("/", "/config.json", "/customer"):
        assert (await browser.get(path)).status_code == 200
    assert (await browser.get("/v1/my/reservations")).status_code == 401


async def test_the_page_is_quick_while_approval_hangs_and_everybody_books(
    world: World, browser: httpx.AsyncClient
) -> None:
    hospital, day = await world.new_hospital(capacity=100)
    hanging = [world.mesh.processes.find(name) for name in world.mesh.home.processes_of("approval")]
    for process in hanging:
        assert process
        os.kill(process.pid, signal.SIGSTOP)
    try:
        bookings = [asyncio.create_task(refused(world.customer().create(hospital, day))) for _ in range(100)]
        slowest = 0.0
        while not all(booking.done() for booking in bookings):
            begin = time.monotonic()
            assert (await browser.get("/")).status_code == 200
            slowest = max(slowest, time.monotonic() - begin)
            await asyncio.sleep(0.01)
        assert {(await booking).code.name for booking in bookings} == {"RESOURCE_EXHAUSTED"}
        assert slowest < 2
    finally:
        for process in hanging:
            assert process
            os.kill(process.pid, signal.SIGCONT)


async def test_without_its_server_the_page_is_away_and_everything_else_is_not(
    world: World, browser: httpx.AsyncClient
) -> None:
    await world.stop(WEB)
    assert (await browser.get("/")).status_code == 503
    assert list(await world.customer().screen()) == []
    await world.start(WEB)
    assert (await browser.get("/")).status_code == 200
