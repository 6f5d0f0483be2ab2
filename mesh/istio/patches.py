"""EnvoyFilters, applied to a connection manager or a cluster."""

from collections.abc import Iterator, Mapping, Sequence

from mesh.istio.kinds import ConfigPatch, EnvoyFilter, Object, Untranslatable
from mesh.istio.writing import Json, merged

Filters = Sequence[Object[EnvoyFilter]]


def patch(filters: Filters, context: str, labels: Mapping[str, str], manager: Json) -> None:
    for change, where in _changes(filters, context, labels):
        if not change.match.cluster:
            _patch(change, manager, where)


def patch_cluster(
    filters: Filters, context: str, labels: Mapping[str, str], service: str, port: int, cluster: Json
) -> None:
    for change, _ in _changes(filters, context, labels):
        if (at := change.match.cluster) and (at.service, at.port_number) == (service, port):
            # Istio merges a map entry by entry and replaces each, whatever is in it.
            key = "typed_extension_protocol_options"
            cluster[key] = cluster[key] | change.patch.value[key]


def _changes(filters: Filters, context: str, labels: Mapping[str, str]) -> Iterator[tuple[ConfigPatch, str]]:
    """The patches for a workload, each with where it stands."""
    for item in filters:
        if item.spec.workload_selector.labels.items() <= labels.items():
            for i, change in enumerate(item.spec.config_patches):
                if change.match.context == context:
                    yield change, f"{item}: spec.configPatches[{i}]"


def _patch(change: ConfigPatch, manager: Json, where: str) -> None:
    operation, value = change.patch.operation, change.patch.value
    if at := change.match.route_configuration:
        name = at.vhost.route.name
        found = [r for host in manager["route_config"]["virtual_hosts"] for r in host["routes"] if r["name"] == name]
        if not found:
            raise Untranslatable(f"{where}: there is no route {name}")
        for one in found:
            one.update(merged(one, value))
    elif change.match.listener and (beside := change.match.listener.filter_chain.filter.sub_filter):
        filters: list[Json] = manager["http_filters"]
        index = next((i for i, f in enumerate(filters) if f["name"] == beside.name), None)
        if index is None:
            raise Untranslatable(f"{where}: there is no filter {beside.name}")
        match operation:
            case "INSERT_BEFORE":
                filters.insert(index, value)
            case "INSERT_AFTER":
                filters.insert(index + 1, value)
            case "MERGE":
                filters[index] = merged(filters[index], value)
    else:
        manager.update(merged(manager, value["typed_config"]))
