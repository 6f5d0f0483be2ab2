"""Generates the contracts' code (`python -m mesh.contracts`), and with `--chart` the chart's files made from contracts.

One git-ignored tree, `vaccination/` (with `buf/` beside it for protovalidate's own messages), holds the Python code and
`image.binpb`, the compiled contracts that buf and Envoy's transcoder read. Third-party protos come from pinned wheels:
googleapis-common-protos ships its sources, protovalidate only the descriptor.

The chart's files are committed, since the chart is installed without Python. Only `./dev gen` writes them, so that a
test can tell when somebody forgot to.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import google.api
from google.protobuf import any_pb2, descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2

from mesh import ROOT

PROTOS = ROOT / "protos"
GOOGLEAPIS = Path(next(iter(google.api.__path__))).parents[1]
OUT = ROOT / "vaccination"
IMAGE = OUT / "image.binpb"
# Error details travel in google.rpc.Status: the transcoder needs their messages to write them as JSON.
RULES = "buf/validate/validate.proto"
ALSO = [RULES, "google/rpc/error_details.proto", "google/rpc/status.proto"]


def _protovalidate_descriptors() -> bytes:
    from protovalidate._gen.buf.validate import validate_pb  # the wheel has no other form of it

    files = descriptor_pb2.FileDescriptorSet()
    for module in (any_pb2, descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.append(descriptor_pb2.FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary()))
    return files.SerializeToString()


def _fingerprint(protos: list[Path]) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for package in ("grpcio-tools", "protovalidate", "mypy-protobuf", "googleapis-common-protos"):
        digest.update(version(package).encode())
    for proto in protos:
        digest.update(str(proto.relative_to(PROTOS)).encode() + proto.read_bytes())
    return digest.hexdigest()


def generate() -> bool:
    """Brings the generated tree up to date; returns whether it had to."""
    from grpc_tools import protoc

    protos = sorted(PROTOS.rglob("*.proto"))
    stamp = OUT / ".stamp"
    fingerprint = _fingerprint(protos)
    if stamp.exists() and stamp.read_text() == fingerprint:
        return False
    OUT.mkdir(exist_ok=True)
    third_party = OUT / "third_party.binpb"
    third_party.write_bytes(_protovalidate_descriptors())
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # protoc-gen-mypy
    ours = [str(p.relative_to(PROTOS)) for p in protos]
    common = [
        "protoc",
        f"--descriptor_set_in={third_party}",
        f"-I{PROTOS}",
        f"-I{GOOGLEAPIS}",
    ]
    image = ["--include_imports", "--include_source_info", f"--descriptor_set_out={IMAGE}"]
    code = [f"--{plugin}={ROOT}" for plugin in ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")]
    quiet = ["--mypy_opt=quiet", "--mypy_grpc_opt=quiet"]
    for arguments in (common + image + ours + ALSO, common + code + quiet + [*ours, RULES]):
        if protoc.main(arguments) != 0:
            raise SystemExit("the contracts do not compile")
    stamp.write_text(fingerprint)
    return True


def _without_rules(messages: Iterable[descriptor_pb2.DescriptorProto]) -> None:
    for message in messages:
        for part in (*message.field, *message.oneof_decl):
            part.ClearField("options")
        _without_rules(message.nested_type)


def chart_files() -> dict[str, bytes]:
    """The committed files by name: contracts for Envoy's transcoder, OpenAPI, replies, fields, the values' README.

    The contracts are without comments and rules, a quarter of the image, because istiod sends them to each gateway.
    """
    from mesh.contracts import bodies, openapi, replies, values

    image = IMAGE.read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(image)
    [rules] = (file for file in files.file if file.name == RULES)
    files.file.remove(rules)
    for file in files.file:
        file.ClearField("source_code_info")
        if RULES in file.dependency:
            file.dependency.remove(RULES)
            _without_rules(file.message_type)
    # Without spaces: the gateway's configuration has it as text in a text, and an object of Kubernetes has a limit.
    description = json.dumps(openapi.document(image), ensure_ascii=False, separators=(",", ":")) + "\n"
    return {
        "files/contracts.binpb": files.SerializeToString(),
        "files/openapi.json": description.encode(),
        "files/local-replies.json": replies.text().encode(),
        "files/fields.lua": bodies.text(image).encode(),
        "README.md": values.readme().encode(),
    }
