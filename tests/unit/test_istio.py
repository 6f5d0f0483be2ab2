"""The translation makes of Istio's objects what istiod makes of them, and refuses what it does not know.

`istio/` holds objects and what istiod 1.31 answered for a sidecar of `reservation`, the parts that decide behaviour.
"""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.istio import Json, Objects, Untranslatable, duration
from mesh.istio.proxy import manager
from mesh.machine import envoy

HERE = Path(__file__).parent / "istio"
HOST, PORT = "approval.vaccination.svc.cluster.local", 50052
LABELS = {"app": "reservation"}
# What is not ours to translate: the registry of services and of their endpoints is the Home's here.
REGISTRY = ("ServiceEntry", "Sidecar")


def read(name: str) -> Any:
    return yaml.safe_load((HERE / name).read_text())


def objects() -> list[Json]:
    documents = yaml.safe_load_all((HERE / "objects.yaml").read_text())
    return [item for item in documents if item["kind"] not in REGISTRY]


def http_filters() -> dict[str, Json]:
    [chain] = read("listener-inbound.yaml")["filter_chains"]
    return {f["name"]: f for f in chain["filters"][0]["typed_config"]["http_filters"]}


def with_ports(items: list[Json]) -> list[Json]:
    """istiod knows that the service has one port; we want it said."""
    for item in items:
        for route in item["spec"].get("http", []) if item["kind"] == "VirtualService" else []:
            for destination in route["route"]:
                destination["destination"]["port"] = {"number": PORT}
    return items


def differences(ours: list[Json]) -> Iterator[str]:
    """Where our translation is another than istiod's."""
    found = Objects(with_ports(ours))
    pairs = {
        "routes": (found.routes("mesh", HOST), read("route-approval.yaml")["virtual_hosts"][0]["routes"]),
        "cluster": (cluster(found.cluster(HOST, PORT)), cluster(read("cluster-approval.yaml"))),
        "jwt_authn": (found.jwt_authn(LABELS), http_filters()["envoy.filters.http.jwt_authn"]),
        "rbac": (found.rbac(LABELS), http_filters()["envoy.filters.http.rbac"]),
    }
    for name, (one, other) in pairs.items():
        if one != other:
            yield f"{name}: {one} is not {other}"


def cluster(found: Json) -> Json:
    """Without where the endpoints come from; istiod's key for a number that nobody sets at run time is a slip."""
    found = {k: v for k, v in found.items() if k not in ("@type", "type", "eds_cluster_config")}
    if balance := found.get("least_request_lb_config"):
        balance["slow_start_config"]["aggression"].pop("runtime_key")
    return found


def test_routes_clusters_tokens_and_policies_are_as_istiod_makes_them() -> None:
    assert list(differences(objects())) == []


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))
    if not isinstance(value, dict | list):
        yield path


