"""Page tokens: opaque to clients, bound to the listing that gave them out."""

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

from .errors import InvalidPageToken


def encode(listing: str, *position: str) -> str:
    """The token that continues `listing` (its name and filters) behind `position`."""
    body = json.dumps([_digest(listing), *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(body).decode()


def decode(listing: str, token: str, *parts: Callable[[str], Any]) -> list[Any] | None:
    """The position in a token, each part converted; None for the first page. Raises InvalidPageToken."""
    if not token:
        return None
    try:
        digest, *position = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
        if digest == _digest(listing):
            return [convert(part) for convert, part in zip(parts, position, strict=True)]
    except (ValueError, TypeError, AttributeError):
        pass
    raise InvalidPageToken("not a token of this listing; use next_page_token as it came")


def _digest(listing: str) -> str:
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
