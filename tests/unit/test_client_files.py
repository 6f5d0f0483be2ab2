"""What a release gives the author of a client is enough without this checkout, and the same whenever it is made."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from mesh.contracts import release
from mesh.contracts.generation import IMAGE
from tests.releases import unpack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a release."""
    folder = tmp_path_factory.mktemp("release")
    for name, content in release.files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def protos(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the protos' archive unpacks to."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(next(folder.glob("*-protos.tar.gz"))) as archive:
        unpack(archive, unpacked)
    [top] = unpacked.iterdir()
    return top


def test_the_protos_alone_compile_to_what_the_gateway_serves(protos: Path, tmp_path: Path) -> None:
    image = descriptor_pb2.FileDescriptorSet.FromString(IMAGE.read_bytes())
    names = {str(file.relative_to(protos)) for file in protos.rglob("*") if file.is_file()}
    assert names == {file.name for file in image.file}
    # google/protobuf of the archive is the compiler's own copy: nothing is read from outside.
    compiled = tmp_path / "compiled.binpb"
    ours = sorted(name for name in names if not name.startswith("google/protobuf/"))
    run_protoc = "import sys; from grpc_tools import protoc; sys.exit(protoc.main(sys.argv))"
    options = [f"-I{protos}", "--include_imports", f"--descriptor_set_out={compiled}"]
    subprocess.run([sys.executable, "-c", run_protoc, *options, *ours], check=True)
    for file in image.file:
        file.ClearField("source_code_info")
    again = {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file}
    for file in image.file:
        if not file.name.startswith("google/protobuf/"):  # of the compiler's version, not of the library's
            assert again[file.name] == file


def test_the_archive_is_the_same_whenever_it_is_made(folder: Path) -> None:
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert release.files() == files
    with tarfile.open(next(folder.glob("*-protos.tar.gz"))) as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == sorted(m.name for m in members)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_grpcurl_shows_the_contracts_comments(folder: Path) -> None:
    protoset = next(folder.glob("*.binpb"))
    method = "vaccination.reservation.v1.ReservationService.CreateReservation"
    told = subprocess.check_output(["grpcurl", "-protoset", protoset, "describe", method], text=True)
    assert "// May be repeated with the same request_id and content" in told
    assert "option (.google.api.http)" in told
