"""Gateways and Telemetry: where a gateway listens, for which hosts, and whether it writes an access log."""

from collections.abc import Mapping, Sequence

from mesh.istio.kinds import Gateway, Object, Telemetry, Untranslatable, VirtualService


def gateway(
    gateways: Sequence[Object[Gateway]], services: Sequence[Object[VirtualService]], labels: Mapping[str, str]
) -> Object[Gateway]:
    found = [item for item in gateways if item.spec.selector.items() <= labels.items()]
    if len(found) != 1:
        raise Untranslatable(f"{len(found)} Gateways for {dict(labels)}, not one")
    hosts = found[0].spec.servers[0].hosts
    for service in services:
        # Istio serves the hosts that both have. They are the same here, so there is one virtual host for all.
        if found[0].name in service.spec.gateways and set(service.spec.hosts) != set(hosts):
            raise Untranslatable(f"{service}: spec.hosts are not the hosts of {found[0]}, which are {', '.join(hosts)}")
    return found[0]


def logs_access(telemetries: Sequence[Object[Telemetry]]) -> bool:
    return any(logging.providers for item in telemetries for logging in item.spec.access_logging)
