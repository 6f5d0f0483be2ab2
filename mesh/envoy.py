"""The chart's mesh on one machine: Envoy's configuration from the rendered Istio objects.

One Envoy stands for all the proxies of a cluster. The gateway listens where people call; for each caller of another
component there is its way out; and before each process of a service, on 127.0.0.2, its way in. Calls between them are
mutual TLS with the identities of the cluster, so that the policies mean here what they mean there. Which replicas there
are is fixed here, where a cluster has the kubelet's probes: a dead one has to be noticed by the mesh itself.
"""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from mesh import istio
from mesh.authority import Authority
from mesh.home import Home, write_secret
from mesh.istio import HCM, Json, Objects, http_filter, named, typed

GATEWAY = "gateway"
SIDECAR = "127.0.0.2"  # where the proxies listen that stand before the processes, each at its process' port
TLS = {
    "tls_minimum_protocol_version": "TLSv1_2",
    "tls_maximum_protocol_version": "TLSv1_3",
    "cipher_suites": [
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "AES256-GCM-SHA384",
        "AES128-GCM-SHA256",
    ],
}

STATISTICS = http_filter(
    "grpc_stats", "grpc_stats.v3.FilterConfig", emit_filter_state=True, stats_for_all_methods=False
)
ROUTER = http_filter("router", "router.v3.Router")


class Chart:
    """What the rendered chart says of components."""

    def __init__(self, objects: list[Json]) -> None:
        self.istio = Objects(objects)
        self._objects = objects

    def _of(self, kind: str) -> dict[str, Json]:
        return {item["metadata"]["name"]: item for item in self._objects if item["kind"] == kind}

    def env(self, component: str) -> dict[str, str]:
        """A component's settings, as its ConfigMap has them."""
        data: dict[str, str] = self._of("ConfigMap")[component]["data"] or {}
        return data

    def hosts(self) -> Iterator[tuple[str, str, int]]:
        """Each component with the name and the port by which others call it."""
        for name, service in self._of("Service").items():
            host = f"{name}.{service['metadata']['namespace']}.svc.cluster.local"
            for port in service["spec"]["ports"]:
                if port.get("appProtocol") == "grpc":
                    yield name, host, port["port"]

    def labels(self, component: str) -> dict[str, str]:
        """What selectors see."""
        if component == GATEWAY:
            return {"app.kubernetes.io/name": GATEWAY}
        labels: dict[str, str] = self._of("Deployment")[component]["spec"]["template"]["metadata"]["labels"]
        return labels

    def principal(self, component: str) -> str:
        """Its SPIFFE id."""
        namespace = next(iter(self._of("Service").values()))["metadata"]["namespace"]
        return f"spiffe://cluster.local/ns/{namespace}/sa/{component}"


def manager(stat_prefix: str, routes: list[Json], filters: Sequence[Json | None], **others: Any) -> Json:
    """A connection manager as istiod makes it."""
    return typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=stat_prefix,
        route_config={
            "name": stat_prefix,
            "virtual_hosts": [
                {"name": stat_prefix, "domains": ["*"], "routes": routes, "include_request_attempt_count": True}
            ],
            "validate_clusters": False,
            "max_direct_response_body_size_bytes": 1048576,
            "ignore_port_in_host_matching": True,
        },
        http_filters=[
            *filter(None, filters),
            http_filter(
                "grpc_stats", "grpc_stats.v3.FilterConfig", emit_filter_state=True, stats_for_all_methods=False
            ),
            http_filter("router", "router.v3.Router"),
        ],
        http2_protocol_options={},
        server_name="istio-envoy",
        stream_idle_timeout="0s",
        normalize_path=True,
        path_with_escaped_slashes_action="KEEP_UNCHANGED",
        **others,
    )


