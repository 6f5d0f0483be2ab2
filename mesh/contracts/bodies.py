"""What the gateway lets into the body of a REST call: the names of all fields, for the chart's bodies.lua."""

import re
from collections.abc import Iterator
from typing import Any

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor


def _methods(image: bytes) -> Iterator[tuple[MethodDescriptor, Any]]:
    """The RPCs that have a body in REST, each with its google.api.http."""
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(image).file
    for file in files:
        pool.Add(file)
    options = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.MethodOptions"))
    http = pool.FindExtensionByName(annotations_pb2.http.full_name)
    for name in sorted(file.name for file in files if file.package.startswith("vaccination.")):
        for service in pool.FindFileByName(name).services_by_name.values():
            for method in service.methods:
                parsed: Any = options.FromString(method.GetOptions().SerializeToString())
                if (rule := parsed.Extensions[http]).body:
                    yield method, rule


def _path(template: str) -> str:
    """A path with variables as a pattern of Lua: a variable is one segment."""
    fixed = re.split(r"{[\w.]+}", template)
    return "^" + "[^/]+".join(re.sub(r"([^\w/:])", r"%\1", part) for part in fixed) + "$"


def _collect(message: Descriptor, found: dict[str, Descriptor]) -> None:
    """Adds a message and all in it. Those of google.protobuf have forms of their own in JSON."""
    if message.full_name not in found and not message.full_name.startswith("google.protobuf."):
        found[message.full_name] = message
        for field in message.fields:
            if field.message_type is not None:
                _collect(field.message_type, found)


def text(image: bytes) -> str:
    """The file's content, for a compiled image of the contracts."""
    messages: dict[str, Descriptor] = {}
    lines = ["local BODIES = {"]
    for method, rule in _methods(image):
        body: Any = method.input_type
        if rule.body != "*":
            body = body.fields_by_name[rule.body].message_type
        _collect(body, messages)
        verb = rule.WhichOneof("pattern")
        path = _path(getattr(rule, verb))
        lines.append(f'  {{verb = "{verb.upper()}", path = "{path}", message = "{body.full_name}"}},')
    lines += ["}", "local FIELDS = {"]
    for name, message in sorted(messages.items()):
        lines.append(f'  ["{name}"] = {{')
        for field in message.fields:
            holds = field.message_type.full_name if field.message_type is not None else ""
            inside = f', message = "{holds}"' if holds in messages else ""
            for spelling in sorted({field.name, field.json_name}):
                lines.append(f'    ["{spelling}"] = {{key = "{field.name}"{inside}}},')
        lines.append("  },")
    return "\n".join([*lines, "}", ""])
