"""Every connection that the installation makes is one that its NetworkPolicies allow.

Not every cluster enforces them, so a rule that is missing may be noticed only elsewhere. Here the connections that the
pods really have are compared with the policies.
"""

import asyncio
import json
import subprocess
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Any

import pytest

from mesh.machine.home import STORE_OF
from tests.e2e.conftest import Status, World

from .conftest import PATIENCE, Json, Release

ESTABLISHED, LISTENS = "01", "0A"
Address = tuple[str, int]


def everything(kinds: str) -> list[Json]:
    """Objects of all namespaces."""
    command = ["kubectl", "get", kinds, "--all-namespaces", "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    return json.loads(done.stdout)["items"]  # type: ignore[no-any-return]


def read(text: str) -> Address:
    """An address as /proc/net/tcp has it: words of four bytes, each in the machine's order."""
    words, port = text.split(":")
    there = bytes.fromhex(words)
    found = ip_address(b"".join(there[i : i + 4][::-1] for i in range(0, len(there), 4)))
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        return str(found.ipv4_mapped), int(port, 16)
    return str(found), int(port, 16)


def calls_out(release: Release, pod: Json) -> list[Address]:
    """Where the pod has connected to."""
    table = release.kubectl("exec", pod["metadata"]["name"], "--", "cat", "/proc/net/tcp", "/proc/net/tcp6")
    rows = [(read(r[1]), read(r[2]), r[3]) for r in map(str.split, table.splitlines()) if r[0] != "sl"]
    listening = {port for (_, port), _, state in rows if state == LISTENS}
    own = {pod["status"]["podIP"], "127.0.0.1", "127.0.0.6", "::1"}
    return [
        there
        for (_, port), there, state in rows
        if state == ESTABLISHED and port not in listening and there[0] not in own
    ]


class Cluster:
    """Who is at an address, and what policies say of a connection."""

    def __init__(self) -> None:
        found = everything("pods,services,endpointslices,networkpolicies,namespaces")
        self.policies = [item for item in found if item["kind"] == "NetworkPolicy"]
        self.namespaces = {i["metadata"]["name"]: i["metadata"]["labels"] for i in found if i["kind"] == "Namespace"}
        self.pods = {i["status"].get("podIP"): i for i in found if i["kind"] == "Pod"}
        # Behind a Service's address are pods, and it is those that a policy is about.
        self.behind: dict[Address, Address] = {}
        slices = [item for item in found if item["kind"] == "EndpointSlice"]
        for service in (item for item in found if item["kind"] == "Service"):
            about = service["metadata"]
            for piece in slices:
                of = piece["metadata"]["labels"].get("kubernetes.io/service-name")
                if (piece["metadata"]["namespace"], of) == (about["namespace"], about["name"]) and piece["endpoints"]:
                    [there] = piece["endpoints"][0]["addresses"]
                    ports = {port["name"]: port["port"] for port in piece["ports"]}
                    for port in service["spec"]["ports"]:
                        at = (service["spec"]["clusterIP"], port["port"])
                        self.behind[at] = (there, ports[port.get("name", "")])

    def allows(self, way: str, pod: Json, other: Json | None, port: int) -> bool:
        """Whether a pod's policies let it connect ("egress"), or be connected to ("ingress")."""
        about = pod["metadata"]
        of_pod = [
            policy["spec"]
            for policy in self.policies
            if policy["metadata"]["namespace"] == about["namespace"]
            and way.capitalize() in policy["spec"]["policyTypes"]
            and matches(policy["spec"]["podSelector"], about["labels"])
        ]
        peers = {"egress": "to", "ingress": "from"}[way]
        rules = [rule for spec in of_pod for rule in spec.get(way, ())]
        return not of_pod or any(
            (peers not in rule or any(self._is(peer, other, about["namespace"]) for peer in rule[peers]))
            and ("ports" not in rule or port in [allowed["port"] for allowed in rule["ports"]])
            for rule in rules
        )

    def _is(self, peer: Json, other: Json | None, namespace: str) -> bool:
        if other is None:
            return False
        theirs = other["metadata"]["namespace"]
        there = matches(peer["namespaceSelector"], self.namespaces[theirs]) if "namespaceSelector" in peer else None
        return (theirs == namespace if there is None else there) and matches(
            peer.get("podSelector", {}), other["metadata"]["labels"]
        )


def matches(selector: Json, labels: Json) -> bool:
    """Whether a selector finds who has these labels."""
    assert selector.keys() <= {"matchLabels"}, "nothing else is understood here"
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def name(pod: Json | None) -> str:
    """Of a pod's workload."""
    labels: dict[str, Any] = pod["metadata"]["labels"] if pod else {}
    return str(labels.get("app.kubernetes.io/name") or labels.get("app") or "outside")


@pytest.mark.quick
async def test_every_connection_is_one_that_the_policies_allow(
    release: Release, people: World, istio: bool, figures: Callable[[str], None]
) -> None:
    hospital, day = await people.new_hospital(capacity=5, doses=5)
    customer = people.customer()
    reservation = await customer.create(hospital, day)
    await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED, PATIENCE)
    cluster = await asyncio.to_thread(Cluster)
    seen, refused = set(), set()
    for pod in release.pods():
        for there in await asyncio.to_thread(calls_out, release, pod):
            host, port = cluster.behind.get(there, there)
            other = cluster.pods.get(host)
            seen.add((name(pod), name(other), port))
            allowed = cluster.allows("egress", pod, other, port)
            if not allowed or (other and not cluster.allows("ingress", other, pod, port)):
                refused.add((name(pod), name(other), port))
    assert not refused
    # So that nothing is missing because nobody saw it.
    expected = {("gateway", "reservation", 8080), ("reservation", "approval", 8080)}
    expected |= {(component, "nats", 4222) for component in STORE_OF}
    expected |= {(component, store, {"postgres": 5432, "mongo": 27017}[store]) for component, store in STORE_OF.items()}
    if istio:
        expected |= {(workload, "istiod", 15012) for workload in (*STORE_OF, "web", "gateway", "nats")}
    assert seen >= expected
    figures(f"{len(seen)} kinds of connections, all of them allowed by the policies")
