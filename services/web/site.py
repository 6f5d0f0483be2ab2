"""What is served, and with which headers.

All files are read and compressed once, at the start: they are few and small, and no path that somebody asks for ever
reaches the file system.
"""

import gzip
import hashlib
import json
import mimetypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import DirectoryPath, Field, Json, model_validator

from services.chassis.http import Answer, Request
from services.chassis.settings import Process

Url = Annotated[str, Field(pattern=r"^https?://[^/?#\s;,']+[^?#\s;,']*$")]

# The name of a file in assets/ tells its content, so it never changes. Almost everything else is asked for again each
# time, and costs an answer without a body if it is still the same.
IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATED = "no-cache"
# A page that is loaded twice within a minute, as when somebody comes back from the sign-in, does not wait for it twice.
FOR_A_MINUTE = "public, max-age=60"
# Where the provider sends people back to. A sign-in in a window of its own ends here, so it must be able to find the
# window that it came from.
SIGNED_IN = "/signed-in"
TEXTS = ("text/", "application/json", "application/manifest+json", "image/svg+xml")
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".webmanifest": "application/manifest+json"}


class Settings(Process):
    """Where the files are, and where people sign in."""

    files: DirectoryPath = Path(__file__).parents[2] / "web" / "dist"
    """The built page."""
    issuer: Url
    """The OpenID Connect provider that signs tokens."""
    client_id: Annotated[str, Field(min_length=1)]
    """The name by which the provider knows the page."""
    scope: str = "openid"
    """What the page asks for, names separated by spaces."""
    audience: str | None = None
    """For whom the provider shall make the access token, where it wants to be told."""
    authorization_endpoint: Url | None = None
    """Where the browser goes to sign in. Without it the page asks the issuer for its description (discovery)."""
    token_endpoint: Url | None = None
    end_session_endpoint: Url | None = None
    claim_names: Json[dict[str, str]] = Field("{}")  # type: ignore[arg-type]  # JSON, as the variable is
    """What the provider calls a claim, where that is not our name for it: {"roles": "groups"}."""

    @model_validator(mode="after")
    def _endpoints_come_together(self) -> Self:
        if (self.authorization_endpoint is None) != (self.token_endpoint is None):
            raise ValueError("AUTHORIZATION_ENDPOINT and TOKEN_ENDPOINT come together, or the issuer is asked for both")
        return self

    @property
    def public(self) -> dict[str, str]:
        """What the page needs to know to sign people in. There is nothing secret in it."""
        told = self.model_dump(
            include={
                "issuer", "client_id", "scope", "audience",
                "authorization_endpoint", "token_endpoint", "end_session_endpoint",
            },
            exclude_none=True,
        )  # fmt: skip
        claims = {f"{claim}_claim": self.claim_names.get(claim, claim) for claim in ("roles", "hospital")}
        return told | claims

    @property
    def providers(self) -> str:
        """Origins of the provider, which the page may call; everything else but the gateway is forbidden to it."""
        urls = (self.issuer, self.authorization_endpoint, self.token_endpoint, self.end_session_endpoint)
        origins = ("{0.scheme}://{0.netloc}".format(urlsplit(url)) for url in urls if url)
        return " ".join(dict.fromkeys(origins))


@dataclass(frozen=True)
class File:
    """A file's content, and what stands beside it in an answer."""

    content: bytes
    kind: str
    cached: str

    @cached_property
    def etag(self) -> str:
        """Weak, because the compressed form and the plain one have the same."""
        return f'W/"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    @cached_property
    def compressed(self) -> bytes | None:
        """Compressed as well as gzip can; None if that gains nothing."""
        packed = gzip.compress(self.content, mtime=0) if self.kind.startswith(TEXTS) else self.content
        return packed if len(packed) < len(self.content) else None


class Site:
    """Answers requests for the page."""

    def __init__(self, settings: Settings) -> None:
        config = File(json.dumps(settings.public).encode(), "application/json", FOR_A_MINUTE)
        self._files = {"/config.json": config, **dict(_read(settings.files))}
        if "/index.html" not in self._files:
            print(f"setting FILES: no index.html is in {settings.files}: ./dev web builds it", file=sys.stderr)  # noqa: T201
            raise SystemExit(2)
        for file in self._files.values():
            _ = file.etag, file.compressed  # now, so that nobody waits for it
        policy = {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' data:",
            "connect-src": f"'self' {settings.providers}",
            "form-action": settings.providers,
            "base-uri": "'none'",
            "frame-ancestors": "'none'",
        }
        self._protection = {
            "content-security-policy": "; ".join(f"{what} {where}" for what, where in policy.items()),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            # Where the customer is, for hospitals near by, is asked for by the page itself, which rounds it before it
            # tells the gateway.
            "permissions-policy": "geolocation=(self), camera=(), microphone=(), payment=(), usb=()",
            "cross-origin-resource-policy": "same-origin",
        }

    async def answer(self, request: Request) -> Answer:
        """The file that was asked for; a path of the page's own, which begins without a dot, is the page.

        Further on it may have dots: ids of hospitals do.
        """
        answer = self._answer(request)
        opener = {} if request.path == SIGNED_IN else {"cross-origin-opener-policy": "same-origin-allow-popups"}
        return Answer(answer.status, {**self._protection, **opener, **answer.headers}, answer.body)

    def _answer(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return Answer(405, {"allow": "GET, HEAD"})
        first = request.path.lstrip("/").partition("/")[0]
        is_page = "." not in first and first != "assets"
        file = self._files.get("/index.html" if is_page else request.path)
        if file is None:
            # Another version may have the file, so nobody is to remember that it was not here.
            return Answer(404, {"cache-control": "no-store"})
        headers = {"cache-control": file.cached, "etag": file.etag, "vary": "accept-encoding"}
        if _knows(request.headers.get("if-none-match", ""), file.etag):
            return Answer(304, headers)
        headers["content-type"] = file.kind
        if file.compressed is not None and _takes_gzip(request.headers.get("accept-encoding", "")):
            return Answer(200, headers | {"content-encoding": "gzip"}, file.compressed)
        return Answer(200, headers, file.content)


def _read(folder: Path) -> Iterator[tuple[str, File]]:
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in path.parts):
            kind = TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            if kind.startswith("text/"):
                kind += "; charset=utf-8"
            yield f"/{path}", File(file.read_bytes(), kind, IMMUTABLE if path.parts[0] == "assets" else REVALIDATED)


def _knows(known: str, etag: str) -> bool:
    tags = [one.strip().removeprefix("W/") for one in known.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags


def _takes_gzip(accepted: str) -> bool:
    for one in accepted.lower().split(","):
        coding, _, weight = one.replace(" ", "").partition(";")
        if coding in ("gzip", "*"):
            return weight not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
