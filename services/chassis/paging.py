"""Page tokens: opaque to clients, bound to the listing that gave them out.

A token is no secret and gives no right: it only says where in the caller's own listing to go on. The digest tells
tokens of other listings and damaged ones; `decode` makes sure that no token at all brings a store into trouble.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from .errors import InvalidPageToken


def encode(listing: str, *position: str) -> str:
    """The token that continues `listing` (its name and filters) behind `position`."""
    body = json.dumps([_digest(listing, *position), *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(body).decode()


def decode(listing: str, token: str, *parts: Callable[[str], Any]) -> list[Any] | None:
    """The position in a token, each part converted; None for the first page. Raises InvalidPageToken."""
    if not token:
        return None
    try:
        _, *position = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
        if token == encode(listing, *position) and all(map(str.isprintable, position)):
            return [convert(part) for convert, part in zip(parts, position, strict=True)]
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise InvalidPageToken("not a token of this listing; use next_page_token as it came")


def instant(text: str) -> datetime:
    """A time in a position, in UTC; raises ValueError."""
    time = datetime.fromisoformat(text)
    if time.tzinfo != UTC:
        raise ValueError("not in UTC")
    return time


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
