"""An Envoy that stands for Istio's proxies: its connection managers, listeners and clusters, as istiod makes them."""

import json
from collections.abc import Sequence
from typing import Any

from mesh.istio.kinds import HCM, Server, Untranslatable
from mesh.istio.objects import Objects
from mesh.istio.writing import Json, http_filter, named, typed

GATEWAY = "gateway"
# A cluster's name has dots in it, so a semicolon ends it, as in Istio's proxies.
STATS = {
    "use_all_default_tags": False,
    "stats_tags": [{"tag_name": "cluster_name", "regex": "^cluster\\.((.+?);\\.)"}],
}


def manager(
    stat_prefix: str,
    routes: list[Json],
    filters: Sequence[Json | None],
    hosts: Sequence[str] = ("*",),
    **others: Any,
) -> Json:
    """A connection manager as istiod makes it; a request for another host gets 404."""
    return typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=stat_prefix,
        route_config={
            "name": stat_prefix,
            "virtual_hosts": [
                {
                    "name": stat_prefix,
                    "domains": list(hosts),
                    "routes": routes,
                    "include_request_attempt_count": True,
                }
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


def listener(
    name: str, address: str, port: int, manager: Json, socket: Json | None = None, hosts: Sequence[str] = ("*",)
) -> Json:
    """A listener, in plain text unless there is a transport `socket`.

    `hosts` are the server names (SNI) for which TLS is spoken; a client that wants another one is disconnected.
    """
    chain: Json = {"filters": [{"name": HCM, "typed_config": manager}]}
    if socket:
        chain["transport_socket"] = socket
    inspected: Json = {}
    if socket and "*" not in hosts:
        chain["filter_chain_match"] = {"server_names": list(hosts)}
        kind = "filters.listener.tls_inspector.v3.TlsInspector"
        inspected["listener_filters"] = [named("envoy.filters.listener.tls_inspector", kind)]
    return {
        "name": name,
        # With ipv4_compat that of all addresses in IPv6 takes IPv4 too, and says IPv4's clients' addresses as they are.
        "address": {"socket_address": {"address": address, "port_value": port, "ipv4_compat": address == "::"}},
        "filter_chains": [chain],
        **inspected,
        # This limits the memory for what one connection has waiting.
        "per_connection_buffer_limit_bytes": 1048576,
    }


def endpoints(name: str, kind: str, addresses: Sequence[tuple[str, int]]) -> Json:
    """Where a cluster's replicas are: STATIC addresses, or names for STRICT_DNS."""
    found = [{"endpoint": {"address": {"socket_address": {"address": a, "port_value": p}}}} for a, p in addresses]
    return {"type": kind, "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": found}]}}


class Proxy:
    """Builds the listeners, and the clusters that their routes lead to."""

    def __init__(self, objects: Objects) -> None:
        self.istio = objects
        self.listeners: list[Json] = []
        self.clusters: list[Json] = []

    def gateway(self, labels: dict[str, str], address: str, port: int, log: str | None = None) -> None:
        """Adds the gateway. `log` is the file of its access log; None for standard output."""
        gateway = self.istio.gateway(labels)
        [server] = gateway.spec.servers
        made = manager(
            GATEWAY,
            self.istio.routes(gateway.name),
            [
                self.istio.jwt_authn(labels),
                self.istio.rbac(labels, {server.port.number: port}),
                http_filter("cors", "cors.v3.Cors"),
            ],
            server.hosts,
            use_remote_address=True,
            forward_client_cert_details="SANITIZE_SET",
        )
        if self.istio.logs_access(labels):
            made["access_log"] = [_access_log(log)]
        self.istio.patch("GATEWAY", labels, made)
        self.calls(GATEWAY, made, "GATEWAY", labels)
        self._fetches_keys(made)
        socket = self.ends_tls(gateway.name, server) if server.tls else None
        self.listeners.append(listener(GATEWAY, address, port, made, socket, server.hosts))

    def ends_tls(self, gateway: str, server: Server) -> Json:
        """The transport socket of a gateway's server that has a certificate."""
        raise Untranslatable(f"Gateway {gateway}: spec.servers[0].tls is not translated: nobody has a certificate here")

    def calls(self, caller: str, manager: Json, context: str, labels: dict[str, str]) -> None:
        """Gives a caller clusters of its own, and so breakers, as its own proxy in a cluster would have them.

        Many queries through the gateway then do not open the breaker between reservation and Approve.
        """
        used: set[str] = set()
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            if action := route.get("route"):
                used.add(action["cluster"])
                action["cluster"] = f"{caller}>{action['cluster']}"
        for name in sorted(used):
            _, port, subset, host = name.split("|")
            unique = f"{caller}>{name}"
            cluster = self.istio.cluster(host, int(port), subset) | {"name": unique, "alt_stat_name": f"{unique};"}
            cluster |= self.replicas(caller, unique, host, int(port))
            self.istio.patch_cluster(context, labels, host, int(port), cluster)
            self.clusters.append(cluster)

    def replicas(self, caller: str, cluster: str, host: str, port: int) -> Json:
        """Where a component's replicas are, and how a caller reaches them."""
        # With a dot at the end the resolver does not try its search domains.
        found = endpoints(cluster, "STRICT_DNS", [(f"{host}.", port)])
        # DNS has the replicas that are ready. One that has gone from it gets no more calls.
        return found | {
            "dns_refresh_rate": "1s",
            "dns_lookup_family": "V4_PREFERRED",
            "ignore_health_on_host_removal": True,
        }

    def _fetches_keys(self, manager: Json) -> None:
        """Adds the cluster for fetching the identity provider's keys, unless the keys are in the configuration."""
        for found in manager["http_filters"]:
            for provider in found["typed_config"].get("providers", {}).values():
                if remote := provider.get("remote_jwks"):
                    name = remote["http_uri"]["cluster"]
                    _, port, _, host = name.split("|")
                    cluster = {"name": name, "connect_timeout": "5s"} | endpoints(
                        name, "STRICT_DNS", [(host, int(port))]
                    )
                    if remote["http_uri"]["uri"].startswith("https:"):
                        trust = {
                            "trusted_ca": {"filename": "/etc/ssl/certs/ca-certificates.crt"},
                            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": host}}],
                        }
                        context = {"common_tls_context": {"validation_context": trust}, "sni": host}
                        socket = "transport_sockets.tls.v3.UpstreamTlsContext"
                        cluster["transport_socket"] = named("envoy.transport_sockets.tls", socket, **context)
                    self.clusters.append(cluster)


def _access_log(path: str | None) -> Json:
    """The access log: what was called and how it ended, without tokens, queries and bodies."""
    # A call that ends at once has it in its headers.
    places = [{"command": place, "param": "grpc-status"} for place in ("TRAILER", "RESP")]
    fields = {
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ:ORIG_OR_PATH)%",
        # As Istio's own format has the path of a REST request, so that a test sees what a cluster's log would tell.
        "original_path": "%REQ(X-ENVOY-ORIGINAL-PATH)%",
        "status": "%RESPONSE_CODE%",
        # What a caller by gRPC got. %GRPC_STATUS% would make one up of a REST answer's status: "Internal" of 400.
        "grpc_status": f"%COALESCE({json.dumps({'operators': places})})%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "ms": "%DURATION%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    form = {"json_format": fields}
    if path is None:
        return named("envoy.access_loggers.stdout", "access_loggers.stream.v3.StdoutAccessLog", log_format=form)
    return named("envoy.access_loggers.file", "access_loggers.file.v3.FileAccessLog", path=path, log_format=form)
