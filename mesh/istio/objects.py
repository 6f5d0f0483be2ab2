"""Istio's objects as Envoy's configuration, piece by piece as istiod 1.31 makes it.

    objects = Objects(mesh.machine.chart.render(...))
    objects.routes("mesh"), objects.cluster("approval.vaccination.svc.cluster.local", 8080), objects.rbac(labels), ...

`mesh.machine.envoy` puts the pieces together for one machine. What is not translated is an error that names object and
field: an object must not say one thing in a cluster and another on a laptop.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mesh.istio import auth, clusters, gateways, kinds, patches, routes
from mesh.istio.kinds import Object, Part, Selecting, Untranslatable
from mesh.istio.writing import Json

Spec = TypeVar("Spec", bound=Part)
Selected = TypeVar("Selected", bound=Selecting)


class Objects:
    """The Istio objects of one namespace, found among others. Untranslatable: one of them cannot be translated."""

    def __init__(self, objects: Iterable[Mapping[str, Any]], keys_every: str = "300s") -> None:
        self._objects = [kinds.read(item) for item in objects if "istio.io/" in item["apiVersion"]]
        self._keys_every = keys_every  # how soon a provider's new key is known, when Envoy reads its keys
        if len({item.namespace for item in self._objects}) > 1:
            raise Untranslatable(f"the objects are in more than one namespace, {self._objects[0]} in another than some")
        known = {"mesh", *(gateway.name for gateway in self.of(kinds.Gateway))}
        for service in self.of(kinds.VirtualService):
            if unknown := [name for name in service.spec.gateways if name not in known]:
                raise Untranslatable(f"{service}: spec.gateways: there is no Gateway {unknown[0]}")

    def of(self, kind: type[Spec]) -> list[Object[Spec]]:
        """The objects of a kind."""
        return [Object(o.name, o.namespace, o.spec) for o in self._objects if isinstance(o.spec, kind)]

    def selecting(self, kind: type[Selected], labels: Mapping[str, str]) -> list[Object[Selected]]:
        """The objects of a kind that are about a workload."""
        return [item for item in self.of(kind) if item.spec.selects(labels)]

    def routes(self, gateway: str, host: str | None = None) -> list[Json]:
        """The routes of a gateway; of `mesh` (calls between components), those of one host."""
        return routes.routes(self.of(kinds.VirtualService), gateway, host)

    def cluster(self, host: str, port: int, subset: str = "") -> Json:
        """The cluster of a service or of its subset, without the endpoints."""
        return clusters.cluster(self.of(kinds.DestinationRule), host, port, subset)

    def strict(self, labels: Mapping[str, str], port: int) -> bool:
        """Whether a workload takes nothing but mutual TLS on this port."""
        return auth.strict(self.selecting(kinds.PeerAuthentication, labels), port)

    def jwt_authn(self, labels: Mapping[str, str]) -> Json | None:
        """The filter that checks tokens; None if the workload takes calls whatever their token is."""
        return auth.jwt_authn(self.selecting(kinds.RequestAuthentication, labels), self._keys_every)

    def rbac(self, labels: Mapping[str, str], listens: Mapping[int, int] | None = None) -> Json | None:
        """The filter that says who may call what; None if everybody may call everything.

        `listens` has the ports that are other ones here than in a cluster: where 8080 listens at 18090, {8080: 18090}.
        """
        return auth.rbac(self.selecting(kinds.AuthorizationPolicy, labels), listens or {})

    def gateway(self, labels: Mapping[str, str]) -> Object[kinds.Gateway]:
        """The Gateway of a workload, whose hosts are those of all its VirtualServices."""
        return gateways.gateway(self.of(kinds.Gateway), self.of(kinds.VirtualService), labels)

    def logs_access(self, labels: Mapping[str, str]) -> bool:
        """Whether a workload writes a line for every request."""
        return gateways.logs_access(self.selecting(kinds.Telemetry, labels))

    def patch(self, context: str, labels: Mapping[str, str], manager: Json) -> None:
        """Applies EnvoyFilters to a connection manager, its filters and its routes."""
        patches.patch(self.of(kinds.EnvoyFilter), context, labels, manager)

    def patch_cluster(self, context: str, labels: Mapping[str, str], service: str, port: int, cluster: Json) -> None:
        """Applies EnvoyFilters to the cluster of a service's port."""
        patches.patch_cluster(self.of(kinds.EnvoyFilter), context, labels, service, port, cluster)
