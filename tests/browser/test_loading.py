"""The page is small, is there quickly on a slow network, and survives its own update."""

import json
import re
import time
import uuid

import httpx
import pytest
from playwright.async_api import Response, Route, expect

from tests.e2e.conftest import World

from .conftest import Opens
from .person import Person

# What developers of browsers call slow 4G: bytes a second, and milliseconds there and back.
SLOW_4G = {"offline": False, "latency": 150, "downloadThroughput": 1.6e6 / 8, "uploadThroughput": 750e3 / 8}
FIRST_LOAD = 150_000  # bytes, compressed


async def test_the_first_load_is_small(opens: Opens) -> None:
    person = await opens()
    answers: list[Response] = []
    person.context.on("response", lambda answer: answers.append(answer))
    await person.page.goto("/", wait_until="networkidle")
    await expect(person.button("Sign in")).to_be_visible()
    sizes = {answer.url: (await answer.request.sizes())["responseBodySize"] for answer in answers}
    print(f"first load: {sum(sizes.values()):,} bytes in {len(sizes)} answers")
    assert {httpx.URL(url).netloc for url in sizes} == {httpx.URL(person.origin).netloc}, "no third party is asked"
    assert 0 < sum(sizes.values()) < FIRST_LOAD, sizes


async def usable(person: Person, to: str, what: str) -> str:
    """The seconds that it takes on slow 4G from going there until this can be used, and how often the page asks."""
    # What a page has seen is read when the page says that it is there, so that the wait itself is not measured.
    await person.page.add_init_script(f"""new MutationObserver((_, observer) => {{
        if (document.querySelector({json.dumps(what)})) {{
            observer.disconnect();
            requestAnimationFrame(() => setTimeout(() => (window.usable = performance.timeOrigin + performance.now())));
        }}
    }}).observe(document, {{childList: true, subtree: true, attributes: true}})""")
    asked: list[str] = []
    person.page.on("request", lambda request: asked.append(request.url))
    devtools = await person.context.new_cdp_session(person.page)
    await devtools.send("Network.enable")
    await devtools.send("Network.emulateNetworkConditions", SLOW_4G)
    begin = time.time()
    await person.page.goto(to, wait_until="commit")
    await expect(person.page.locator(what).first).to_be_visible()
    end = await (await person.page.wait_for_function("() => window.usable")).json_value()
    return f"{end / 1000 - begin:.2f} s, {len(asked)} requests"


async def test_the_page_can_be_used_soon_on_slow_4g(
    world: World, opens: Opens, capsys: pytest.CaptureFixture[str]
) -> None:
    """The times are told, not tested, since they depend on what else the machine does."""
    await world.new_hospital(capacity=1)
    stranger, customer = await opens(), await opens()
    await customer.sign_in(customer=f"loading-{uuid.uuid4().hex[:8]}", to="/customer")
    await customer.see("You have no booking yet")
    figures = {
        "the sign-in button, nothing cached": await usable(stranger, "/", ".welcome .button.main"),
        "the hospitals, signed in": await usable(customer, "/customer/book", ".cards a.card"),
    }
    with capsys.disabled():
        print(f" [slow 4G: {figures}] ", end="")


async def test_a_part_that_an_update_has_removed_is_found_by_loading_the_page_once_more(
    world: World, opens: Opens
) -> None:
    hospital, _ = await world.new_hospital(doses=1)
    person = await opens()
    missing = 0

    async def gone(route: Route) -> None:
        nonlocal missing
        missing += 1
        await route.fulfill(status=404)

    await person.context.route(re.compile(r"/assets/manager-"), gone, times=1)
    await person.sign_in(manager=hospital)
    await person.see("There are no bookings on this day.")
    assert missing == 1
    person.faults.clear()

    await person.context.route(re.compile(r"/assets/operator-"), gone)
    other = await opens()
    await other.context.route(re.compile(r"/assets/operator-"), gone)
    await other.page.goto("/")
    await other.press("Sign in")
    await other.choose(other.page, operator=True)
    await expect(other.button("Try again")).to_be_visible()  # and it does not load itself for ever
    assert missing == 3
    other.faults.clear()


async def test_where_the_configuration_names_no_endpoints_the_issuer_is_asked_for_them(
    world: World, opens: Opens
) -> None:
    """As with any provider that the chart's values name by its issuer alone. The local issuer does not describe itself
    and is not called by its name, so the test answers for it.
    """
    async with httpx.AsyncClient(trust_env=False) as http:
        told = (await http.get(f"http://{world.mesh.gateway}/config.json")).json()
    endpoints = {name: told.pop(name) for name in list(told) if name.endswith("_endpoint")}
    assert len(endpoints) == 3
    described = []

    async def describe(route: Route) -> None:
        described.append(route.request.url)
        await route.fulfill(body=json.dumps(endpoints), headers={"access-control-allow-origin": "*"})

    person = await opens()
    await person.context.route("**/config.json", lambda route: route.fulfill(body=json.dumps(told)))
    await person.context.route("**/.well-known/openid-configuration", describe)
    await person.sign_in(customer="minji")
    assert set(described) == {f"{told['issuer']}/.well-known/openid-configuration"}
