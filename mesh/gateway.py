"""The gateway in a cluster without Istio: its pod makes Envoy's configuration of the rendered Istio objects, before
Envoy starts. Charts that are released call it by this name:

    python -m mesh.gateway OBJECTS.json ENVOY.json

In a cluster it listens at its Gateway's port, finds replicas by DNS (headless Services) and calls them in plain text.
:15021/ready says whether it serves, :15021/stats/prometheus what it counts.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mesh.istio.kinds import Gateway, Untranslatable
from mesh.istio.objects import Objects
from mesh.istio.proxy import STATS, Proxy, endpoints, listener
from mesh.istio.writing import Json, http_filter, typed

ADMIN, STATUS = 15000, 15021


def _status() -> tuple[Json, Json]:
    """A listener for probes and Prometheus, and the cluster of the administration that answers it."""
    admin = {"name": "admin", "connect_timeout": "1s"} | endpoints("admin", "STATIC", [("127.0.0.1", ADMIN)])
    routes = [{"match": {"path": path}, "route": {"cluster": "admin"}} for path in ("/ready", "/stats/prometheus")]
    made = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="status",
        route_config={"virtual_hosts": [{"name": "status", "domains": ["*"], "routes": routes}]},
        http_filters=[http_filter("router", "router.v3.Router")],
    )
    return listener("status", "0.0.0.0", STATUS, made), admin  # noqa: S104 - the pod's network policy says who gets there


def config(objects: Sequence[Json]) -> Json:
    """The whole bootstrap configuration of a gateway in a pod."""
    proxy = Proxy(Objects(objects))
    [gateway] = proxy.istio.of(Gateway)
    [server] = gateway.spec.servers
    proxy.gateway(gateway.spec.selector, "0.0.0.0", server.port.number)  # noqa: S104 - it is the way in
    status, admin = _status()
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}},
        "static_resources": {"listeners": [*proxy.listeners, status], "clusters": [*proxy.clusters, admin]},
        "stats_config": STATS,
    }


if __name__ == "__main__":
    try:
        made = config(json.loads(Path(sys.argv[1]).read_text()))
    except Untranslatable as error:
        sys.exit(f"error: {error}")
    Path(sys.argv[2]).write_text(json.dumps(made))
