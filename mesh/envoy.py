"""Envoy's configuration on one machine: the gateway, and the way from reservation to approval.

A plain template until the chart exists: then the same configuration comes out of the chart's Istio objects.
"""

import base64
import json
from typing import Any

from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2

from mesh import identity
from mesh.contracts import IMAGE
from mesh.home import SERVICES, Home

Json = dict[str, Any]
TYPES = "type.googleapis.com/envoy.extensions"

# Which service answers which public gRPC service. ApprovalService is not here: no route leads to it from outside.
PUBLIC = {
    "vaccination.reservation.v1.ReservationService": "reservation",
    "vaccination.approval.v1.HospitalService": "approval",
    "vaccination.vaccinemgmt.v1.VaccinemgmtService": "vaccinemgmt",
    "vaccination.mypage.v1.MypageService": "mypage",
    "vaccination.mypage.v1.ViewService": "mypage",
}
# Every service answers for itself: a call says which in a header, a REST path in itself.
OPERATIONS = "vaccination.operations.v1.OperationsService"
REBUILD = "/vaccination.mypage.v1.ViewService/RebuildView"
WATCH = "/vaccination.mypage.v1.MypageService/WatchMyReservations"
APPROVE = "/vaccination.approval.v1.ApprovalService/"

# One place for the numbers; the chart's values take over.
GATEWAY_TIMEOUT = "10s"  # a person waits: longer than any call takes in health, and not for ever
APPROVE_TIMEOUT = "2s"  # reservation has to say "try again shortly" while the person still waits
APPROVE_TRY_TIMEOUT = "1.5s"  # leaves a second try some time when the first is refused
APPROVE_MAX_REQUESTS = 512  # in flight; at some 600/s on two busy cores the last has its answer in under a second
APPROVE_MAX_PENDING = 256  # waiting for a connection, which are there all the time: only while approval restarts
WATCHERS = 10_000  # streams that stay open, almost idle
CLOCK_SKEW = 5  # seconds; the default of 60 would keep an expired token alive for a minute

INVALID_TOKEN = "the bearer token is expired or not valid: get a new one"  # noqa: S105
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


def _typed(kind: str, **fields: Any) -> Json:
    return {"@type": f"{TYPES}.{kind}", **fields}


def _filter(name: str, kind: str, **fields: Any) -> Json:
    return {"name": f"envoy.filters.http.{name}", "typed_config": _typed(f"filters.http.{kind}", **fields)}


def _cluster(name: str, addresses: list[tuple[str, int]], max_requests: int = 1024, max_pending: int = 1024) -> Json:
    """A service. Each caller has its own cluster, as each would have its own Envoy: a crowd at the gateway's queries
    does not open the breaker in front of Approve."""
    http2 = {"connection_keepalive": {"interval": "30s", "timeout": "5s"}}
    options = {"explicit_http_config": {"http2_protocol_options": http2}}
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}
        for address, port in addresses
    ]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _typed(
                "upstreams.http.v3.HttpProtocolOptions", **options
            )
        },
        "circuit_breakers": {"thresholds": [{"max_requests": max_requests, "max_pending_requests": max_pending}]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }


def _listener(name: str, port: int, manager: Json) -> Json:
    connection_manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        codec_type="AUTO",
        normalize_path=True,  # what the routes judge is what the service sees
        merge_slashes=True,
        **manager,
    )
    network_filter = {"name": "envoy.filters.network.http_connection_manager", "typed_config": connection_manager}
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [network_filter]}],
    }


def _routes(name: str, routes: list[Json]) -> Json:
    return {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]}


def _retry(on: str) -> Json:
    """One more try, and at another process than the one that failed, if there is one; as istiod writes it."""
    predicate = {
        "name": "envoy.retry_host_predicates.previous_hosts",
        "typed_config": _typed("retry.host.previous_hosts.v3.PreviousHostsPredicate"),
    }
    return {
        "retry_on": on,
        "num_retries": 1,
        "retry_host_predicate": [predicate],
        "host_selection_retry_max_attempts": "5",
    }


