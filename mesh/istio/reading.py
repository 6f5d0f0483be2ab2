"""Reads an object field by field, and refuses what nobody has read."""

from collections.abc import Iterable, Mapping
from typing import Any


class Untranslatable(Exception):
    """An object says what this translation does not know; its text names object and field."""


Specs = Iterable[tuple[str, str, "Node"]]  # name, namespace and spec of objects of one kind


class Node:
    """A part of an object. Every field has to be taken; one that is left is an error when the `with` block ends."""

    def __init__(self, where: str, content: Mapping[str, Any] | None) -> None:
        self.where, self._left = where, dict(content or {})

    def take(self, name: str, default: Any = None) -> Any:
        """A field's value."""
        return self._left.pop(name, default)

    def must(self, name: str) -> Any:
        """A field's value, which has to be there."""
        if name not in self._left:
            raise Untranslatable(f"{self.where}: {name} is missing")
        return self._left.pop(name)

    def only(self, name: str, *known: Any) -> Any:
        """A field's value, if it is one of those known here."""
        value = self.take(name)
        if value not in known:
            raise Untranslatable(f"{self.where}.{name}: {value!r} is not translated")
        return value

    def node(self, name: str) -> "Node":
        """A field that has fields of its own; empty if it is not there."""
        return Node(f"{self.where}.{name}", self.take(name))

    def nodes(self, name: str) -> "list[Node]":
        """The items of a list."""
        return [Node(f"{self.where}.{name}[{i}]", item) for i, item in enumerate(self.take(name) or ())]

    def __bool__(self) -> bool:
        return bool(self._left)

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._left:
            raise Untranslatable(f"{self.where}.{next(iter(self._left))} is not translated")
