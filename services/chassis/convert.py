"""Dataclasses to protobuf messages and back, field by field of the same name."""

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, date, datetime
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints
from uuid import UUID

from google.protobuf.message import Message

from .errors import InvalidFields

M = TypeVar("M", bound=Message)
D = TypeVar("D")

_FROM: dict[type, Callable[[str, Any], Any]] = {
    date: lambda name, text: calendar_day(name, text),
    datetime: lambda _, time: time.ToDatetime(UTC),
}


def to_message(value: Any, cls: type[M], **others: Any) -> M:
    """The message `cls` with the dataclass's fields that it has, and `others`.

    Dates become text, enums their numbers (the domain's enums have the contract's), None stays unset.
    """
    content = {}
    for name in _shared(type(value), cls):  # type: ignore[arg-type] # a class is hashable
        item = getattr(value, name)
        if item is not None:
            content[name] = _plain(item)
    return cls(**content, **others)


def from_message(message: Message, cls: type[D]) -> D:
    """The dataclass `cls` from the message's fields of the same names; raises InvalidFields, see calendar_day."""
    converters = _converters(cls)  # type: ignore[arg-type] # a class is hashable
    return cls(**{name: convert(name, getattr(message, name)) for name, convert in converters})


def canonical_id(text: str) -> str:
    """A client's UUID, whatever its case, in the one form that ids have from there on; raises ValueError for none."""
    return str(UUID(text))


def calendar_day(field: str, text: str) -> date:
    """A date as the contract writes it; raises InvalidFields for one that does not exist, as 2026-02-30."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise InvalidFields([(field, f"{text} is not a calendar day")]) from None
    # asyncpg writes the calendar's first and last day as infinity, and a series of days up to there would never end.
    if day in (date.min, date.max):
        raise InvalidFields([(field, f"{text} is out of range")])
    return day


@lru_cache
def _shared(dataclass: Any, message: Any) -> list[str]:
    """The fields that both have."""
    return [field.name for field in fields(dataclass) if field.name in message.DESCRIPTOR.fields_by_name]


@lru_cache
def _converters(cls: Any) -> list[tuple[str, Callable[[str, Any], Any]]]:
    return [(name, _FROM.get(kind, lambda _, item: item)) for name, kind in get_type_hints(cls).items()]


def _plain(item: Any) -> Any:
    if isinstance(item, Enum):
        return item.value
    if isinstance(item, date) and not isinstance(item, datetime):
        return str(item)
    return item
