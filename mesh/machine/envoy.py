"""The chart's mesh on one machine: Envoy's configuration from the rendered Istio objects.

One Envoy stands for all the proxies of a cluster. It has a listener for the gateway, one for each component that others
call (the way out), and one on 127.0.0.2 before each process of a service (the way in). Calls between components are
mutual TLS with the identities of the cluster, so that the policies mean the same here and there. In a cluster the
kubelet's probes take a dead replica out of the list; here the list is fixed, and Envoy has to eject it.
"""

import json
from collections.abc import Iterator
from copy import deepcopy

from mesh.istio import Json, Objects, Untranslatable
from mesh.istio.kinds import Gateway, Server
from mesh.istio.proxy import GATEWAY, STATS, Proxy, endpoints, listener, manager
from mesh.istio.writing import NO_LIMIT, named, typed
from mesh.machine.authority import Authority
from mesh.machine.home import Home, write_secret

SIDECAR = "127.0.0.2"  # the proxies before the processes listen here, each at its process' port
CALLS = 8080  # the port of every component in a cluster
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


class Chart:
    """What the rendered chart says of components."""

    def __init__(self, objects: list[Json]) -> None:
        self.istio = Objects(objects, keys_every="6s")  # short, so that tests can rotate keys
        self._objects = objects

    def _of(self, kind: str) -> dict[str, Json]:
        return {item["metadata"]["name"]: item for item in self._objects if item["kind"] == kind}

    def env(self, component: str) -> dict[str, str]:
        """A component's settings, from its ConfigMap."""
        data: dict[str, str] = self._of("ConfigMap")[component]["data"] or {}
        return data

    def hosts(self) -> Iterator[tuple[str, str, int]]:
        """Each component's name, and the host and port by which others call it."""
        for name, service in self._of("Service").items():
            for port in service["spec"]["ports"]:
                if port.get("appProtocol") in ("grpc", "http2"):
                    yield name, self._of("DestinationRule")[name]["spec"]["host"], port["port"]

    def labels(self, component: str) -> dict[str, str]:
        """The labels of its pods, by which selectors find it."""
        if component == GATEWAY:
            [gateway] = self.istio.of(Gateway)
            return gateway.spec.selector
        labels: dict[str, str] = self._of("Deployment")[component]["spec"]["template"]["metadata"]["labels"]
        return labels

    def principal(self, component: str) -> str:
        """Its SPIFFE id."""
        namespace = next(iter(self._of("Service").values()))["metadata"]["namespace"]
        return f"spiffe://cluster.local/ns/{namespace}/sa/{component}"


def inbound_manager(objects: Objects, labels: dict[str, str], port: int, cluster: str) -> Json:
    """The connection manager before a process, which decides who may call it."""
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
        [objects.jwt_authn(labels), objects.rbac(labels, {CALLS: port})],
        use_remote_address=False,
        forward_client_cert_details="APPEND_FORWARD",
        set_current_client_cert_details={"subject": True, "dns": True, "uri": True},
    )
    objects.patch("SIDECAR_INBOUND", labels, made)
    return made


