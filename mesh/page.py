"""Whether the built page, web/dist, is of the sources that stand beside it; told without Node.

The stamp, which web/build.mjs writes to web/dist/.stamp as 64 hexadecimal digits and a line feed, is the SHA-256 of all
inputs of the build. These are all files under web/ that are in no folder named dist, node_modules or gen, and all
*.proto under protos/. Their names are relative to the repository, with slashes, sorted by code points. For each of them
these bytes follow one another: the name in UTF-8, a zero, the length of the content in bytes as decimal digits, a zero,
the content.
"""

import hashlib
from pathlib import Path

from mesh import ROOT

DIST = ROOT / "web" / "dist"
NOT_INPUTS = {"dist", "node_modules", "gen"}


def stamp(root: Path = ROOT) -> str:
    """The stamp of the sources as they are now."""
    inputs = [*(root / "protos").rglob("*.proto"), *(file for file in (root / "web").rglob("*") if file.is_file())]
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(root).as_posix(), file) for file in inputs):
        if not NOT_INPUTS & set(name.split("/")[1:-1]):
            content = file.read_bytes()
            digest.update(name.encode() + b"\0" + str(len(content)).encode() + b"\0" + content)
    return digest.hexdigest()
