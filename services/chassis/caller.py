"""Who is calling: the JWT's claims as the gateway verified them, for how long, and which roles a method is for."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import InvalidToken, OtherScope, RoleNotAllowed, TimedOut, Unauthenticated

CLAIMS_HEADER = "x-jwt-payload"
"""Set by the gateway alone: it strips what comes from outside and forwards the payload it verified."""
# Who may act on everything, whatever claims bind the other roles.
UNBOUND_ROLE = "operator"
CLOCK_SKEW = 5.0
"""Seconds that a token outlives its end. The gateway allows Istio's 60, and takes tokens without any end."""

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(frozen=True)
class Caller:
    """The subject of the token, its roles, all claims, and until when it is valid, in seconds since 1970."""

    subject: str
    roles: frozenset[str]
    claims: Mapping[str, Any]
    until: float

    def check_scope(self, claim: str, value: str) -> None:
        """Raises OtherScope unless the caller's claim is `value`, or the caller is an operator.

        An empty claim is no claim: an empty value may mean everything, as it does in a recall.
        """
        own = self.claims.get(claim)
        if UNBOUND_ROLE not in self.roles and (not own or own != value):
            raise OtherScope(claim, f"the token's {claim} is {own or 'not set'}, not {value}")


_current: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller:
    """The caller of the RPC being served; raises Unauthenticated when there is none."""
    current = _current.get()
    if current is None:
        raise Unauthenticated("no bearer token: send the header 'authorization: Bearer <JWT>'")
    return current


async def while_valid(responses: AsyncGenerator[T, None], time_left: float | None = None) -> AsyncGenerator[T, None]:
    """Yields what a stream answers to the current caller.

    Raises InvalidToken as soon as the caller's token expires, and TimedOut after `time_left` seconds.

    The limit is on waiting for a response. Sending one has no limit, but a client that does not read gets no later one.
    An internal call has no token and no such limit. `responses` are closed in the end.
    """
    current, now = _current.get(), asyncio.get_running_loop().time()
    expiry = None if current is None else now + current.until - time.time()
    deadline = None if time_left is None else now + time_left
    end = min((at for at in (expiry, deadline) if at is not None), default=None)
    async with aclosing(responses):
        while True:
            try:
                async with asyncio.timeout_at(end) as limit:
                    response = await anext(responses)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if not limit.expired():
                    raise
                if end == deadline:
                    raise TimedOut from None
                raise InvalidToken("the token has expired meanwhile: call again with a new one") from None
            yield response


def allow(*roles: str) -> Callable[[F], F]:
    """Declares the roles that a servicer's method is for. A method without it cannot be called at all."""

    def mark(method: F) -> F:
        method.__dict__["allowed_roles"] = frozenset(roles)
        return method

    return mark


internal = allow()
"""For methods that other services call inside the mesh: no token; the mesh's policies say who may."""


def admit(metadata: Mapping[str, str], roles: frozenset[str], claim_names: Mapping[str, str]) -> None:
    """Makes the token's bearer the current caller, if `roles` has one of theirs; no roles at all: an internal call.

    `claim_names` tell what the identity provider calls a claim, where that is not our name for it.
    """
    if not roles:
        _current.set(None)
        return
    header = metadata.get(CLAIMS_HEADER)
    if header is None:
        _current.set(None)
        caller()
        return
    who = _bearer(header, claim_names)
    if not who.roles & roles:
        raise RoleNotAllowed(
            f"this call is for {' or '.join(sorted(roles))}; the token has {', '.join(sorted(who.roles)) or 'no role'}"
        )
    _current.set(who)


def _bearer(header: str, claim_names: Mapping[str, str]) -> Caller:
    """The caller that the verified claims describe; raises InvalidToken if they describe none."""
    try:
        token = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
        # A claim that has another name there is not also read under ours: that one may be anybody's to set.
        claims = {name: value for name, value in token.items() if name not in claim_names}
        claims |= {ours: token[theirs] for ours, theirs in claim_names.items() if theirs in token}
        subject, roles, end = claims.get("sub"), claims.get("roles", []), claims.get("exp")
        until = float(end) + CLOCK_SKEW if isinstance(end, int | float) else 0.0
    except (ValueError, AttributeError, OverflowError):
        raise InvalidToken("the token's claims cannot be read") from None
    if not until >= time.time():  # NaN is not
        raise InvalidToken("the token has expired, or does not say when it will")
    # Printable: a subject is stored, and no store keeps every control character.
    if not (isinstance(subject, str) and 1 <= len(subject) <= 128 and subject.isprintable()):
        raise InvalidToken("the token's subject must be 1 to 128 printable characters")
    if not (isinstance(roles, list) and all(isinstance(role, str) for role in roles)):
        raise InvalidToken("the token's roles must be a list of names")
    return Caller(subject, frozenset(roles), claims, until)
