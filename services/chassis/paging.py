"""Page tokens: opaque to clients, bound to the listing that gave them out."""

import base64
import hashlib
import json

from .errors import InvalidPageToken


def encode(listing: str, *position: str) -> str:
    """The token that continues `listing` (its name and filters) behind `position`."""
    body = json.dumps([_digest(listing), *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(body).decode()


def decode(listing: str, token: str, parts: int) -> list[str] | None:
    """The position in a token, None for the first page; raises InvalidPageToken for what `encode` did not make."""
    if not token:
        return None
    try:
        digest, *position = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
    except (ValueError, TypeError):
        digest, position = None, []
    if digest != _digest(listing) or len(position) != parts or not all(isinstance(part, str) for part in position):
        raise InvalidPageToken("not a token of this listing; use next_page_token as it came")
    return position


def _digest(listing: str) -> str:
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
