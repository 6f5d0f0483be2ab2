"""Reflection with comments: the contracts' comments are part of them, and the generated code does not have them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor


class Commented:
    """What reflection asks of a descriptor pool, with the comments of `image`, the compiled contracts.

    The image is read when somebody asks for the first time. Most processes are never asked, and keep no comments.
    """

    def __init__(self, image: Path) -> None:
        self._image, self._pool = image, descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileByName(self, name: str) -> "_File":  # noqa: N802
        """See DescriptorPool."""
        return _File(self._pool.FindFileByName(name), self._comments)

    def FindFileContainingSymbol(self, symbol: str) -> "_File":  # noqa: N802
        """See DescriptorPool, which knows all symbols but methods."""
        try:
            file = self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            file = self._pool.FindMethodByName(symbol).containing_service.file
        return _File(file, self._comments)

    @cached_property
    def _comments(self) -> dict[str, descriptor_pb2.SourceCodeInfo]:
        """Of each file only the places that have comments: most say in which line something stands."""
        comments = {}
        for file in descriptor_pb2.FileDescriptorSet.FromString(self._image.read_bytes()).file:
            places = [place for place in file.source_code_info.location if place.leading_comments]
            comments[file.name] = descriptor_pb2.SourceCodeInfo(location=places)
        return comments


@dataclass(frozen=True)
class _File:
    """What reflection asks of a file's descriptor."""

    _file: FileDescriptor
    _comments: Mapping[str, descriptor_pb2.SourceCodeInfo]

    @property
    def name(self) -> str:
        return self._file.name

    @property
    def dependencies(self) -> "list[_File]":
        return [_File(file, self._comments) for file in self._file.dependencies]

    def CopyToProto(self, proto: descriptor_pb2.FileDescriptorProto) -> None:  # noqa: N802
        self._file.CopyToProto(proto)
        if comments := self._comments.get(self.name):
            proto.source_code_info.CopyFrom(comments)
