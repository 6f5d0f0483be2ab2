"""What the gateway itself answers, in the form of the services' errors (google.rpc.Status): Envoy's local replies.

As trailers for gRPC, and as the JSON that the transcoder would make of it for REST. Made with the contracts' code
(`python -m mesh.contracts`) into a file of the chart, since Helm cannot write protobuf.
"""

import base64
import json
from typing import Any

from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2

from mesh.home import ROOT

Json = dict[str, Any]
FILE = ROOT / "helm" / "vaccination" / "files" / "local-replies.json"

INVALID_TOKEN = "the bearer token is expired or not valid: get a new one"  # noqa: S105
NO_TOKEN = "no bearer token: send the header 'authorization: Bearer <JWT>'"  # noqa: S105
# What Envoy itself refuses, by HTTP status: code over gRPC, code in REST's JSON, ErrorReason of vaccination.edge, and
# the message over gRPC: a fixed one, because clients reject details that have another message than the call.
REFUSALS = {
    400: (code_pb2.INVALID_ARGUMENT, code_pb2.INVALID_ARGUMENT, "MALFORMED_REQUEST", "the request is malformed"),
    401: (code_pb2.UNAUTHENTICATED, code_pb2.UNAUTHENTICATED, "TOKEN_INVALID", INVALID_TOKEN),
    404: (code_pb2.UNIMPLEMENTED, code_pb2.NOT_FOUND, "UNKNOWN_METHOD", "no such method or path"),
    413: (code_pb2.RESOURCE_EXHAUSTED, code_pb2.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", "the request is too large"),
    431: (code_pb2.RESOURCE_EXHAUSTED, code_pb2.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", "its headers are too large"),
}
# What it cannot do, by HTTP status, in REST's JSON; over gRPC its own choice is right.
FAILURES = {
    408: code_pb2.DEADLINE_EXCEEDED,
    429: code_pb2.RESOURCE_EXHAUSTED,
    502: code_pb2.UNAVAILABLE,
    503: code_pb2.UNAVAILABLE,
    504: code_pb2.DEADLINE_EXCEEDED,
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


# After the transcoder a REST request looks like gRPC, but for this header.
_IS_REST = _header("x-envoy-original-path", present_match=True)
_IS_GRPC = _all(
    _header("content-type", string_match={"prefix": "application/grpc"}),
    _header("x-envoy-original-path", present_match=True, invert_match=True),
)


def local_replies() -> Json:
    """Envoy's local_reply_config."""
    verified = _header("x-jwt-payload", present_match=True)
    bearer = _header("authorization", string_match={"prefix": "Bearer "})
    denied = (403, code_pb2.PERMISSION_DENIED, code_pb2.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
    unknown = (401, code_pb2.UNAUTHENTICATED, code_pb2.UNAUTHENTICATED)
    # In the order in which they are tried: which replies, and what becomes of them.
    refusals: list[tuple[Json, int, int, int, str, str]] = [
        # The policies answer 403 to whom they do not know too; and jwt_authn to a token for another audience, which is
        # one more that is not valid.
        (_all(_status_is(403), verified), *denied, "this call is for another role"),
        (_all(_status_is(403), bearer), *unknown, "TOKEN_INVALID", INVALID_TOKEN),
        (_status_is(403), *unknown, "TOKEN_MISSING", NO_TOKEN),
        *((_status_is(http), http, *refusal) for http, refusal in REFUSALS.items()),
    ]
    to_grpc: list[Json] = []
    to_rest: list[Json] = []
    for met, answered, grpc_code, rest_code, reason, message in refusals:
        status = status_pb2.Status(code=grpc_code, message=message)
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="vaccination.edge"))
        details = base64.b64encode(status.SerializeToString()).decode()
        as_trailers = {
            "filter": _all(_IS_GRPC, met),
            "headers_to_add": [_set("grpc-status", str(grpc_code)), _set("grpc-status-details-bin", details)],
            "body_format_override": {"text_format_source": {"inline_string": message}},
        }
        # What the transcoder says of a request names the field; what others say is no more than the status.
        text = "%LOCAL_REPLY_BODY%" if answered in (400, 404, 413, 431) else message
        body = json_format.MessageToDict(status) | {"code": rest_code, "message": text}
        as_json = {"filter": met, "body_format_override": {"json_format": body}}
        to_grpc.append(as_trailers | {"status_code": answered})
        to_rest.append(as_json | {"status_code": answered})
    to_grpc.append({"filter": _IS_GRPC})
    for http, code in FAILURES.items():
        content = {"code": code, "message": "%LOCAL_REPLY_BODY%"}
        to_rest.append({"filter": _status_is(http), "body_format_override": {"json_format": content}})
    return {"mappers": to_grpc + to_rest}


def text() -> str:
    """The file's content."""
    return json.dumps(local_replies(), indent=1, sort_keys=True) + "\n"
