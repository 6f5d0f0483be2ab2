"""Page tokens: opaque to clients, bound to the listing that gave them out.

A token is no secret and gives no right: it only says where in the caller's own listing to go on. The digest tells
tokens of other listings and damaged ones; `decode` makes sure that no token at all brings a store into trouble.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from .errors import InvalidPageToken

T = TypeVar("T")


def encode(listing: str, *position: str) -> str:
    """The token that continues `listing` (its name and filters) behind `position`."""
    body = json.dumps([_digest(listing, *position), *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(body).decode()


def cut(
    listing: str, found: Sequence[T], limit: int, position: Callable[[T], tuple[str, ...]]
) -> tuple[Sequence[T], str]:
    """The page in what was found by asking for one more than `limit`, and the token behind it, empty at the end.

    `position` gives an item's place in the listing.
    """
    page = found[:limit]
    return page, encode(listing, *position(page[-1])) if len(found) > limit else ""


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