def inbound_manager(objects: Objects, labels: dict[str, str], port: int, cluster: str) -> Json:
    """Before a process: who may call it."""
    route = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": cluster,
            "timeout": "0s",
            "max_stream_duration": {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"},
        },
        "name": "default",
    }
    made = manager(
        f"inbound_{port};",
        [route],
        [objects.jwt_authn(labels), objects.rbac(labels)],
        use_remote_address=False,
        forward_client_cert_details="APPEND_FORWARD",
        set_current_client_cert_details={"subject": True, "dns": True, "uri": True},
    )
    objects.patch("SIDECAR_INBOUND", labels, made)
    return made


def _listener(name: str, address: str, port: int, manager: Json, socket: Json | None = None) -> Json:
    chain: Json = {"filters": [{"name": HCM, "typed_config": manager}]}
    if socket:
        chain["transport_socket"] = socket
    return {
        "name": name,
        "address": {"socket_address": {"address": address, "port_value": port}},
        "filter_chains": [chain],
        # Limits memory: what one connection may have waiting.
        "per_connection_buffer_limit_bytes": 1048576,
    }


def _endpoints(name: str, addresses: list[tuple[str, int]]) -> Json:
    endpoints = [{"endpoint": {"address": {"socket_address": {"address": a, "port_value": p}}}} for a, p in addresses]
    return {"type": "STATIC", "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}}


class Machine:
    """Builds the configuration."""

    def __init__(self, home: Home, chart: Chart) -> None:
        self.home, self.chart, self.authority = home, chart, Authority()
        self.listeners: list[Json] = []
        self.clusters: list[Json] = []

    def config(self) -> Json:
        """The whole bootstrap configuration."""
        self._gateway()
        hosts = {f"{host}:{port}": name for name, host, port in self.chart.hosts()}
        for name in hosts.values():
            for variable, target in self.chart.env(name).items():
                if variable.endswith("_TARGET") and target in hosts:
                    self._way_out(name, hosts[target], target)
            self._ways_in(name)
        return {
            "admin": {
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.home.port("envoy-admin")}}
            },
            "static_resources": {"listeners": self.listeners, "clusters": self.clusters},
            # As Istio's proxies do: a cluster's name has dots in it, and ends at the semicolon.
            "stats_config": {
                "use_all_default_tags": False,
                "stats_tags": [{"tag_name": "cluster_name", "regex": "^cluster\\.((.+?);\\.)"}],
            },
        }

    def _gateway(self) -> None:
        objects, labels = self.chart.istio, self.chart.labels(GATEWAY)
        name, _ = objects.gateway_port(labels)
        made = manager(
            GATEWAY,
            objects.routes(name),
            [objects.jwt_authn(labels), objects.rbac(labels), http_filter("cors", "cors.v3.Cors")],
            use_remote_address=True,
            forward_client_cert_details="SANITIZE_SET",
        )
        if objects.logs_access(labels):
            made["access_log"] = [_access_log(str(self.home.path / "logs" / "access.log"))]
        objects.patch("GATEWAY", labels, made)
        self._calls(GATEWAY, made)
        self._fetches_keys(made)
        self.listeners.append(_listener(GATEWAY, "127.0.0.1", self.home.port(GATEWAY), made))

    def _way_out(self, caller: str, callee: str, target: str) -> None:
        """Where a process of the caller finds the other component."""
        name = f"to-{callee}"
        host = target.rpartition(":")[0]
        made = manager(f"outbound_{name};", self.chart.istio.routes("mesh", host), [], use_remote_address=False)
        self.chart.istio.patch("SIDECAR_OUTBOUND", self.chart.labels(caller), made)
        self._calls(caller, made)
        self.listeners.append(_listener(name, "127.0.0.1", self.home.port(name), made))

    def _calls(self, caller: str, manager: Json) -> None:
        """Gives a caller its own clusters, as it has its own proxy in a cluster: a crowd at the gateway's queries does
        not open the breaker in front of Approve."""
        used: set[str] = set()
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            if action := route.get("route"):
                used.add(action["cluster"])
                action["cluster"] = f"{caller}>{action['cluster']}"
        components = {(host, port): name for name, host, port in self.chart.hosts()}
        for wanted in sorted(used):
            _, port, subset, host = wanted.split("|")
            name, cluster = components[host, int(port)], self.chart.istio.cluster(host, int(port), subset)
            unique = f"{caller}>{cluster['name']}"
            addresses = [(SIDECAR, self.home.port(process)) for process in self.home.processes_of(name)]
            cluster |= {"name": unique, "alt_stat_name": f"{unique};"} | _endpoints(unique, addresses)
            if self.chart.istio.strict(self.chart.labels(name)):
                whom = {"match_typed_subject_alt_names": [self._is(name)]}
                cluster["transport_socket"] = self._tls(caller, "UpstreamTlsContext", whom)
            self.clusters.append(cluster)

    def _ways_in(self, component: str) -> None:
        labels = self.chart.labels(component)
        for process in self.home.processes_of(component):
            port, name = self.home.port(process), f"inbound|{process}"
            socket = None
            if self.chart.istio.strict(labels):
                anybody = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://"}}]}
                socket = self._tls(component, "DownstreamTlsContext", anybody) | {}
                socket["typed_config"]["require_client_certificate"] = True
            made = inbound_manager(self.chart.istio, labels, port, name)
            self.listeners.append(_listener(name, SIDECAR, port, made, socket))
            options = typed(
                "upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}}
            )
            limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
            self.clusters.append(
                {
                    "name": name,
                    "alt_stat_name": f"{name};",
                    "connect_timeout": "10s",
                    "circuit_breakers": {"thresholds": [dict.fromkeys(limits, istio.NO_LIMIT)]},
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
                    },
                }
                | _endpoints(name, [("127.0.0.1", port)])
            )

    def _is(self, component: str) -> Json:
        return {"san_type": "URI", "matcher": {"exact": self.chart.principal(component)}}

    def _tls(self, component: str, kind: str, trusted: Json) -> Json:
        certificate, key = self.authority.certificate(self.chart.principal(component))
        common = {
            "tls_params": deepcopy(TLS),
            "alpn_protocols": ["h2"],
            "tls_certificates": [
                {"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": key}}
            ],
            "validation_context": {"trusted_ca": {"inline_string": self.authority.root}, **trusted},
        }
        return named("envoy.transport_sockets.tls", f"transport_sockets.tls.v3.{kind}", common_tls_context=common)

    def _fetches_keys(self, manager: Json) -> None:
        """The way to the identity provider's keys, when they are not in place."""
        for found in manager["http_filters"]:
            for provider in found["typed_config"].get("providers", {}).values():
                if remote := provider.get("remote_jwks"):
                    name = remote["http_uri"]["cluster"]
                    _, port, _, host = name.split("|")
                    cluster = {"name": name, "connect_timeout": "5s"} | _endpoints(name, [(host, int(port))])
                    cluster |= {"type": "STRICT_DNS"}
                    if remote["http_uri"]["uri"].startswith("https:"):
                        trust = {"trusted_ca": {"filename": "/etc/ssl/certs/ca-certificates.crt"}}
                        context = {"common_tls_context": {"validation_context": trust}, "sni": host}
                        socket = "transport_sockets.tls.v3.UpstreamTlsContext"
                        cluster["transport_socket"] = named("envoy.transport_sockets.tls", socket, **context)
                    self.clusters.append(cluster)


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
    return named(
        "envoy.access_loggers.file",
        "access_loggers.file.v3.FileAccessLog",
        path=path,
        log_format={"json_format": fields},
    )


def write_config(home: Home, chart: Chart) -> None:
    """To the file with which `command` starts; it has the proxies' private keys in it."""
    write_secret(home.path / "envoy.json", json.dumps(Machine(home, chart).config(), indent=1))
