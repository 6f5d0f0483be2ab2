"""People at browsers, on the page that the gateway serves, signed in at the local issuer's own page."""

from collections.abc import AsyncIterator, Awaitable, Callable

import grpc.aio
import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from mesh.machine import Mesh
from tests.e2e.conftest import World

from .person import Person, launched, opened

Opens = Callable[..., Awaitable[Person]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here share an event loop, since a browser and a channel belong to the loop that made them."""
    for item in items:
        if "tests/browser" in item.nodeid:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def everything(mesh: Mesh) -> AsyncIterator[World]:
    """The mesh, for the whole run."""
    async with grpc.aio.insecure_channel(mesh.gateway, options=[("grpc.enable_retries", 0)]) as channel:
        yield World(mesh, channel)


@pytest.fixture
def world(everything: World) -> World:
    """The mesh with everything running."""
    everything.mesh.up()  # starts what an earlier test stopped
    return everything


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """One browser; every person has a profile of their own in it."""
    async with async_playwright() as playwright:
        browser = await launched(playwright)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def opens(world: World, chromium: Browser) -> AsyncIterator[Opens]:
    """Opens a browser for another person. In the end, no page may have failed or tried what its policy forbids."""
    people: list[Person] = []

    async def another(**how: object) -> Person:
        people.append(await opened(chromium, f"http://{world.mesh.gateway}", **how))  # type: ignore[arg-type]
        return people[-1]

    yield another
    for person in people:
        await person.context.close()
    assert [fault for person in people for fault in person.faults] == []
