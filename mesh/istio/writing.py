"""Forms of Envoy's configuration that several parts of the translation write."""

from copy import deepcopy
from typing import Any

from mesh.istio.kinds import StringMatch

Json = dict[str, Any]
TYPES = "type.googleapis.com/envoy.extensions"
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


def merged(base: Any, patch: Any) -> Any:
    """Merges as protobuf merges messages: field by field, and a list is appended to a list."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {k: merged(base[k], v) if k in base else deepcopy(v) for k, v in patch.items()}
    return base + patch if isinstance(base, list) and isinstance(patch, list) else deepcopy(patch)


def text_match(value: str) -> Json:
    """A policy's pattern, with a star before it, behind it, or alone, as Envoy's StringMatcher."""
    if value == "*":
        return {"safe_regex": {"regex": ".+"}}
    if value.startswith("*"):
        return {"suffix": value[1:]}
    return {"prefix": value[:-1]} if value.endswith("*") else {"exact": value}


def string_match(match: StringMatch) -> Json:
    """Istio's StringMatch as Envoy's StringMatcher."""
    if match.regex is not None:
        return {"safe_regex": {"regex": match.regex}}
    return {"prefix": match.prefix} if match.prefix is not None else {"exact": match.exact}
