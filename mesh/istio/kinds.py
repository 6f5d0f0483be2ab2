"""Istio's objects, as far as they are translated: a field or a value that is not here is refused.

The refusal names the object and the field's path in it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

HCM = "envoy.filters.network.http_connection_manager"
CLAIM = re.compile(r"request\.auth\.claims((?:\[[^\]]+\])+)")


class Untranslatable(ValueError):
    """An object says what this translation does not know; its text names object and field."""


def duration(text: str) -> str:
    """Converts a duration from Go's form (1m30s, 250ms) to that of protobuf's JSON (90s, 0.250s)."""
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", text)
    if not parts or "".join(map("".join, parts)) != text:
        raise Untranslatable(f"{text!r} is no duration")
    seconds = round(sum(float(n) * {"h": 3600, "m": 60, "s": 1, "ms": 0.001}[unit] for n, unit in parts), 3)
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds:.3f}s"


def _full_name(host: str) -> str:
    if "." not in host or "*" in host:
        raise Untranslatable(f"{host} is not translated: a service's full name is")
    return host


def _gateway_host(host: str) -> str:
    if "/" in host:
        raise Untranslatable(f"{host} is not translated: a host without a namespace is")
    return host


def _path(path: str) -> str:
    if "{" in path:
        raise Untranslatable(f"{path} is not translated: a path without templates is")
    return path


def _principal(principal: str) -> str:
    if principal != "*" and "*" in principal:
        raise Untranslatable(f"{principal} is not translated: a whole principal is, or a star alone")
    return principal


def _request_principal(principal: str) -> str:
    if principal != "*" and "/" not in principal:
        raise Untranslatable(f"{principal} is not translated: ISSUER/SUBJECT is, or a star alone")
    return principal


def _claim(key: str) -> str:
    if not CLAIM.fullmatch(key):
        raise Untranslatable(f"{key} is not translated")
    return key


Duration = Annotated[str, AfterValidator(duration)]
FullName = Annotated[str, AfterValidator(_full_name)]
Port = Annotated[str, Field(pattern=r"^\d+$")]


class Part(BaseModel):
    """A part of an object, with all fields that are translated."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)

    def only_one_of(self, *names: str) -> None:
        """Refuses the part unless exactly one of these fields is set."""
        if len(found := [name for name in names if getattr(self, name) is not None]) != 1:
            fields = ", ".join(to_camel(name) for name in names)
            raise Untranslatable(f"has {len(found)} of the fields {fields}, not one")


class Selector(Part):
    match_labels: dict[str, str] = {}


