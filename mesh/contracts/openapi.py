"""Describes the REST API in OpenAPI 3.1, from the compiled contracts, as the gateway's transcoder serves it.

Paths come from google.api.http, texts from the protos' comments, bounds from protovalidate. A rule that JSON Schema
cannot express (a time in the past, bounds of an int64, which is a string in JSON) is in the field's comment only. So
the document never refuses what the services accept.
"""

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

Json = dict[str, Any]

_ABOUT = """Vaccination booking. Every call needs a JWT of the identity provider as bearer token.

Errors are google.rpc.Status as JSON: `code` is the gRPC code, and of `details` the ErrorInfo has the reason to act on.
What is UNAVAILABLE (503), and RESOURCE_EXHAUSTED with RetryInfo (429), may be repeated after a pause.
Fields of requests may be left out when they may be empty; those of responses are always there, but for messages."""
_DETAILS = ("ErrorInfo", "BadRequest", "RetryInfo", "LocalizedMessage")
_VERBS = ("get", "put", "post", "delete", "patch")

_SCALARS: dict[str, Json] = {
    "BOOL": {"type": "boolean"},
    "STRING": {"type": "string"},
    "BYTES": {"type": "string", "contentEncoding": "base64"},
    "DOUBLE": {"type": "number", "format": "double"},
    "FLOAT": {"type": "number", "format": "float"},
    "INT32": {"type": "integer", "format": "int32"},
    "UINT32": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    "INT64": {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"},
    "UINT64": {"type": "string", "format": "uint64", "pattern": "^[0-9]+$"},
}
_TYPES: dict[int, Json] = {getattr(FieldDescriptor, f"TYPE_{name}"): schema for name, schema in _SCALARS.items()}
# Messages with a JSON form of their own.
_WELL_KNOWN: dict[str, Json] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.Any": {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]},
}
IGNORE_IF_ZERO_VALUE = 1  # buf.validate.Ignore: a field may be empty, whatever its rules say
# Rules of protovalidate and their names in JSON Schema.
_KEYWORDS = {"min_len": "minLength", "max_len": "maxLength", "pattern": "pattern", "const": "const"}
_KEYWORDS |= {"min_items": "minItems", "max_items": "maxItems", "unique": "uniqueItems"}
_KEYWORDS |= {"gte": "minimum", "lte": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def document(image: bytes) -> Json:
    """The document for a compiled image (a FileDescriptorSet with imports and source info).

    The same contracts give the same document. ValueError: it cannot describe a method's REST form.
    """
    return _Document(image).content


class _Document:
    content: Json

    def __init__(self, image: bytes) -> None:
        pool = descriptor_pool.DescriptorPool()
        files = descriptor_pb2.FileDescriptorSet.FromString(image).file
        for file in files:
            pool.Add(file)
        self._pool = pool
        self._comments = {name: text for file in files for name, text in _comments(file)}
        self._schemas: Json = {}
        self._paths: dict[str, Json] = {}
        tags: list[Json] = []
        ours = sorted(file.name for file in files if file.package.startswith("vaccination."))
        for service in (s for name in ours for s in pool.FindFileByName(name).services_by_name.values()):
            if sum(self._operation(service, method) for method in service.methods):
                tags += [{"name": service.name, "description": self._comments[service.full_name]}]
        errors = self._errors()
        self.content = {
            "openapi": "3.1.0",
            "info": {"title": "Vaccination", "version": "v1", "description": _ABOUT},
            "servers": [{"url": "/"}],
            "security": [{"bearerAuth": []}],
            "tags": tags,
            "paths": dict(sorted(self._paths.items())),
            "components": {
                "securitySchemes": {"bearerAuth": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
                "responses": errors,
                "schemas": dict(sorted(self._schemas.items())),
            },
        }

    def _option(self, of: Any, extension: str) -> Any:
        """The value of an extension of the options of a method, field or oneof; empty if it is not set."""
        options = of.GetOptions()  # its class does not know the extensions, the pool does
        known = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(options.DESCRIPTOR.full_name))
        parsed: Any = known.FromString(options.SerializeToString())
        return parsed.Extensions[self._pool.FindExtensionByName(extension)]

    def _rules(self, field: FieldDescriptor) -> Any:
        return self._option(field, "buf.validate.field")

    def _operation(self, service: ServiceDescriptor, method: MethodDescriptor) -> bool:
        """Adds the RPC if it has a REST form; returns whether it has."""
        rule = self._option(method, "google.api.http")
        told = {field.name for field, _ in rule.ListFields()}
        verb = rule.WhichOneof("pattern")
        if not verb:
            return False
        if verb not in _VERBS or told - {verb, "body"} or "=" in getattr(rule, verb):
            raise ValueError(f"{method.full_name}: of google.api.http only {', '.join(_VERBS)} and body are known")
        path: str = getattr(rule, verb)
        if verb in self._paths.setdefault(path, {}):
            raise ValueError(f"{method.full_name}: {verb} {path} is another's")
        bound = re.findall(r"{([\w.]+)}", path)
        parameters = []
        for variable in bound:
            message: Any = method.input_type
            *outer, name = variable.split(".")
            for part in outer:
                message = message.fields_by_name[part].message_type
            parameter = self._parameter(message.fields_by_name[name])
            parameters.append({"name": variable, "in": "path"} | parameter | {"required": True})
        if rule.body != "*":
            parameters += self._query(method, {*(variable.split(".")[0] for variable in bound), rule.body})
        text = self._comments[method.full_name]
        operation: Json = {
            "operationId": f"{service.name}_{method.name}",
            "summary": re.split(r"(?<=[.:])\s", text.replace("\n", " "), maxsplit=1)[0].rstrip(".:"),
            "description": text,
            "tags": [service.name],
        }
        if parameters:
            operation["parameters"] = parameters
        if rule.body:
            operation["requestBody"] = {"required": True, "content": _json(self._body(method, rule.body, bound))}
        answer = self._comments[method.output_type.full_name]
        if method.server_streaming:
            answer += "\nA stream: one such JSON object a line, until either side ends it."
        operation["responses"] = {
            "200": {"description": answer, "content": _json(self._message(method.output_type))},
            "429": {"$ref": "#/components/responses/TryLater"},
            "default": {"$ref": "#/components/responses/Error"},
        }
        self._paths[path][verb] = operation
        return True

    def _body(self, method: MethodDescriptor, body: str, bound: list[str]) -> Json:
        """The schema of the message, or of its field `body`, without the fields in the path."""
        message: Any = method.input_type
        if body != "*":
            message = message.fields_by_name[body].message_type
            bound = [variable.removeprefix(f"{body}.") for variable in bound]
        return self._object(message, without=bound) if bound else self._message(message)

    def _query(self, method: MethodDescriptor, without: set[str]) -> list[Json]:
        """The query parameters: the fields that are neither in the path nor in the body."""
        return [
            {"name": name, "in": "query", **self._parameter(field)}
            for outer in method.input_type.fields
            if outer.name not in without
            for name, field in self._flat(outer)
        ]

    def _flat(self, field: FieldDescriptor) -> Iterator[tuple[str, FieldDescriptor]]:
        """The field, or for a message those in it, as a.b."""
        inside = field.message_type
        if inside is None or inside.full_name in _WELL_KNOWN:
            yield field.json_name, field
        elif field.is_repeated:
            raise ValueError(f"{field.full_name}: repeated messages in the query")
        else:
            for part in inside.fields:
                for name, leaf in self._flat(part):
                    yield f"{field.json_name}.{name}", leaf

    def _parameter(self, field: FieldDescriptor) -> Json:
        schema = self._field(field)
        parameter = {"description": schema.pop("description"), "schema": schema}
        return parameter | ({"required": True} if self._required(field) else {})

    def _message(self, message: Descriptor) -> Json:
        """The schema of a message as the type of a field or of a body."""
        if message.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[message.full_name])
        if message.full_name.startswith("google.protobuf."):
            return {"type": [self._field(message.fields_by_name["value"])["type"], "null"]}  # a wrapper
        if message.full_name not in self._schemas:
            self._schemas[message.full_name] = {}  # entered first, because a message may contain itself
            self._schemas[message.full_name] = self._object(message)
        return {"$ref": f"#/components/schemas/{message.full_name}"}

    def _object(self, message: Descriptor, without: list[str] | tuple[()] = ()) -> Json:
        fields = [field for field in message.fields if field.name not in without]
        schema: Json = {
            "type": "object",
            "description": self._comments.get(message.full_name, ""),
            "properties": {field.json_name: self._field(field) for field in fields},
        }
        if required := [field.json_name for field in fields if self._required(field)]:
            schema["required"] = required
        for oneof in message.oneofs:
            if self._option(oneof, "buf.validate.oneof").required:
                schema["oneOf"] = [{"required": [field.json_name]} for field in oneof.fields]
        return schema

    def _enum(self, enum: EnumDescriptor) -> Json:
        if enum.full_name not in self._schemas:
            told = [f"- {v.name}: {self._comments.get(f'{enum.full_name}.{v.name}', '')}" for v in enum.values]
            text = "\n".join([self._comments.get(enum.full_name, ""), "", *told])
            values = [value.name for value in enum.values]
            self._schemas[enum.full_name] = {"type": "string", "enum": values, "description": text}
        return {"$ref": f"#/components/schemas/{enum.full_name}"}

    def _field(self, field: FieldDescriptor) -> Json:
        rules = self._rules(field)
        described = {"description": self._comments.get(field.full_name, "")}
        if field.message_type and field.message_type.GetOptions().map_entry:
            values = self._one(field.message_type.fields_by_name["value"], rules.map.values)
            return {"type": "object", "additionalProperties": values} | described
        if field.is_repeated:
            items = self._one(field, rules.repeated.items)
            return {"type": "array", "items": items} | _constraints(rules.repeated) | described
        return self._one(field, rules) | described

    def _one(self, field: FieldDescriptor, rules: Any) -> Json:
        """A value of the field's type."""
        if field.message_type:
            return self._message(field.message_type)
        if field.enum_type:
            return self._enum(field.enum_type)
        schema = dict(_TYPES[field.type])
        if kind := rules.WhichOneof("type"):
            bounded = schema["type"] != "string" or kind in ("string", "bytes")
            schema |= _constraints(getattr(rules, kind)) if bounded else {}
        return schema

    def _required(self, field: FieldDescriptor) -> bool:
        """Whether the rules refuse the default value, which a missing field has."""
        rules = self._rules(field)
        if rules.required or field.has_presence or rules.ignore == IGNORE_IF_ZERO_VALUE:
            return bool(rules.required)
        kind = rules.WhichOneof("type")
        told = {f.name: value for f, value in getattr(rules, kind).ListFields()} if kind else {}
        least = max(told.get(name, 0) for name in ("min_len", "min_items", "gte"))
        return least > 0 or "gt" in told or "uuid" in told or not re.search(told.get("pattern", ""), "")

    def _errors(self) -> Json:
        """The responses in case of error. In JSON an Any has the message's own fields, and its type's name."""
        kinds = []
        for name in _DETAILS:
            schema = self._object(self._pool.FindMessageTypeByName(f"google.rpc.{name}"))
            kind = {"const": f"type.googleapis.com/google.rpc.{name}"}
            schema["properties"] = {"@type": kind} | schema["properties"]
            self._schemas[f"google.rpc.{name}"] = schema | {"required": ["@type"]}
            kinds.append({"$ref": f"#/components/schemas/google.rpc.{name}"})
        status = self._object(self._pool.FindMessageTypeByName("google.rpc.Status"))
        status["properties"]["details"]["items"] = {"anyOf": kinds}
        self._schemas["google.rpc.Status"] = status | {"required": ["code", "message"]}
        content = _json({"$ref": "#/components/schemas/google.rpc.Status"})
        seconds = {"description": "Seconds to wait before the next try.", "schema": {"type": "integer", "minimum": 1}}
        return {
            "Error": {"description": "What went wrong, and what to do about it.", "content": content},
            "TryLater": {
                "description": "Too much is asked at the moment, or by this caller. Nothing was done.",
                "headers": {"Retry-After": seconds},
                "content": content,
            },
        }


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _constraints(rules: Message) -> Json:
    """A field's rules, as far as JSON Schema can express them."""
    found: Json = {}
    for field, value in rules.ListFields():
        if field.name in _KEYWORDS:
            found[_KEYWORDS[field.name]] = value
        elif field.name == "uuid":
            found["format"] = "uuid"
    return found


def _comments(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """The full name of everything that a file declares, and the comment before it."""
    for location in file.source_code_info.location:
        text = "\n".join(line.removeprefix(" ").rstrip() for line in location.leading_comments.strip().splitlines())
        numbers, node, names = list(location.path), file, [file.package]
        while text and len(numbers) > 1 and hasattr(node, "DESCRIPTOR"):  # otherwise it is a part of a declaration
            parts: Any = getattr(node, node.DESCRIPTOR.fields_by_number[numbers[0]].name)
            if not hasattr(node := parts[numbers[1]], "name"):
                break
            names, numbers = [*names, node.name], numbers[2:]
        if text and not numbers:
            yield ".".join(names), text
