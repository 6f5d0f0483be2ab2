"""Prints a compiled proto2 file as source, for those protos of others that come to us compiled only.

It prints what such files have today. A test compiles the text again, and finds what it does not print.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {value: name.removeprefix("TYPE_").lower() for name, value in _Field.Type.items()}
_LABELS = {value: name.removeprefix("LABEL_").lower() for name, value in _Field.Label.items()}
_HIGHEST = 536870912  # one more than the highest number of a field, which is `max` in source


def source(file: descriptor_pb2.FileDescriptorProto, pool: descriptor_pool.DescriptorPool) -> str:
    """The file's source without comments. `pool` knows the file and all that it imports."""
    return "\n".join(_Printer(pool).file(file)) + "\n"


class _Printer:
    def __init__(self, pool: descriptor_pool.DescriptorPool) -> None:
        self._pool = pool

    def file(self, file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
        """The lines of a file."""
        if file.syntax not in ("", "proto2"):
            raise ValueError(f"{file.name} is {file.syntax or 'of an edition'}: only proto2 is printed")
        yield from ('syntax = "proto2";', f"package {file.package};")
        yield from (f'import "{name}";' for name in file.dependency)
        yield from (f"option {option};" for option in self._options(file.options))
        for field in file.extension:
            yield from _block(f"extend {field.extendee}", [self._field(field)])
        for message in file.message_type:
            yield from self._message(message)
        for enum in file.enum_type:
            yield from self._enum(enum)

    def _message(self, message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
        yield from _block(f"message {message.name}", self._parts(message))

    def _parts(self, message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
        yield from (f"option {option};" for option in self._options(message.options))
        for nested in message.nested_type:
            yield from self._message(nested)
        for enum in message.enum_type:
            yield from self._enum(enum)
        for index, fields in groupby(message.field, lambda f: f.oneof_index if f.HasField("oneof_index") else None):
            if index is None:
                yield from map(self._field, fields)
            else:
                members = (self._field(field).removeprefix("optional ") for field in fields)
                yield from _block(f"oneof {message.oneof_decl[index].name}", members)
        for ext in message.extension_range:
            yield f"extensions {_range(ext.start, ext.end - 1)};"
        yield from _reserved((_range(part.start, part.end - 1) for part in message.reserved_range), message)

    def _enum(self, enum: descriptor_pb2.EnumDescriptorProto) -> Iterator[str]:
        values = [f"{value.name} = {value.number};" for value in enum.value]
        ends = (_range(part.start, part.end) for part in enum.reserved_range)
        yield from _block(f"enum {enum.name}", [*values, *_reserved(ends, enum)])

    def _field(self, field: _Field) -> str:
        options = ", ".join(self._options(field.options))
        declared = f"{_LABELS[field.label]} {field.type_name or _TYPES[field.type]} {field.name} = {field.number}"
        return f"{declared} [{options}];" if options else f"{declared};"

    def _options(self, options: Message) -> Iterator[str]:
        """Every option that is set, also those that only the pool knows."""
        known = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(options.DESCRIPTOR.full_name))
        for field, value in known.FromString(options.SerializeToString()).ListFields():
            name = f"(.{field.full_name})" if field.is_extension else field.name
            yield from (f"{name} = {_value(field, one)}" for one in (value if field.is_repeated else [value]))


def _value(field: FieldDescriptor, value: Any) -> str:
    if field.message_type:
        return f"{{{text_format.MessageToString(value, as_one_line=True)}}}"
    return json.dumps(value)  # text, truth and numbers are written as in JSON


def _range(first: int, last: int) -> str:
    if last + 1 == _HIGHEST:
        return f"{first} to max"
    return str(first) if first == last else f"{first} to {last}"


def _reserved(
    numbers: Iterable[str], of: descriptor_pb2.DescriptorProto | descriptor_pb2.EnumDescriptorProto
) -> Iterator[str]:
    if numbers := list(numbers):
        yield f"reserved {', '.join(numbers)};"
    if of.reserved_name:
        names = ", ".join(f'"{name}"' for name in of.reserved_name)
        yield f"reserved {names};"


def _block(head: str, lines: Iterable[str]) -> Iterator[str]:
    yield f"{head} {{"
    yield from (f"  {line}" for line in lines)
    yield "}"