class Selecting(Part):
    """The spec of an object about workloads: those that its selector names, without one all of the namespace."""

    selector: Selector = Selector()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether it is about a workload with these labels."""
        return self.selector.match_labels.items() <= labels.items()


class StringMatch(Part):
    exact: str | None = None
    prefix: str | None = None
    regex: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "StringMatch":
        self.only_one_of("exact", "prefix", "regex")
        return self


class RequestMatch(Part):
    port: int | None = None
    uri: StringMatch | None = None
    headers: dict[str, StringMatch] = {}
    without_headers: dict[str, StringMatch] = {}


class PortNumber(Part):
    number: int


class Destination(Part):
    host: FullName
    # Istio takes a service's only port when there is none; here nobody knows the services' ports.
    port: PortNumber
    subset: str = ""


class Route(Part):
    destination: Destination


class Body(Part):
    string: str


class DirectResponse(Part):
    status: int
    body: Body


class Retries(Part):
    attempts: int
    retry_on: str | None = None
    per_try_timeout: Duration | None = None
    backoff: Duration | None = None

    @model_validator(mode="after")
    def _when(self) -> "Retries":
        if self.attempts and not self.retry_on:
            raise Untranslatable("retryOn is missing")
        return self


class CorsPolicy(Part):
    allow_origins: list[StringMatch] = []
    allow_methods: list[str] = []
    allow_headers: list[str] = []
    expose_headers: list[str] = []
    max_age: Duration


class ResponseHeaders(Part):
    set: dict[str, str] = {}


class Headers(Part):
    response: ResponseHeaders = ResponseHeaders()


class HttpRoute(Part):
    name: str
    match: list[RequestMatch] = []
    route: Annotated[list[Route], Field(min_length=1, max_length=1)] | None = None
    direct_response: DirectResponse | None = None
    timeout: Duration | None = None
    retries: Retries | None = None
    cors_policy: CorsPolicy | None = None
    headers: Headers = Headers()

    @model_validator(mode="after")
    def _one_action(self) -> "HttpRoute":
        self.only_one_of("route", "direct_response")
        if self.route and self.retries is None:
            raise Untranslatable("retries is missing: Istio would retry twice, writes included")
        if self.direct_response and (self.timeout or self.retries):
            raise Untranslatable("timeout and retries are not translated beside directResponse")
        if self.route and {match.port for match in self.match} - {None, self.route[0].destination.port.number}:
            raise Untranslatable("match.port is not translated where it is not the destination's")
        return self


class VirtualService(Part):
    hosts: list[str] = Field(min_length=1)
    gateways: list[str] = Field(default=["mesh"], min_length=1)
    # All objects are of one namespace here, so it makes no difference.
    export_to: list[Literal["."]] = []
    http: list[HttpRoute] = []

    @model_validator(mode="after")
    def _hosts_of_the_mesh(self) -> "VirtualService":
        if "mesh" in self.gateways:
            for host in self.hosts:
                _full_name(host)
        return self


class Tcp(Part):
    max_connections: int | None = None
    connect_timeout: Duration = "10s"


class Http(Part):
    http1_max_pending_requests: int | None = None
    http2_max_requests: int | None = None
    max_retries: int | None = None
    max_requests_per_connection: int = 0
    idle_timeout: Duration | None = None
    max_concurrent_streams: int = 0


class ConnectionPool(Part):
    tcp: Tcp = Tcp()
    http: Http = Http()


class Warmup(Part):
    duration: Duration


class LoadBalancer(Part):
    simple: Literal["LEAST_REQUEST", "ROUND_ROBIN"] = "LEAST_REQUEST"
    warmup: Warmup | None = None

    @model_validator(mode="after")
    def _warmup(self) -> "LoadBalancer":
        if self.warmup and self.simple != "LEAST_REQUEST":
            raise Untranslatable(f"warmup is not translated for {self.simple}")
        return self


class OutlierDetection(Part):
    consecutive_5xx_errors: int | None = Field(None, alias="consecutive5xxErrors")
    consecutive_gateway_errors: int | None = None
    interval: Duration | None = None
    base_ejection_time: Duration | None = None
    max_ejection_percent: int | None = None


class RetryBudget(Part):
    percent: int | float
    min_retry_concurrency: int | None = None


class TrafficPolicy(Part):
    load_balancer: LoadBalancer = LoadBalancer()
    connection_pool: ConnectionPool = ConnectionPool()
    outlier_detection: OutlierDetection | None = None
    retry_budget: RetryBudget | None = None


class SubsetPolicy(Part):
    connection_pool: ConnectionPool | None = None


class Subset(Part):
    """All replicas of a host, under a name that has a policy of its own."""

    name: str
    labels: dict[str, str] = Field(default={}, max_length=0)
    traffic_policy: SubsetPolicy = SubsetPolicy()


class DestinationRule(Part):
    host: FullName
    traffic_policy: TrafficPolicy = TrafficPolicy()
    subsets: list[Subset] = []


class MutualTls(Part):
    mode: Literal["UNSET", "STRICT", "PERMISSIVE"] = "UNSET"


class PeerAuthentication(Selecting):
    mtls: MutualTls = MutualTls()
    port_level_mtls: dict[Port, MutualTls] = {}

    @model_validator(mode="after")
    def _ports_of_a_workload(self) -> "PeerAuthentication":
        if self.port_level_mtls and not self.selector.match_labels:
            raise Untranslatable("portLevelMtls is not translated without a selector: Istio ignores it")
        return self


class FromHeader(Part):
    name: str
    prefix: str


class ClaimToHeader(Part):
    header: str
    claim: str


class JwtRule(Part):
    issuer: str
    audiences: list[str] = []
    jwks_uri: str | None = None
    jwks: str | None = None
    forward_original_token: bool = False
    from_headers: list[FromHeader] = []
    output_payload_to_header: str | None = None
    output_claim_to_headers: list[ClaimToHeader] = []

    @model_validator(mode="after")
    def _one_set_of_keys(self) -> "JwtRule":
        self.only_one_of("jwks_uri", "jwks")
        return self


class RequestAuthentication(Selecting):
    jwt_rules: list[JwtRule] = []


class Source(Part):
    principals: list[Annotated[str, AfterValidator(_principal)]] = []
    request_principals: list[Annotated[str, AfterValidator(_request_principal)]] = []


class From(Part):
    source: Source


class Operation(Part):
    paths: list[Annotated[str, AfterValidator(_path)]] = []
    not_paths: list[Annotated[str, AfterValidator(_path)]] = []
    ports: list[Port] = []
    not_ports: list[Port] = []
    methods: list[str] = []
    not_methods: list[str] = []


class To(Part):
    operation: Operation


class When(Part):
    key: Annotated[str, AfterValidator(_claim)]
    values: list[str] = []
    not_values: list[str] = []


class Rule(Part):
    from_: list[From] = Field([], alias="from")
    to: list[To] = []
    when: list[When] = []


class AuthorizationPolicy(Selecting):
    action: Literal["ALLOW"] = "ALLOW"
    rules: list[Rule] = []


class GatewayPort(Part):
    number: int
    name: str
    protocol: Literal["HTTP2", "HTTPS"]


class ServerTls(Part):
    mode: Literal["SIMPLE"]
    credential_name: str


class Server(Part):
    hosts: list[Annotated[str, AfterValidator(_gateway_host)]] = Field(min_length=1)
    port: GatewayPort
    tls: ServerTls | None = None

    @model_validator(mode="after")
    def _tls_for_https(self) -> "Server":
        if (self.port.protocol == "HTTPS") != (self.tls is not None):
            raise Untranslatable(f"tls does not fit the protocol {self.port.protocol}")
        return self


class Gateway(Part):
    selector: dict[str, str] = Field(min_length=1)
    servers: list[Server] = Field(min_length=1, max_length=1)


class LogProvider(Part):
    name: Literal["envoy"]


class AccessLogging(Part):
    providers: list[LogProvider]


class Telemetry(Selecting):
    access_logging: list[AccessLogging] = []


class WorkloadSelector(Part):
    labels: dict[str, str] = {}


class SubFilter(Part):
    name: str


class FilterMatch(Part):
    name: Literal["envoy.filters.network.http_connection_manager"]
    sub_filter: SubFilter | None = None


class FilterChainMatch(Part):
    filter: FilterMatch


class ListenerMatch(Part):
    filter_chain: FilterChainMatch


class RouteMatch(Part):
    name: str


class VhostMatch(Part):
    route: RouteMatch


class RouteConfigurationMatch(Part):
    vhost: VhostMatch


class ClusterMatch(Part):
    service: str
    port_number: int


class PatchMatch(Part):
    context: Literal["GATEWAY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND"]
    listener: ListenerMatch | None = None
    route_configuration: RouteConfigurationMatch | None = None
    cluster: ClusterMatch | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "PatchMatch":
        self.only_one_of("listener", "route_configuration", "cluster")
        return self


class Patch(Part):
    operation: Literal["MERGE", "INSERT_BEFORE", "INSERT_AFTER"]
    value: dict[str, Any]


class ConfigPatch(Part):
    apply_to: Literal["NETWORK_FILTER", "HTTP_FILTER", "HTTP_ROUTE", "CLUSTER"]
    match: PatchMatch
    patch: Patch

    @model_validator(mode="after")
    def _fits(self) -> "ConfigPatch":
        match, value = self.match, self.patch.value
        beside = match.listener and match.listener.filter_chain.filter.sub_filter
        of_listener = "HTTP_FILTER" if beside else "NETWORK_FILTER"
        if self.apply_to != (
            "HTTP_ROUTE" if match.route_configuration else "CLUSTER" if match.cluster else of_listener
        ):
            raise Untranslatable(f"match does not fit {self.apply_to}")
        if self.apply_to != "HTTP_FILTER" and self.patch.operation != "MERGE":
            raise Untranslatable(f"{self.patch.operation} of {self.apply_to} is not translated")
        if self.apply_to == "NETWORK_FILTER" and value.keys() != {"typed_config"}:
            raise Untranslatable("patch.value: nothing but typed_config is translated for a NETWORK_FILTER")
        if self.apply_to == "CLUSTER" and value.keys() != {"typed_extension_protocol_options"}:
            raise Untranslatable(
                "patch.value: nothing but typed_extension_protocol_options is translated for a CLUSTER"
            )
        return self


class EnvoyFilter(Part):
    workload_selector: WorkloadSelector = WorkloadSelector()
    config_patches: list[ConfigPatch] = []


KINDS: dict[str, type[Part]] = {
    kind.__name__: kind
    for kind in (
        VirtualService,
        DestinationRule,
        PeerAuthentication,
        RequestAuthentication,
        AuthorizationPolicy,
        Gateway,
        Telemetry,
        EnvoyFilter,
    )
}
Spec = TypeVar("Spec", bound=Part, covariant=True)


class _Metadata(Part):
    name: str
    namespace: str = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    @model_validator(mode="after")
    def _nothing_for_istio(self) -> "_Metadata":
        # Some of Istio's labels and annotations change what an object does, such as istio.io/dry-run and istio.io/rev.
        for key in (*self.labels, *self.annotations):
            if key.partition("/")[0].endswith("istio.io"):
                raise Untranslatable(f"{key} is not translated")
        return self


class _Envelope(Part):
    api_version: str
    kind: str
    metadata: _Metadata
    spec: dict[str, Any] = {}


@dataclass(frozen=True)
class Object(Generic[Spec]):
    """An object whose fields are all known."""

    name: str
    namespace: str
    spec: Spec

    def __str__(self) -> str:
        return f"{type(self.spec).__name__} {self.name}"


def read(item: Mapping[str, Any]) -> Object[Part]:
    """Reads one object; Untranslatable if it has a field or a value that is not translated."""
    where = f"{item.get('kind')} {item.get('metadata', {}).get('name')}"
    if item.get("kind") not in KINDS:
        raise Untranslatable(f"{where}: the kind is not translated")
    try:
        envelope = _Envelope.model_validate(item)
        spec = KINDS[envelope.kind].model_validate(envelope.spec)
    except ValidationError as error:
        first = error.errors()[0]
        path = "spec" if error.title != _Envelope.__name__ else ""
        for step in first["loc"]:
            path += f"[{step}]" if isinstance(step, int) else f".{step}"
        raise Untranslatable(f"{where}: {_told(path.removeprefix('.'), first)}") from None
    return Object(envelope.metadata.name, envelope.metadata.namespace, spec)


def _told(path: str, error: Any) -> str:
    match error["type"]:
        case "extra_forbidden":
            return f"{path} is not translated"
        case "missing":
            return f"{path} is missing"
        case "literal_error":
            return f"{path}: {error['input']!r} is not translated"
        case "value_error":
            return f"{path}: {error['ctx']['error']}"
        case _:
            return f"{path}: {error['msg']}"