def _gateway_routes() -> Json:
    # These two say that the service never saw the request, so that any call may be tried again.
    retry = _retry("connect-failure,refused-stream")
    # A stream lives until its client ends it; nothing has to happen on it meanwhile.
    watch = {"cluster": "mypage", "timeout": "0s", "idle_timeout": "0s", "retry_policy": retry}
    endless = [WATCH, REBUILD]
    routes: list[Json] = [{"match": {"path": path}, "route": watch} for path in endless]
    for service in SERVICES:
        asked = [{"name": "service", "string_match": {"exact": service}}]
        by_path = [{"name": "x-envoy-original-path", "string_match": {"prefix": f"/v1/operations/{service}/"}}]
        for headers in (asked, by_path):
            match = {"prefix": f"/{OPERATIONS}/", "headers": headers}
            route = {"cluster": service, "timeout": GATEWAY_TIMEOUT, "retry_policy": retry}
            routes.append({"match": match, "route": route})
    # One service answers for all of reflection, v1 and v1alpha: it describes the public services, whoever has them.
    for prefix, service in [*PUBLIC.items(), ("grpc.reflection.v1.ServerReflection", "mypage")]:
        route = {"cluster": service, "timeout": GATEWAY_TIMEOUT, "retry_policy": retry}
        routes.append({"match": {"prefix": f"/{prefix}/"}, "route": route})
    alpha = routes[-1] | {"match": {"prefix": "/grpc.reflection.v1alpha.ServerReflection/"}}
    nothing = {"status": 404, "body": {"inline_string": "no such method or path"}}
    return _routes("gateway", [*routes, alpha, {"match": {"prefix": "/"}, "direct_response": nothing}])


def _local_replies() -> Json:
    """What Envoy itself answers, in the form of the services' errors (google.rpc.Status): as trailers for gRPC, and as
    the JSON that the transcoder would make of it for REST."""

    def header(name: str, **match: Any) -> Json:
        return {"header_filter": {"header": {"name": name, **match}}}

    def http_status(value: int) -> Json:
        comparison = {"op": "EQ", "value": {"default_value": value, "runtime_key": "unused"}}
        return {"status_code_filter": {"comparison": comparison}}

    def both(*filters: Json) -> Json:
        return {"and_filter": {"filters": filters}}

    def set_header(name: str, value: str) -> Json:
        return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}

    # After the transcoder a REST request looks like gRPC, but for this header.
    not_rest = header("x-envoy-original-path", present_match=True, invert_match=True)
    is_grpc = both(header("content-type", string_match={"prefix": "application/grpc"}), not_rest)

    # jwt_authn answers 403 to a token for another audience; to the caller it is one more token that is not valid.
    refusals = {403: (401, *REFUSALS[401])} | {http: (http, *refusal) for http, refusal in REFUSALS.items()}
    to_grpc: list[Json] = []
    to_rest: list[Json] = []
    for met, (answered, grpc_code, rest_code, reason, message) in refusals.items():
        status = status_pb2.Status(code=grpc_code, message=message)
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="vaccination.edge"))
        details = base64.b64encode(status.SerializeToString()).decode()
        as_trailers = {
            "filter": both(is_grpc, http_status(met)),
            "headers_to_add": [
                set_header("grpc-status", str(grpc_code)),
                set_header("grpc-status-details-bin", details),
            ],
            "body_format_override": {"text_format_source": {"inline_string": message}},
        }
        text = INVALID_TOKEN if answered == 401 else "%LOCAL_REPLY_BODY%"
        as_json = {
            "filter": http_status(met),
            "body_format_override": {
                "json_format": json_format.MessageToDict(status) | {"code": rest_code, "message": text}
            },
        }
        to_grpc.append(as_trailers | {"status_code": answered})
        to_rest.append(as_json | {"status_code": answered})
    to_grpc.append({"filter": is_grpc})
    for http, code in FAILURES.items():
        body = {"code": code, "message": "%LOCAL_REPLY_BODY%"}
        to_rest.append({"filter": http_status(http), "body_format_override": {"json_format": body}})
    return {"mappers": to_grpc + to_rest}


