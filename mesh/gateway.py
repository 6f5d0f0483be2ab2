"""The gateway in a cluster without Istio. Before Envoy starts, the pod makes its configuration from the Istio objects:

    python -m mesh.gateway OBJECTS.json [MORE-OBJECTS.json] ENVOY.json

Envoy listens at the Gateway's port, finds replicas by DNS (headless Services) and calls them in plain text. It serves
:15021/ready for probes and :15021/stats/prometheus for Prometheus. Released charts know this module's name.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mesh.istio.kinds import Gateway, Untranslatable
from mesh.istio.objects import Objects
from mesh.istio.proxy import STATS, Proxy, endpoints, listener
from mesh.istio.writing import Json, http_filter, typed
from services.chassis.addresses import EVERYWHERE

ADMIN, STATUS = 15000, 15021
ADDRESS = EVERYWHERE.strip("[]")


def _status() -> tuple[Json, Json]:
    """The listener for probes and Prometheus, and the cluster of Envoy's administration, which answers them."""
    admin = {"name": "admin", "connect_timeout": "1s"} | endpoints("admin", "STATIC", [("127.0.0.1", ADMIN)])
    routes = [{"match": {"path": path}, "route": {"cluster": "admin"}} for path in ("/ready", "/stats/prometheus")]
    made = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="status",
        route_config={"virtual_hosts": [{"name": "status", "domains": ["*"], "routes": routes}]},
        http_filters=[http_filter("router", "router.v3.Router")],
    )
    return listener("status", ADDRESS, STATUS, made), admin


def config(objects: Sequence[Json]) -> Json:
    """The whole bootstrap configuration of a gateway in a pod."""
    proxy = Proxy(Objects(objects))
    [gateway] = proxy.istio.of(Gateway)
    [server] = gateway.spec.servers
    proxy.gateway(gateway.spec.selector, ADDRESS, server.port.number)
    status, admin = _status()
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}},
        "static_resources": {"listeners": [*proxy.listeners, status], "clusters": [*proxy.clusters, admin]},
        "stats_config": STATS,
    }


if __name__ == "__main__":
    try:
        made = config([item for part in sys.argv[1:-1] for item in json.loads(Path(part).read_text())])
    except Untranslatable as error:
        sys.exit(f"error: {error}")
    Path(sys.argv[-1]).write_text(json.dumps(made))
