"""What a release gives the author of a client is enough to book with, in Go, in TypeScript and with grpcurl."""

import asyncio
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from mesh.contracts import release
from tests.e2e.conftest import World

HERE = Path(__file__).parent
GENERATE = ["buf", "generate", "../protos.tar.gz#strip_components=1", "--path", "vaccination"]
# How each client is made, and started.
CLIENTS = {
    "go": ([GENERATE, ["go", "vet", "."], ["go", "build", "-o", "booking", "."]], ["./booking"]),
    "typescript": (
        [["npm", "ci", "--no-audit", "--no-fund"], [*GENERATE, "--path", "google/rpc"], ["npx", "tsc"]],
        ["node", "dist/book.js"],
    ),
}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside of this checkout with a release's files, without the version in their names."""
    folder = tmp_path_factory.mktemp("released")
    for name, content in release.files().items():
        kind = next(kind for kind in ("protos.tar.gz", "openapi.json", "binpb") if name.endswith(kind))
        (folder / kind).write_bytes(content)
    return folder


async def run(folder: Path, command: list[str], env: Mapping[str, str] | None = None) -> str:
    """What the command prints; fails with all that it said."""
    ran = await asyncio.to_thread(subprocess.run, command, cwd=folder, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.mark.parametrize("language", CLIENTS)
async def test_a_client_made_of_the_archive_alone_books(language: str, released: Path, world: World) -> None:
    folder = released / language
    shutil.copytree(HERE / language, folder)
    making, starting = CLIENTS[language]
    for command in making:
        await run(folder, command)
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    [lot] = await world.operator.lots(hospital)
    customer = world.token(f"{language}-{uuid.uuid4()}", ["customer"])
    env = os.environ | {"GATEWAY": world.mesh.gateway, "TOKEN": customer, "HOSPITAL": hospital, "DAY": str(day)}
    assert json.loads(await run(folder, starting, env)) == {
        "decided": "RESERVATION_STATUS_APPROVED",
        "repeated": True,
        "screen": "RESERVATION_STATUS_COMPLETED",
        "lot": lot.lot_number,
        "refusal": "UNKNOWN_HOSPITAL",
    }


async def test_grpcurl_books_with_the_descriptor_set(released: Path, world: World) -> None:
    hospital, day = await world.new_hospital(capacity=1)
    customer = world.token(f"grpcurl-{uuid.uuid4()}", ["customer"])
    request = {"request_id": str(uuid.uuid4()), "hospital_id": hospital, "date": str(day)}
    options = ["-plaintext", "-protoset", "binpb", "-H", f"authorization: Bearer {customer}", "-d", json.dumps(request)]
    method = "vaccination.reservation.v1.ReservationService/CreateReservation"
    told = await run(released, ["grpcurl", *options, world.mesh.gateway, method])
    assert json.loads(told)["reservation"]["status"] == "RESERVATION_STATUS_APPROVED"