class Machine(Proxy):
    """Builds the configuration of one machine's Envoy."""

    def __init__(self, home: Home, chart: Chart) -> None:
        super().__init__(chart.istio)
        self.home, self.chart, self.authority = home, chart, Authority()

    def config(self) -> Json:
        """The whole bootstrap configuration."""
        log = str(self.home.path / "logs" / "access.log")
        self.gateway(self.chart.labels(GATEWAY), "127.0.0.1", self.home.port(GATEWAY), log)
        hosts = {f"{host}:{port}": name for name, host, port in self.chart.hosts()}
        for name, host, _ in self.chart.hosts():
            for variable, target in self.chart.env(name).items():
                if variable.endswith("_TARGET") and target in hosts:
                    self._way_out(name, hosts[target], target)
            self._ways_in(name, host)
        return {
            "admin": {
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.home.port("envoy-admin")}}
            },
            "static_resources": {"listeners": self.listeners, "clusters": self.clusters},
            "stats_config": STATS,
        }

    def _way_out(self, caller: str, callee: str, target: str) -> None:
        """The listener by which a process of the caller calls the other component."""
        name = f"to-{callee}"
        host = target.rpartition(":")[0]
        made = manager(f"outbound_{name};", self.chart.istio.routes("mesh", host), [], use_remote_address=False)
        context, labels = "SIDECAR_OUTBOUND", self.chart.labels(caller)
        self.chart.istio.patch(context, labels, made)
        self.calls(caller, made, context, labels)
        self.listeners.append(listener(name, "127.0.0.1", self.home.port(name), made))

    def replicas(self, caller: str, cluster: str, host: str, port: int) -> Json:
        """The component's processes, each behind its proxy."""
        [name] = [name for name, *where in self.chart.hosts() if where == [host, port]]
        addresses = [(SIDECAR, self.home.port(process)) for process in self.home.processes_of(name)]
        found = endpoints(cluster, "STATIC", addresses)
        if self.chart.istio.strict(self.chart.labels(name), port):
            whom = {"match_typed_subject_alt_names": [self._is(name)]}
            found["transport_socket"] = self._tls(caller, "UpstreamTlsContext", whom)
        return found

    def ends_tls(self, gateway: str, server: Server) -> Json:
        """TLS with a certificate of the local authority, in place of the Secret that a cluster has."""
        certificate = self.authority.certificate([own_host(host) if host == "*" else host for host in server.hosts])
        common: Json = {"tls_params": {"tls_minimum_protocol_version": "TLSv1_2"}, "alpn_protocols": ["h2", "http/1.1"]}
        return _tls_socket("DownstreamTlsContext", certificate, common)

    def _ways_in(self, component: str, host: str) -> None:
        labels = self.chart.labels(component)
        if self.chart.istio.logs_access(labels):
            raise Untranslatable(f"a Telemetry is about {component}: access logs are translated for the gateway only")
        for process in self.home.processes_of(component):
            port, name = self.home.port(process), f"inbound|{process}"
            socket = None
            if self.chart.istio.strict(labels, CALLS):
                anybody = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://"}}]}
                socket = self._tls(component, "DownstreamTlsContext", anybody) | {}
                socket["typed_config"]["require_client_certificate"] = True
            made = inbound_manager(self.chart.istio, labels, port, name)
            self.listeners.append(listener(name, SIDECAR, port, made, socket))
            options = typed(
                "upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}}
            )
            limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
            cluster = {
                "name": name,
                "alt_stat_name": f"{name};",
                "connect_timeout": "10s",
                "circuit_breakers": {"thresholds": [dict.fromkeys(limits, NO_LIMIT)]},
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
            } | endpoints(name, "STATIC", [("127.0.0.1", port)])
            self.chart.istio.patch_cluster("SIDECAR_INBOUND", labels, host, CALLS, cluster)
            self.clusters.append(cluster)

    def _is(self, component: str) -> Json:
        return {"san_type": "URI", "matcher": {"exact": self.chart.principal(component)}}

    def _tls(self, component: str, kind: str, trusted: Json) -> Json:
        common = {
            "tls_params": deepcopy(TLS),
            "alpn_protocols": ["h2"],
            "validation_context": {"trusted_ca": {"inline_string": self.authority.root}, **trusted},
        }
        return _tls_socket(kind, self.authority.identity(self.chart.principal(component)), common)


def _tls_socket(kind: str, certificate: tuple[str, str], common: Json) -> Json:
    chain, key = certificate
    own = {"tls_certificates": [{"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}]}
    return named("envoy.transport_sockets.tls", f"transport_sockets.tls.v3.{kind}", common_tls_context=common | own)


def own_host(host: str) -> str:
    """A host's name that fits a gateway's host, which may be a wildcard."""
    return "localhost" if host == "*" else host.replace("*", "www", 1)


def write_config(home: Home, chart: Chart) -> None:
    """Writes the file with which Envoy starts, and beside it the certificate that clients of the gateway trust.

    The first has the proxies' private keys in it.
    """
    machine = Machine(home, chart)
    write_secret(home.path / "envoy.json", json.dumps(machine.config(), indent=1))
    write_secret(home.root_certificate, machine.authority.root)
