"""EnvoyFilters, applied to a connection manager."""

from collections.abc import Mapping, Sequence

from mesh.istio.kinds import ConfigPatch, EnvoyFilter, Object, Untranslatable
from mesh.istio.writing import Json, merged


def patch(filters: Sequence[Object[EnvoyFilter]], context: str, labels: Mapping[str, str], manager: Json) -> None:
    for item in filters:
        if item.spec.workload_selector.labels.items() <= labels.items():
            for i, change in enumerate(item.spec.config_patches):
                if change.match.context == context:
                    _patch(change, manager, f"{item}: spec.configPatches[{i}]")


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
