"""Keeps a release: `python -m tests.releases 0.3.0 321dd74` writes tests/releases/0.3.0.tar.xz from that commit.

The same commit gives the same file, whoever makes it and whenever.
"""

import io
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from . import FOLDER, unpack

# What the Dockerfile copies into the image of the services, and the chart that goes with it.
SOURCES = ("services", "mesh", "protos", "helm/vaccination")
GENERATED = ("vaccination", "buf")
KEPT = ("services", "mesh/__init__.py", "mesh/gateway.py", "mesh/istio", "helm/vaccination", *GENERATED)
# Only type checkers and the generator itself read these.
LEFT_OUT = {".pyi", ".binpb", ".stamp"}


def keep(version: str, commit: str) -> Path:
    """Writes the file, and returns where it is."""
    with tempfile.TemporaryDirectory() as name:
        checkout = Path(name)
        archive = subprocess.run(["git", "archive", commit, *SOURCES], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as sources:
            unpack(sources, checkout)
        # The contracts' code is made by the generator of that commit.
        its_own = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run([sys.executable, "-P", "-m", "mesh.contracts"], check=True, cwd=checkout, env=its_own)
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as release:
            for file in _files(checkout):
                about = tarfile.TarInfo(str(file.relative_to(checkout)))  # no times, no owner
                about.size = file.stat().st_size
                with file.open("rb") as opened:
                    release.addfile(about, opened)
    target = FOLDER / f"{version}.tar.xz"
    target.write_bytes(lzma.compress(content.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return target


def _files(checkout: Path) -> list[Path]:
    kept = [checkout / path for path in KEPT]
    if missing := [str(path.relative_to(checkout)) for path in kept if not path.exists()]:
        raise SystemExit(f"that commit has no {', '.join(missing)}: see the Dockerfile for what its image has")
    found = [file for path in kept for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    chart = checkout / "helm"
    return sorted(f for f in found if chart in f.parents or not {f.suffix, f.name} & LEFT_OUT)


if __name__ == "__main__":
    print(keep(*sys.argv[1:]))
