"""The gateway's own answers (Envoy's local replies) in the form of the services' errors, google.rpc.Status.

For gRPC they are trailers, for REST the JSON that the transcoder would make of them. `./dev gen` writes them into a
file of the chart, since Helm cannot write protobuf.
"""

import base64
import json
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2

Json = dict[str, Any]

INVALID_TOKEN = "the bearer token is expired or not valid: get a new one"  # noqa: S105
NO_TOKEN = "no bearer token: send the header 'authorization: Bearer <JWT>'"  # noqa: S105
# Envoy's refusals by HTTP status: the code over gRPC, the code in REST's JSON, the ErrorReason of vaccination.edge, and
# the message over gRPC. That is fixed, because clients reject details whose message is not the call's.
REFUSALS = {
    400: (code_pb2.INVALID_ARGUMENT, code_pb2.INVALID_ARGUMENT, "MALFORMED_REQUEST", "the request is malformed"),
    404: (code_pb2.UNIMPLEMENTED, code_pb2.NOT_FOUND, "UNKNOWN_METHOD", "no such method or path"),
    413: (code_pb2.RESOURCE_EXHAUSTED, code_pb2.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", "the request is too large"),
    431: (code_pb2.RESOURCE_EXHAUSTED, code_pb2.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", "its headers are too large"),
}
# The status of the chart's rate limit for a crowd. Nothing else answers it, so it is no caller's own limit.
CROWD = 507
PAUSES = (1, 2, 3, 4, 5, 6, 8, 10)  # seconds
BUSY = "too many calls at once: try again shortly"
OFTEN = "too many calls by this caller: try again shortly"
SLOW = "no answer in time; the call may have taken effect, and may be repeated"
AWAY = "the service cannot be reached: repeat the call"
# Envoy's failures by HTTP status, as REFUSALS has them.
FAILURES = {
    408: (code_pb2.DEADLINE_EXCEEDED, code_pb2.DEADLINE_EXCEEDED, "TIMED_OUT", "the request did not arrive in time"),
    502: (code_pb2.UNAVAILABLE, code_pb2.UNAVAILABLE, "UNREACHABLE", AWAY),
    503: (code_pb2.UNAVAILABLE, code_pb2.UNAVAILABLE, "UNREACHABLE", AWAY),
    504: (code_pb2.DEADLINE_EXCEEDED, code_pb2.DEADLINE_EXCEEDED, "TIMED_OUT", SLOW),
}


def _header(name: str, **match: Any) -> Json:
    return {"header_filter": {"header": {"name": name, **match}}}


def _status_is(value: int) -> Json:
    comparison = {"op": "EQ", "value": {"default_value": value, "runtime_key": "unused"}}
    return {"status_code_filter": {"comparison": comparison}}


def _all(*filters: Json) -> Json:
    return {"and_filter": {"filters": list(filters)}}


def _set(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _one_in(number: int) -> Json:
    chance = {"numerator": 1_000_000 // number, "denominator": "MILLION"}
    return {"runtime_filter": {"runtime_key": "unused", "percent_sampled": chance, "use_independent_randomness": True}}


# After the transcoder a REST request looks like gRPC, except that it has the header x-envoy-original-path.
_IS_GRPC = _all(
    _header("content-type", string_match={"prefix": "application/grpc"}),
    _header("x-envoy-original-path", present_match=True, invert_match=True),
)


@dataclass(frozen=True)
class Refusal:
    """What a local reply becomes. Codes are google.rpc.Code's, `reason` is an ErrorReason of vaccination.edge."""

    met: Json
    http: int
    grpc: int
    rest: int
    reason: str
    message: str
    retry_after: int | None = None  # seconds
    keeps_text: bool = False  # REST has Envoy's own message, which names the field

    def _status(self, code: int) -> status_pb2.Status:
        status = status_pb2.Status(code=code, message=self.message)
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain="vaccination.edge"))
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromSeconds(self.retry_after)
            status.details.add().Pack(retry)
        return status

    def to_grpc(self) -> Json:
        """Trailers without a body: with a body, gRPC-Web would get a status made from the HTTP status."""
        details = base64.b64encode(self._status(self.grpc).SerializeToString()).decode()
        trailers = {"grpc-status": str(self.grpc), "grpc-message": self.message, "grpc-status-details-bin": details}
        return {
            "filter": _all(_IS_GRPC, self.met),
            "status_code": 200,
            "headers_to_add": [_set(name, value) for name, value in trailers.items()],
            "body_format_override": {
                "text_format_source": {"inline_string": ""},
                "content_type": "application/grpc",
            },
        }

    def to_rest(self) -> Json:
        """The JSON that the transcoder would make of it."""
        body = json_format.MessageToDict(self._status(self.rest))
        if self.keeps_text:
            body["message"] = "%LOCAL_REPLY_BODY%"
        made: Json = {
            "filter": self.met,
            "status_code": self.http,
            "body_format_override": {"json_format": body},
        }
        if self.retry_after is not None:
            made["headers_to_add"] = [_set("retry-after", str(self.retry_after))]
        return made


def _refusals() -> list[Refusal]:
    """All refusals, in the order in which Envoy tries them."""
    exhausted = (429, code_pb2.RESOURCE_EXHAUSTED, code_pb2.RESOURCE_EXHAUSTED)
    # The breaker is open, or more calls came than a replica of the gateway lets in.
    crowd = {"or_filter": {"filters": [{"response_flag_filter": {"flags": ["UO"]}}, _status_is(CROWD)]}}
    verified = _header("x-jwt-payload", present_match=True)
    bearer = _header("authorization", string_match={"prefix": "Bearer "})
    denied = (403, code_pb2.PERMISSION_DENIED, code_pb2.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
    unknown = (401, code_pb2.UNAUTHENTICATED, code_pb2.UNAUTHENTICATED)
    return [
        # Callers that are refused together would come back together. So an eighth of them gets each of these pauses.
        *(
            Refusal(_all(crowd, _one_in(len(PAUSES) - i)), *exhausted, "OVERLOADED", BUSY, pause)
            for i, pause in enumerate(PAUSES)
        ),
        Refusal(_status_is(429), *exhausted, "RATE_LIMITED", OFTEN, 1),
        # The policies answer 403 to callers without a token too, and jwt_authn to a token for another audience, which
        # is an invalid token like others.
        Refusal(_all(_status_is(403), verified), *denied, "this call is for another role"),
        Refusal(_all(_status_is(403), bearer), *unknown, "TOKEN_INVALID", INVALID_TOKEN),
        Refusal(_status_is(403), *unknown, "TOKEN_MISSING", NO_TOKEN),
        Refusal(_status_is(401), *unknown, "TOKEN_INVALID", INVALID_TOKEN),
        *(Refusal(_status_is(http), http, *refusal, keeps_text=True) for http, refusal in REFUSALS.items()),
        *(Refusal(_status_is(http), http, *failure) for http, failure in FAILURES.items()),
    ]


def local_replies() -> Json:
    """Envoy's local_reply_config."""
    refusals = _refusals()
    to_rest = [refusal.to_rest() for refusal in refusals]
    return {"mappers": [*(r.to_grpc() for r in refusals), {"filter": _IS_GRPC}, *to_rest]}


def reasons() -> dict[str, str]:
    """Every reason that the gateway gives, with the name of its code over REST."""
    return {refusal.reason: code_pb2.Code.Name(refusal.rest) for refusal in _refusals()}


def text() -> str:
    """The file's content."""
    return json.dumps(local_replies(), separators=(",", ":"), sort_keys=True) + "\n"
