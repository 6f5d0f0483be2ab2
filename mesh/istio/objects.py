"""Istio's objects as Envoy's configuration, piece by piece as istiod 1.31 makes it.

    objects = Objects(mesh.machine.chart.render(...))
    objects.routes("mesh"), objects.cluster("approval.vaccination.svc.cluster.local", 8080), objects.rbac(labels), ...

`mesh.machine.envoy` puts the pieces together for one machine. A field that nobody here translates is an error that
names it: an object must not say one thing in a cluster and another on a laptop.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mesh.istio import auth, clusters, gateways, patches, routes
from mesh.istio.reading import Node
from mesh.istio.writing import Json


class Objects:
    """The objects of one namespace."""

    def __init__(self, objects: Iterable[Mapping[str, Any]], keys_every: str = "300s") -> None:
        self._objects = list(objects)
        self._keys_every = keys_every  # how soon a provider's new key is known, when Envoy reads its keys

    def of(self, kind: str) -> Iterator[tuple[str, str, Node]]:
        """Name, namespace and spec of each object of a kind."""
        for item in self._objects:
            if item["kind"] == kind:
                meta = item["metadata"]
                yield (
                    meta["name"],
                    meta.get("namespace", "default"),
                    Node(f"{kind} {meta['name']}: spec", item.get("spec")),
                )

    def _selecting(self, kind: str, labels: Mapping[str, str]) -> Iterator[tuple[str, str, Node]]:
        """Those that are about a workload: without a selector, all."""
        for name, namespace, spec in self.of(kind):
            with spec.node("selector") as selector:
                wanted = selector.take("matchLabels") or {}
            if wanted.items() <= labels.items():
                yield name, namespace, spec

    def routes(self, gateway: str, host: str | None = None) -> list[Json]:
        """The routes of a gateway; of `mesh` (calls between components), those of one host."""
        return routes.routes(self.of("VirtualService"), gateway, host)

    def cluster(self, host: str, port: int, subset: str = "") -> Json:
        """The way to a service, without its endpoints."""
        return clusters.cluster(self.of("DestinationRule"), host, port, subset)

    def strict(self, labels: Mapping[str, str]) -> bool:
        """Whether a workload takes nothing but mutual TLS on its ports for calls."""
        return auth.strict(self._selecting("PeerAuthentication", labels))

    def jwt_authn(self, labels: Mapping[str, str]) -> Json | None:
        """The filter that checks tokens; None: the workload does not look at them."""
        return auth.jwt_authn(self._selecting("RequestAuthentication", labels), self._keys_every)

    def rbac(self, labels: Mapping[str, str]) -> Json | None:
        """The filter that says who may call what; None: everybody may."""
        return auth.rbac(self._selecting("AuthorizationPolicy", labels))

    def gateway_port(self, labels: Mapping[str, str]) -> tuple[str, int]:
        """Name of the gateway of a workload, and its port; one server, in plain text."""
        return gateways.gateway_port(self.of("Gateway"), labels)

    def logs_access(self, labels: Mapping[str, str]) -> bool:
        """Whether a workload writes a line for every request."""
        return gateways.logs_access(self._selecting("Telemetry", labels))

    def patch(self, context: str, labels: Mapping[str, str], manager: Json) -> None:
        """What EnvoyFilters change of a connection manager, its filters and its routes."""
        patches.patch(self.of("EnvoyFilter"), context, labels, manager)
