"""Gateways and Telemetry: where a gateway listens, and whether it writes down what it is asked."""

from collections.abc import Mapping

from mesh.istio.reading import Specs, Untranslatable


def gateway_port(gateways: Specs, labels: Mapping[str, str]) -> tuple[str, int]:
    """Name of the gateway of a workload, and its port; one server, in plain text."""
    found = []
    for name, _, spec in gateways:
        with spec:
            selector = spec.take("selector") or {}
            for server in spec.nodes("servers"):
                with server, server.node("port") as port:
                    server.only("hosts", ["*"])
                    port.only("protocol", "HTTP2")
                    port.take("name")
                    if selector.items() <= labels.items():
                        found.append((name, int(port.must("number"))))
    if len(found) != 1:
        raise Untranslatable(f"{len(found)} Gateways with a server for {dict(labels)}, not one")
    return found[0]


def logs_access(telemetries: Specs) -> bool:
    """Whether a workload writes a line for every request."""
    wanted = False
    for _, _, spec in telemetries:
        with spec:
            for logging in spec.nodes("accessLogging"):
                with logging:
                    for provider in logging.nodes("providers"):
                        with provider:
                            provider.only("name", "envoy")
                            wanted = True
    return wanted
