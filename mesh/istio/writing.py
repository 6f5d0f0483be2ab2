"""Envoy's configuration in the forms that all of the translation shares."""

import re
from copy import deepcopy
from typing import Any

from mesh.istio.reading import Node, Untranslatable

Json = dict[str, Any]
TYPES = "type.googleapis.com/envoy.extensions"
HCM = "envoy.filters.network.http_connection_manager"
NO_LIMIT = 2**32 - 1


def typed(kind: str, **fields: Any) -> Json:
    """An extension's configuration."""
    return {"@type": f"{TYPES}.{kind}", **fields}


def named(name: str, kind: str, **fields: Any) -> Json:
    """An extension."""
    return {"name": name, "typed_config": typed(kind, **fields)}


def http_filter(name: str, kind: str, **fields: Any) -> Json:
    """An HTTP filter."""
    return named(f"envoy.filters.http.{name}", f"filters.http.{kind}", **fields)


def duration(text: str) -> str:
    """Go's way to write a duration (1m30s, 250ms) as protobuf's JSON does (90s, 0.250s)."""
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", text)
    if not parts or "".join(map("".join, parts)) != text:
        raise Untranslatable(f"{text!r} is no duration")
    seconds = round(sum(float(n) * {"h": 3600, "m": 60, "s": 1, "ms": 0.001}[unit] for n, unit in parts), 3)
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds:.3f}s"


def merged(base: Any, patch: Any) -> Any:
    """As protobuf merges messages: fields into fields, lists behind lists."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {k: merged(base[k], v) if k in base else deepcopy(v) for k, v in patch.items()}
    return base + patch if isinstance(base, list) and isinstance(patch, list) else deepcopy(patch)


def text_match(value: str) -> Json:
    """A text with a star before it, behind it, or alone."""
    if value == "*":
        return {"safe_regex": {"regex": ".+"}}
    if value.startswith("*"):
        return {"suffix": value[1:]}
    return {"prefix": value[:-1]} if value.endswith("*") else {"exact": value}


def string_match(node: Node) -> Json:
    """A StringMatch of Istio's."""
    with node:
        kind = next((kind for kind in ("exact", "prefix", "regex") if kind in node._left), "exact")
        value = node.must(kind)
        return {"safe_regex": {"regex": value}} if kind == "regex" else {kind: value}
