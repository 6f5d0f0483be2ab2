"""The page's process serves over HTTP, takes no more of a request than it needs, and drains."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from mesh import ROOT
from services.chassis.addresses import EVERYWHERE
from services.chassis.http import LONGEST_BODY

from .test_process import HERE, free_port

Browser = httpx.AsyncClient


@pytest.fixture
def metrics_port() -> int:
    return free_port()


@pytest.fixture
async def browser(tmp_path: Path, metrics_port: int) -> AsyncIterator[Browser]:
    """The page, served by its own process, and somebody who asks for it."""
    (tmp_path / "index.html").write_text("<!doctype html><title>Vaccination</title>")
    port = free_port()
    env = os.environ | {
        "LISTEN": f"{EVERYWHERE}:{port}", "METRICS_LISTEN": f"{EVERYWHERE}:{metrics_port}", "FILES": str(tmp_path),
        "ISSUER": "https://id.example.org", "CLIENT_ID": "page",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.web", cwd=ROOT, env=env, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    while b"ready" not in await asyncio.wait_for(process.stdout.readline(), 30):
        pass
    async with Browser(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
        yield client
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_of_a_body_without_an_end_no_more_is_taken_than_a_form_has(browser: Browser) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 1000 * LONGEST_BODY:
            taken += LONGEST_BODY
            yield bytes(LONGEST_BODY)

    with contextlib.suppress(httpx.TransportError):  # who still sends may find the connection closed, and no answer
        assert (await browser.post("/", content=endless())).status_code == 413
    assert taken < 500 * LONGEST_BODY, "what is in the buffers between the two is sent, too"
    assert (await browser.post("/", content=bytes(LONGEST_BODY))).status_code == 405
    assert (await browser.get("/")).status_code == 200


async def test_pages_and_metrics_are_at_the_addresses_of_both_families(browser: Browser, metrics_port: int) -> None:
    for host in ("127.0.0.1", HERE):
        assert (await browser.get(browser.base_url.copy_with(host=host.strip("[]")))).status_code == 200
        assert "component_ready" in (await browser.get(f"http://{host}:{metrics_port}/metrics")).text


async def test_an_answer_without_content_tells_no_length_of_it(browser: Browser) -> None:
    page = await browser.get("/")
    head = await browser.head("/")
    assert (head.content, head.headers["content-length"]) == (b"", page.headers["content-length"])
    known = await browser.get("/", headers={"if-none-match": page.headers["etag"]})
    assert known.status_code == 304
    assert "content-length" not in known.headers
