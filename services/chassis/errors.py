"""How an exception becomes a gRPC status.

Each context's domain has one small tree of exceptions; its gRPC adapter has one table from those classes to `Answer`s,
looked up along the exception's MRO. What nobody maps is a bug: INTERNAL, without its text.

    Exception
    |- (a context's own tree)         -> by the adapter's table
    |- Refusal                        -> as the error that it is about
    |- InvalidFields                  -> INVALID_ARGUMENT, INVALID_FIELD
    |- MalformedRequest               -> INVALID_ARGUMENT, MALFORMED_REQUEST
    |- Unauthenticated                -> UNAUTHENTICATED, TOKEN_MISSING
    |- InvalidToken                   -> UNAUTHENTICATED, TOKEN_INVALID
    |- RoleNotAllowed                 -> PERMISSION_DENIED, ROLE_NOT_ALLOWED
    |- OtherScope                     -> PERMISSION_DENIED, OTHER_<CLAIM>
    |- InvalidPageToken               -> INVALID_ARGUMENT, INVALID_PAGE_TOKEN
    |- Overloaded                     -> RESOURCE_EXHAUSTED, OVERLOADED
    |- Stopping                       -> UNAVAILABLE, STOPPING
    |- TimedOut                       -> DEADLINE_EXCEEDED, TIMED_OUT
    `- StoreUnavailable, LostRace     -> UNAVAILABLE, STORE_UNAVAILABLE
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from .unit_of_work import LostRace, StoreUnavailable

__all__ = [
    "Answer", "Detailed", "Details", "Errors", "InvalidFields", "InvalidPageToken", "InvalidToken", "LostRace",
    "MalformedRequest", "OtherScope", "Overloaded", "Refusal", "RoleNotAllowed", "StoreUnavailable", "TimedOut",
    "Unauthenticated", "details_of", "to_status",
]  # fmt: skip

EDGE = "vaccination.edge"
# Violations told of one request. A status travels in headers, of which clients take 8 KB: 500 bad deliveries would
# end in a broken stream.
TOLD = 10


@dataclass(frozen=True)
class Details:
    """What an answer can carry beside its reason and its text."""

    violations: Sequence[tuple[str, str]] = ()
    """(field path in the request, what is wrong there)."""
    retry_after: float | None = None
    """Seconds after which to try again."""
    localized: tuple[str, str] | None = None
    """(locale, text) for the person who called."""


@runtime_checkable
class Detailed(Protocol):
    """An exception that brings details."""

    @property
    def carries(self) -> Details:
        """What to tell."""


class Refusal(Exception):
    """A domain's error with what its gRPC adapter alone knows: where in the request, in which language, until when."""

    def __init__(self, error: Exception, details: Details) -> None:
        super().__init__(str(error))
        self.error, self.carries = error, details


class InvalidFields(Exception):
    """A request breaks the contract's rules; `violations` are (field, what was wrong), the first TOLD of them."""

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        self.violations = violations[:TOLD]
        problems = [f"{field}: {problem}" for field, problem in self.violations]
        if len(violations) > TOLD:
            problems.append(f"and {len(violations) - TOLD} more")
        super().__init__("; ".join(problems))

    @property
    def carries(self) -> Details:
        """See Detailed."""
        return Details(self.violations)


class MalformedRequest(Exception):
    """The request is not even a message of the method's type."""


class Unauthenticated(Exception):
    """There is no caller."""


class InvalidToken(Exception):
    """The gateway knows the token's issuer, but its claims do not tell who is calling."""


class RoleNotAllowed(Exception):
    """The caller's roles do not include one that this call is for."""


class OtherScope(Exception):
    """The caller's role is bound by a claim to another thing than the one asked for."""

    def __init__(self, claim: str, message: str) -> None:
        super().__init__(message)
        self.claim = claim


class InvalidPageToken(Exception):
    """A page token that this listing did not give out."""


