"""Writes a picture of every screen, at phone's and at desktop's width, in both languages:

    python -m tests.browser.screenshots DIR [--readme]

It starts a mesh of its own for that, with a hospital where 500 people are expected today. With --readme it also writes
the two pictures of the README, in docs/images, as small as they can be.
"""

import argparse
import asyncio
import io
import tempfile
from pathlib import Path

import grpc.aio
from PIL import Image
from playwright.async_api import Browser, async_playwright

from mesh import ROOT
from mesh.machine import Mesh
from tests.conftest import free_base_port
from tests.e2e.conftest import World

from .person import DESKTOP, PHONE, TABLET, launched
from .screens import Stage, screens, staged
from .test_operator import garbage

ROWS = 500
IMAGES = ROOT / "docs" / "images"


async def pictures(browser: Browser, stage: Stage, folder: Path) -> None:
    """Every screen, four times. What is longer than three windows is cut off."""
    for language in ("ko-KR", "en-GB"):
        for size in (PHONE, DESKTOP):
            async for name, person in screens(browser, stage, size, language):
                file = folder / f"{name}-{size[0]}-{language[:2]}.png"
                height = await person.page.evaluate("document.documentElement.scrollHeight")
                clip = {"x": 0, "y": 0, "width": size[0], "height": min(height, 3 * size[1])}
                whole = not await person.dialog.count()  # a dialog is where the window is
                await person.page.screenshot(path=file, **({"full_page": True, "clip": clip} if whole else {}))  # type: ignore[arg-type]
                print(file)


async def of_the_readme(browser: Browser, stage: Stage) -> None:
    """The customer's phone in Korean, and the manager's tablet in English, with as few colours as do."""
    IMAGES.mkdir(exist_ok=True)
    for wanted, size, language in (("customer-reservation", PHONE, "ko-KR"), ("manager-day", TABLET, "en-GB")):
        async for name, person in screens(browser, stage, size, language):  # type: ignore[arg-type]
            if name == wanted:
                image = Image.open(io.BytesIO(await person.page.screenshot()))
                few = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
                few.save(IMAGES / f"{wanted.split('-')[0]}.png", optimize=True)
                break


async def main(folder: Path, readme: bool) -> None:
    """Starts a mesh, sets the stage, takes the pictures, and stops the mesh."""
    with tempfile.TemporaryDirectory() as home:
        mesh = Mesh(Path(home), free_base_port())
        try:
            await asyncio.to_thread(mesh.up)
            async with grpc.aio.insecure_channel(mesh.gateway) as channel, async_playwright() as playwright:
                world = World(mesh, channel)
                stage = await staged(world, 40 if readme else ROWS)
                await garbage(world, 3)
                browser = await launched(playwright)
                await (of_the_readme(browser, stage) if readme else pictures(browser, stage, folder))
                await browser.close()
        finally:
            await asyncio.to_thread(mesh.down)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--readme", action="store_true", help="the two pictures of the README instead, in docs/images")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(arguments.folder, arguments.readme))
