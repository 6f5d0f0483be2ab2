"""How an exception becomes a gRPC status.

Each context's domain has one small tree of exceptions; its gRPC adapter has one table from those classes to `Answer`s,
looked up along the exception's MRO. What nobody maps is a bug: INTERNAL, without its text.

    Exception
    |- (a context's own tree)         -> by the adapter's table
    |- InvalidFields                  -> INVALID_ARGUMENT, INVALID_FIELD
    |- MalformedRequest               -> INVALID_ARGUMENT, MALFORMED_REQUEST
    |- Unauthenticated                -> UNAUTHENTICATED, TOKEN_MISSING
    |- InvalidToken                   -> UNAUTHENTICATED, TOKEN_INVALID
    |- RoleNotAllowed                 -> PERMISSION_DENIED, ROLE_NOT_ALLOWED
    |- OtherScope                     -> PERMISSION_DENIED, OTHER_<CLAIM>
    |- InvalidPageToken               -> INVALID_ARGUMENT, INVALID_PAGE_TOKEN
    |- Overloaded                     -> RESOURCE_EXHAUSTED, OVERLOADED
    |- Stopping                       -> UNAVAILABLE, STOPPING
    `- StoreUnavailable, LostRace     -> UNAVAILABLE, STORE_UNAVAILABLE
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from .unit_of_work import LostRace, StoreUnavailable

__all__ = [
    "Answer", "Errors", "InvalidFields", "InvalidPageToken", "InvalidToken", "LostRace", "MalformedRequest",
    "OtherScope", "Overloaded", "RoleNotAllowed", "StoreUnavailable", "Unauthenticated", "to_status",
]  # fmt: skip

EDGE = "vaccination.edge"
# Violations told of one request. A status travels in headers, of which clients take 8 KB: 500 bad deliveries would
# end in a broken stream.
TOLD = 10


class InvalidFields(Exception):
    """A request breaks the contract's rules; `violations` are (field, what was wrong), the first TOLD of them."""

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        self.violations = violations[:TOLD]
        problems = [f"{field}: {problem}" for field, problem in self.violations]
        if len(violations) > TOLD:
            problems.append(f"and {len(violations) - TOLD} more")
        super().__init__("; ".join(problems))


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

    field = "page_token"


class Overloaded(Exception):
    """This process has as much in hand as it can take; nothing was begun. Try again after `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many calls at once: try again shortly")
        self.retry_after = retry_after


class Stopping(Exception):
    """This replica is about to stop, and the work of the stream is not done: another replica can do it."""

    def __init__(self) -> None:
        super().__init__("this replica is about to stop: call again")


@dataclass(frozen=True)
class Answer:
    """The status for an exception class.

    `field` names the request's field in error; an exception's own attribute `field` goes before it.
    """

    code: StatusCode
    reason: str
    field: str | None = None
    message: str | None = None
    """Instead of the exception's own text."""


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
        InvalidPageToken: Answer(StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"),
        Overloaded: Answer(StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
        Stopping: Answer(StatusCode.UNAVAILABLE, "STOPPING"),
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


def to_status(error: Exception, *errors: Errors) -> tuple[StatusCode, str, status_pb2.Status]:
    """The gRPC code, the ErrorInfo reason, and the status with its details.

    An exception may bring `retry_after` (seconds) for RetryInfo and `localized` ((locale, text)) for LocalizedMessage.
    """
    domain, answer = _find(error, errors)
    message, reason = answer.message or str(error), answer.reason
    violations: Sequence[tuple[str, str]] = ()
    match error:
        case InvalidFields():
            violations = error.violations
        case OtherScope():
            reason += error.claim.upper()
        case _ if answer.code is StatusCode.INTERNAL:
            message = "internal error"
        case _ if field := getattr(error, "field", None) or answer.field:
            violations, message = [(field, message)], f"{field}: {message}"
    details = [_packed(error_details_pb2.ErrorInfo(reason=reason, domain=domain))]
    if violations:
        described = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in violations]
        details.append(_packed(error_details_pb2.BadRequest(field_violations=described)))
    if (seconds := getattr(error, "retry_after", None)) is not None:
        delay = Duration()
        delay.FromMilliseconds(int(seconds * 1000))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if localized := getattr(error, "localized", None):
        details.append(_packed(error_details_pb2.LocalizedMessage(locale=localized[0], message=localized[1])))
    return answer.code, reason, status_pb2.Status(code=answer.code.value[0], message=message, details=details)


def _packed(
    message: error_details_pb2.ErrorInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.RetryInfo
    | error_details_pb2.LocalizedMessage,
) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