class Overloaded(Exception):
    """This process has as much in hand as it can take; nothing was begun. Try again after `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many calls at once: try again shortly")
        self.retry_after = retry_after

    @property
    def carries(self) -> Details:
        """See Detailed."""
        return Details(retry_after=self.retry_after)


class Stopping(Exception):
    """This replica is about to stop, and the work of the stream is not done: another replica can do it."""

    def __init__(self) -> None:
        super().__init__("this replica is about to stop: call again")


class TimedOut(Exception):
    """A stream has come to its client's own deadline."""

    def __init__(self) -> None:
        super().__init__("the call's own deadline has come: call again")


@dataclass(frozen=True)
class Answer:
    """The status for an exception class."""

    code: StatusCode
    reason: str
    field: str | None = None
    """The request's field in error, where it is always the same one."""
    message: str | None = None
    """Instead of the exception's own text."""
    hint: str = ""
    """After the text: what the caller can do about it."""


@dataclass(frozen=True)
class Errors:
    """One context's table, and the ErrorInfo domain of its reasons."""

    domain: str
    answers: Mapping[type[Exception], Answer]


_CHASSIS = Errors(
    EDGE,
    {
        Unauthenticated: Answer(StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"),
        InvalidToken: Answer(StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"),
        RoleNotAllowed: Answer(StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED"),
        OtherScope: Answer(StatusCode.PERMISSION_DENIED, "OTHER_"),
        InvalidFields: Answer(StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        MalformedRequest: Answer(StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
        InvalidPageToken: Answer(StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN", "page_token"),
        Overloaded: Answer(StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
        Stopping: Answer(StatusCode.UNAVAILABLE, "STOPPING"),
        TimedOut: Answer(StatusCode.DEADLINE_EXCEEDED, "TIMED_OUT"),
        StoreUnavailable: Answer(StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
        Exception: Answer(StatusCode.INTERNAL, "INTERNAL"),
    },
)


def _find(error: Exception, errors: Sequence[Errors]) -> tuple[str, Answer]:
    for table in (*errors, _CHASSIS):
        for cls in type(error).__mro__:
            if answer := table.answers.get(cls):
                return table.domain, answer
    raise AssertionError("Exception is in the chassis' table")


def details_of(error: Exception) -> Details:
    """What an exception brings for its answer."""
    return error.carries if isinstance(error, Detailed) else Details()


def to_status(error: Exception, *errors: Errors) -> tuple[StatusCode, str, status_pb2.Status]:
    """The gRPC code, the ErrorInfo reason, and the status with its details."""
    cause = error.error if isinstance(error, Refusal) else error
    domain, answer = _find(cause, errors)
    details = Details() if answer.code is StatusCode.INTERNAL else details_of(error)
    reason, violations = answer.reason, details.violations
    message = (answer.message or str(cause)) + answer.hint
    if answer.code is StatusCode.INTERNAL:
        message = "internal error"
    elif isinstance(cause, OtherScope):
        reason += cause.claim.upper()
    elif answer.field and not violations:
        violations = [(answer.field, message)]
    if violations and not isinstance(cause, InvalidFields):  # whose text has them already
        message = "; ".join(f"{field}: {problem}" for field, problem in violations)
    carried = [_packed(error_details_pb2.ErrorInfo(reason=reason, domain=domain))]
    if violations:
        described = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in violations]
        carried.append(_packed(error_details_pb2.BadRequest(field_violations=described)))
    if details.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(int(details.retry_after * 1000))
        carried.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if details.localized:
        locale, text = details.localized
        carried.append(_packed(error_details_pb2.LocalizedMessage(locale=locale, message=text)))
    return answer.code, reason, status_pb2.Status(code=answer.code.value[0], message=message, details=carried)


def _packed(
    message: error_details_pb2.ErrorInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.RetryInfo
    | error_details_pb2.LocalizedMessage,
) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
