"""The contract's own rules: the protovalidate annotations of the messages."""

import protovalidate
from google.protobuf.message import Message

_validator = protovalidate.Validator()


def violations(message: Message) -> list[tuple[str, str]]:
    """The rules that a message breaks, as (field path, what is wrong)."""
    found = []
    for violation in _validator.collect_violations(message):
        path = ""
        for element in violation.proto.field.elements if violation.proto.field else ():
            path += f".{element.field_name}" if path else element.field_name
            if element.subscript and element.subscript.field == "index":
                path += f"[{element.subscript.value}]"
        found.append((path, violation.proto.message or violation.proto.rule_id))
    return found
