"""Whether the built page, web/dist, is of the sources that stand beside it; told without Node.

web/build.mjs writes the stamp to web/dist.stamp, as hexadecimal digits and a line feed. It is the SHA-256 of
"NAME\\nSHA-256 OF THE CONTENT IN HEXADECIMAL\\n" for every input of the build, in the order of the names' bytes. The
inputs are web/build.mjs, web/package.json, web/package-lock.json, web/tsconfig.json and all files under web/src and
protos. Names are relative to the repository, with slashes.
"""

import hashlib
from pathlib import Path

from mesh import ROOT

STAMP = ROOT / "web" / "dist.stamp"
INPUTS = ("web/build.mjs", "web/package.json", "web/package-lock.json", "web/tsconfig.json")
FOLDERS = ("web/src", "protos")


def stamp(root: Path = ROOT) -> str:
    """The stamp of the sources as they are now."""
    found = [file for folder in FOLDERS for file in (root / folder).rglob("*") if file.is_file()]
    names = [*INPUTS, *(file.relative_to(root).as_posix() for file in found)]
    lines = (
        f"{name}\n{hashlib.sha256((root / name).read_bytes()).hexdigest()}\n" for name in sorted(names, key=str.encode)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()
