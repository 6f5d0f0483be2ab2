"""EnvoyFilters, applied to a connection manager."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mesh.istio.reading import Node, Specs, Untranslatable
from mesh.istio.writing import HCM, Json, merged


def patch(filters: Specs, context: str, labels: Mapping[str, str], manager: Json) -> None:
    """What EnvoyFilters change of a connection manager, its filters and its routes."""
    for _, _, spec in filters:
        with spec:
            with spec.node("workloadSelector") as selector:
                wanted = selector.take("labels") or {}
            for change in spec.nodes("configPatches"):
                with change:
                    if wanted.items() <= labels.items():
                        _patch(change, context, manager)
                    else:
                        for field in ("applyTo", "match", "patch"):
                            change.take(field)


@contextmanager
def _taken(node: Node, path: str) -> Iterator[Node]:
    """A node some fields down, each of which has no other field."""
    first, _, rest = path.partition(".")
    with node.node(first) as inner:
        if rest:
            with _taken(inner, rest) as found:
                yield found
        else:
            yield inner


def _patch(change: Node, context: str, manager: Json) -> None:
    kind = change.must("applyTo")
    with change.node("match") as match, change.node("patch") as patch:
        if match.must("context") != context:
            match.take("listener"), match.take("routeConfiguration"), patch.take("operation"), patch.take("value")
            return
        operation, value = patch.must("operation"), patch.must("value")
        if kind == "HTTP_ROUTE" and operation == "MERGE":
            with _taken(match, "routeConfiguration.vhost.route") as route:
                name = route.must("name")
            found = [
                r for host in manager["route_config"]["virtual_hosts"] for r in host["routes"] if r["name"] == name
            ]
            if not found:
                raise Untranslatable(f"{change.where}: there is no route {name}")
            for one in found:
                one.update(merged(one, value))
            return
        with _taken(match, "listener.filterChain.filter") as chain:
            chain.only("name", HCM)
            if kind == "NETWORK_FILTER" and operation == "MERGE":
                manager.update(merged(manager, value["typed_config"]))
                return
            with chain.node("subFilter") as sub:
                beside = sub.must("name")
        filters: list[Json] = manager["http_filters"]
        at = next((i for i, f in enumerate(filters) if f["name"] == beside), None)
        if at is None:
            raise Untranslatable(f"{change.where}: there is no filter {beside}")
        match (kind, operation):
            case ("HTTP_FILTER", "INSERT_BEFORE"):
                filters.insert(at, value)
            case ("HTTP_FILTER", "INSERT_AFTER"):
                filters.insert(at + 1, value)
            case ("HTTP_FILTER", "MERGE"):
                filters[at] = merged(filters[at], value)
            case _:
                raise Untranslatable(f"{change.where}: {operation} of {kind} is not translated")