def altered(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if re.fullmatch(r"\d+m?s", value):
        return f"1{value}"
    return {"LEAST_REQUEST": "ROUND_ROBIN"}.get(value, f"{value}x")


@pytest.mark.parametrize("kind", ["VirtualService", "DestinationRule", "RequestAuthentication", "AuthorizationPolicy"])
def test_a_field_that_is_altered_shows(kind: str) -> None:
    [at] = [i for i, item in enumerate(objects()) if item["kind"] == kind]
    for path in leaves(objects()[at]["spec"]):
        changed = objects()
        place = changed[at]["spec"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = altered(place[path[-1]])
        try:
            found = list(differences(changed))
        except (Untranslatable, StopIteration, ValueError):
            continue  # it says so itself
        assert found, f"{kind}.{path} makes no difference"


def test_a_field_that_nobody_translates_is_named_with_its_object() -> None:
    places: list[tuple[str, Callable[[Json], Json], Json, str]] = [
        ("VirtualService", lambda s: s, {"tls": []}, "VirtualService approval: spec.tls is not translated"),
        ("VirtualService", lambda s: s["http"][0], {"mirror": {}}, "spec.http[0].mirror"),
        ("VirtualService", lambda s: s["http"][0]["retries"], {"retryRemoteLocalities": True}, "retryRemoteLocalities"),
        ("VirtualService", lambda s: s["http"][0]["match"][0], {"authority": {"exact": "x"}}, "match[0].authority"),
        ("DestinationRule", lambda s: s["trafficPolicy"], {"tls": {}}, "trafficPolicy.tls"),
        ("DestinationRule", lambda s: s["trafficPolicy"]["outlierDetection"], {"minHealthPercent": 1}, "minHealth"),
        (
            "DestinationRule",
            lambda s: s,
            {"subsets": [{"name": "v2", "labels": {"version": "2"}}]},
            "subsets[0].labels",
        ),
        ("RequestAuthentication", lambda s: s["jwtRules"][0], {"fromCookies": ["a"]}, "jwtRules[0].fromCookies"),
        ("AuthorizationPolicy", lambda s: s, {"action": "DENY"}, "spec.action: 'DENY' is not translated"),
        ("AuthorizationPolicy", lambda s: s["rules"][0]["from"][0]["source"], {"ipBlocks": ["::"]}, "source.ipBlocks"),
        ("AuthorizationPolicy", lambda s: s["rules"][0]["when"][0], {"key": "source.ip"}, "source.ip is not"),
    ]
    for kind, place, field, told in places:
        items = with_ports(copy.deepcopy(objects()))
        for item in items:
            if item["kind"] == kind:
                place(item["spec"]).update(field)
        found = Objects(items)
        with pytest.raises(Untranslatable, match=re.escape(told)):
            found.routes("mesh", HOST), found.cluster(HOST, PORT), found.jwt_authn(LABELS), found.rbac(LABELS)


def test_a_route_that_does_not_say_how_often_it_is_tried_is_refused() -> None:
    items = with_ports(objects())
    for item in items:
        if item["kind"] == "VirtualService":
            del item["spec"]["http"][1]["retries"]
    with pytest.raises(Untranslatable, match="Istio would retry twice"):
        Objects(items).routes("mesh", HOST)


def test_a_policy_without_rules_lets_nobody_in() -> None:
    policy = {"kind": "AuthorizationPolicy", "metadata": {"name": "nobody"}, "spec": {}}
    rbac = Objects([policy]).rbac(LABELS)
    assert rbac is not None
    assert rbac["typed_config"]["rules"] == {"policies": {}}
    assert Objects([]).rbac(LABELS) is None


def test_the_way_in_is_as_istiod_makes_it() -> None:
    theirs = read("listener-inbound.yaml")["filter_chains"][0]["filters"][0]["typed_config"]
    ours = envoy.inbound_manager(Objects(with_ports(objects())), LABELS, 51051, "inbound|51051||")
    same = set(ours) - {"stat_prefix", "route_config", "http_filters"}
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    action = theirs["route_config"]["virtual_hosts"][0]["routes"][0]
    assert ours["route_config"]["virtual_hosts"][0]["routes"][0] == {k: action[k] for k in ("match", "route", "name")}
    names = [f["name"] for f in ours["http_filters"]]
    assert names == [f["name"] for f in theirs["http_filters"] if f["name"] in names]


def test_mutual_tls_is_as_strict_as_istiods() -> None:
    theirs = read("listener-inbound.yaml")["filter_chains"][0]["transport_socket"]["typed_config"]
    assert theirs["common_tls_context"]["tls_params"] == envoy.TLS
    assert theirs["require_client_certificate"] is True


def test_the_way_out_is_as_istiod_makes_it() -> None:
    theirs = read("listener-outbound.yaml")["filter_chains"][0]["filters"][0]["typed_config"]
    ours = manager("outbound", [], [], use_remote_address=False)
    same = set(ours) - {"stat_prefix", "route_config", "http_filters", "http2_protocol_options", "server_name"}
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}


@pytest.mark.parametrize(
    ("written", "meant"), [("2s", "2s"), ("250ms", "0.250s"), ("1m30s", "90s"), ("1h", "3600s"), ("0.9s", "0.900s")]
)
def test_durations_are_gos(written: str, meant: str) -> None:
    assert duration(written) == meant


@pytest.mark.parametrize("text", ["", "2", "s", "2 s", "2d", "-1s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(Untranslatable):
        duration(text)