def _access_log(path: str) -> Json:
    """Who called what and how it went; no token, no query, no body."""
    fields = {
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ:ORIG_OR_PATH)%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "ms": "%DURATION%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    log = _typed("access_loggers.file.v3.FileAccessLog", path=path, log_format={"json_format": fields})
    return {"name": "envoy.access_loggers.file", "typed_config": log}


def _gateway_filters(home: Home) -> list[Json]:
    provider = {
        "issuer": identity.ISSUER,
        "audiences": [identity.AUDIENCE],
        "local_jwks": {"inline_string": identity.jwks(home.path)},
        # Only here: by default a query parameter would do too, and end up in logs.
        "from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}],
        "forward_payload_header": "x-jwt-payload",
        "clock_skew_seconds": CLOCK_SKEW,
        "require_expiration": True,
    }
    # A missing token is the service's to refuse, which knows the calls that need none; a bad one ends here.
    requires = {"requires_any": {"requirements": [{"provider_name": "local"}, {"allow_missing": {}}]}}
    rules = [{"match": {"prefix": "/"}, "requires": requires}]
    transcoder = {
        "proto_descriptor": str(IMAGE),
        "services": [*PUBLIC, OPERATIONS],
        "convert_grpc_status": True,
        "print_options": {"always_print_primitive_fields": True, "stream_newline_delimited": True},
        "request_validation_options": {
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
    }
    return [
        _filter("grpc_web", "grpc_web.v3.GrpcWeb"),
        _filter("jwt_authn", "jwt_authn.v3.JwtAuthentication", providers={"local": provider}, rules=rules),
        _filter("grpc_json_transcoder", "grpc_json_transcoder.v3.GrpcJsonTranscoder", **transcoder),
        _filter("router", "router.v3.Router"),
    ]


def config(home: Home) -> Json:
    """The whole bootstrap configuration."""
    # Whoever calls from outside does not say who he is: only jwt_authn writes this header.
    forged = {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": _typed(
            "http.early_header_mutation.header_mutation.v3.HeaderMutation", mutations=[{"remove": "x-jwt-payload"}]
        ),
    }
    gateway = {
        "early_header_mutation_extensions": [forged],
        "use_remote_address": True,
        "http2_protocol_options": {"connection_keepalive": {"interval": "30s", "timeout": "10s"}},
        "access_log": [_access_log(str(home.path / "logs" / "access.log"))],
        "local_reply_config": _local_replies(),
        "route_config": _gateway_routes(),
        "http_filters": _gateway_filters(home),
    }
    # Approve may be tried again: it is decided once for each reservation_id, and a repeat gets the recorded answer.
    retry = _retry("connect-failure,refused-stream,unavailable,reset")
    approve = {
        "cluster": "to-approval",
        "timeout": APPROVE_TIMEOUT,
        "retry_policy": retry | {"per_try_timeout": APPROVE_TRY_TIMEOUT},
    }
    to_approval = {
        "http_filters": [_filter("router", "router.v3.Router")],
        "route_config": _routes("to-approval", [{"match": {"prefix": APPROVE}, "route": approve}]),
    }
    many = {"mypage": WATCHERS}
    replicas = {s: [("127.0.0.1", home.port(name)) for name in home.processes_of(s)] for s in SERVICES}
    clusters = [_cluster(s, replicas[s], many.get(s, 1024)) for s in SERVICES]
    breaker = {"max_requests": APPROVE_MAX_REQUESTS, "max_pending": APPROVE_MAX_PENDING}
    clusters.append(_cluster("to-approval", replicas["approval"], **breaker))
    listeners: list[tuple[str, Json]] = [("gateway", gateway), ("to-approval", to_approval)]
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": home.port("envoy-admin")}}},
        "static_resources": {
            "listeners": [_listener(name, home.port(name), manager) for name, manager in listeners],
            "clusters": clusters,
        },
    }


def write_config(home: Home) -> None:
    """To the file with which `command` starts."""
    (home.path / "envoy.json").write_text(json.dumps(config(home), indent=1))
