"""What the author of a client needs of a release, without this checkout: `python -m mesh.contracts.release DIR`.

- `vaccination-VERSION-protos.tar.gz`: the contracts' sources with all that they import, under one folder.
- `vaccination-VERSION.binpb`: the same compiled, with the comments, as a FileDescriptorSet: `grpcurl -protoset`.
- `vaccination-VERSION-openapi.json`: REST, described; the gateway serves the same.

The same commit gives the same files.
"""

import gzip
import io
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import grpc_tools
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool

from mesh import CHART
from mesh.contracts import printer
from mesh.contracts.generation import GOOGLEAPIS, IMAGE, PROTOS, RULES

_SOURCES = (PROTOS, GOOGLEAPIS, Path(grpc_tools.__file__).parent / "_proto")
_ABOUT_RULES = f"""\
// Printed from the compiled form in the Python package protovalidate {version("protovalidate")}, which has no comments.
// Copyright Buf Technologies, Inc., under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0

"""


def files() -> dict[str, bytes]:
    """The files by name."""
    release = f"vaccination-{yaml.safe_load((CHART / 'Chart.yaml').read_text())['appVersion']}"
    return {
        f"{release}-protos.tar.gz": _archive(f"{release}-protos"),
        f"{release}.binpb": IMAGE.read_bytes(),
        f"{release}-openapi.json": (CHART / "files" / "openapi.json").read_bytes(),
    }


def _sources() -> Iterator[tuple[str, bytes]]:
    """Name and text of every file that the compiled contracts consist of, in the order of the names."""
    pool = descriptor_pool.DescriptorPool()
    image = descriptor_pb2.FileDescriptorSet.FromString(IMAGE.read_bytes()).file
    for file in image:
        pool.Add(file)
    for file in sorted(image, key=lambda file: file.name):
        if file.name == RULES:
            yield file.name, (_ABOUT_RULES + printer.source(file, pool)).encode()
        else:
            [path] = (folder / file.name for folder in _SOURCES if (folder / file.name).exists())
            yield file.name, path.read_bytes()


def _archive(folder: str) -> bytes:
    content = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=content, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, text in _sources():
            about = tarfile.TarInfo(f"{folder}/{name}")  # no times, no owner
            about.size = len(text)
            archive.addfile(about, io.BytesIO(text))
    return content.getvalue()


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (target / name).write_bytes(content)
        print(target / name, file=sys.stderr)
