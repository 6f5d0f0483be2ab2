"""The chart's README: each value of values.yaml with its default and its comment."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from mesh import CHART

KEY = re.compile(r"^(?P<indent>[ -]*)(?P<key>[\w.-]+):(?: &\w+)?(?P<value> .+)?$")
HEAD = """\
# The chart's values

How to install it: [On a cluster](../../README.md#on-a-cluster). `helm install` prints how to call it, `helm test` asks
whether all is well. A key that is not here is refused with its path. This file is made of values.yaml by `./dev gen`.

| Value | Default | |
|---|---|---|
"""


def readme() -> str:
    """The file's text."""
    text = (CHART / "values.yaml").read_text()
    return HEAD + "".join(f"| `{path}` | {default} | {why} |\n" for path, default, why in _rows(text))


def _rows(text: str) -> Iterator[tuple[str, str, str]]:
    """Path, default and comment of every value, and of every group of values that has a comment."""
    values = yaml.safe_load(text)
    above: list[tuple[int, str]] = []  # indentation and key of where a line stands
    comment: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
            continue
        if found := KEY.match(line):
            indent = len(found["indent"])
            above = [*((i, key) for i, key in above if i < indent), (indent, found["key"])]
            if comment or found["value"]:
                value = _at(values, [key for _, key in above])
                default = f"`{json.dumps(value, ensure_ascii=False)}`" if found["value"] else ""
                yield ".".join(key for _, key in above), default, " ".join(comment).replace("|", "\\|")
        comment = []


def _at(value: Any, path: list[str]) -> Any:
    """The value at a path, which goes into the first item of a list."""
    for key in path:
        value = (value[0] if isinstance(value, list) else value)[key]
    return value
