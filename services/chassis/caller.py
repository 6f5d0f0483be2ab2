"""Who is calling: the JWT's claims as the gateway verified them, and which roles a method is for."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import InvalidToken, OtherScope, RoleNotAllowed, Unauthenticated

CLAIMS_HEADER = "x-jwt-payload"
"""Set by the gateway alone: it strips what comes from outside and forwards the payload it verified."""
# Who may act on everything, whatever claims bind the other roles.
UNBOUND_ROLE = "operator"
CLOCK_SKEW = 5.0
"""Seconds that a token outlives its end. The gateway allows Istio's 60, and takes tokens without any end."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Caller:
    """The subject of the token, its roles, and all claims."""

    subject: str
    roles: frozenset[str]
    claims: Mapping[str, Any]

    def check_scope(self, claim: str, value: str) -> None:
        """Raises OtherScope unless the caller's claim is `value`, or the caller is an operator."""
        if UNBOUND_ROLE not in self.roles and self.claims.get(claim) != value:
            raise OtherScope(claim, f"the token's {claim} is {self.claims.get(claim) or 'not set'}, not {value}")


_current: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller:
    """The caller of the RPC being served; raises Unauthenticated when there is none."""
    current = _current.get()
    if current is None:
        raise Unauthenticated("no bearer token: send the header 'authorization: Bearer <JWT>'")
    return current


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
    except (ValueError, AttributeError):
        raise InvalidToken("the token's claims cannot be read") from None
    if not isinstance(end, int | float) or end + CLOCK_SKEW < time.time():
        raise InvalidToken("the token has expired, or does not say when it will")
    # Printable: a subject is stored, and no store keeps every control character.
    if not (isinstance(subject, str) and 1 <= len(subject) <= 128 and subject.isprintable()):
        raise InvalidToken("the token's subject must be 1 to 128 printable characters")
    if not (isinstance(roles, list) and all(isinstance(role, str) for role in roles)):
        raise InvalidToken("the token's roles must be a list of names")
    return Caller(subject, frozenset(roles), claims)
