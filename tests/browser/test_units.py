"""The page's own unit tests, in web/test."""

import asyncio
import subprocess

from mesh import ROOT


async def test_the_page_is_well_typed_and_its_own_tests_pass() -> None:
    command = ["node", "build.mjs", "test"]
    ran = await asyncio.to_thread(subprocess.run, command, cwd=ROOT / "web", capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
