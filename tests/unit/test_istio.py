"""Istio's objects are translated as istiod translates them, and what the translation does not know is refused.

`istio/` has objects, and the parts that decide behaviour of what istiod 1.31 answered for a sidecar of `reservation`.
"""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh import gateway
from mesh.istio import Json, Objects, Untranslatable, duration
from mesh.istio.kinds import read as read_object
from mesh.istio.proxy import manager
from mesh.machine import chart, envoy
from mesh.machine.home import Home
from services.chassis.addresses import EVERYWHERE
from tests.releases import extract

HERE = Path(__file__).parent / "istio"
HOST, PORT = "approval.vaccination.svc.cluster.local", 50052
LABELS = {"app": "reservation"}
# These kinds are not translated, because the Home has the registry of services and of their endpoints here.
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
    """The objects with the port written out, as our translation needs it; istiod knows that there is only one."""
    for item in items:
        for route in item["spec"].get("http", []) if item["kind"] == "VirtualService" else []:
            for destination in route["route"]:
                destination["destination"]["port"] = {"number": PORT}
    return items


def differences(ours: list[Json]) -> Iterator[str]:
    """Each place where our translation differs from istiod's."""
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
    """The cluster without its source of endpoints, and without a runtime key that istiod writes by mistake."""
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
def test_an_altered_field_makes_the_comparison_fail(kind: str) -> None:
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
            continue  # the translation refuses it, which shows too
        assert found, f"{kind}.{path} makes no difference"


@pytest.fixture(scope="module")
def rendered() -> list[Json]:
    """The chart's Istio objects, with everything that production's gateway has."""
    values = {"auth": {"jwks": "{}"}, "gateway": {"hosts": ["booking.example.org"], "tlsSecret": "booking-tls"}}
    return [item for item in chart.render(values) if "istio.io/" in item["apiVersion"]]


def maps(value: Any, path: str) -> Iterator[tuple[str, Json]]:
    """Every map in a value, with its path without indices."""
    if isinstance(value, dict):
        yield path, value
        for key, inner in value.items():
            yield from maps(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from maps(inner, path)


def test_a_field_that_nobody_translates_is_refused_wherever_it_is(rendered: list[Json]) -> None:
    free = set()
    for item in [*rendered, *with_ports(objects())]:
        name = f"{item['kind']} {item['metadata']['name']}"
        for path, place in maps(item, ""):
            # Envoy itself checks its own configuration strictly. And some maps have ports or names of headers as keys.
            if ".patch.value" in path or path.endswith((".portLevelMtls", ".match.headers", ".match.withoutHeaders")):
                continue
            place["unheardOf"] = "x"
            try:
                read_object(item)
                free.add(f"{item['kind']}{path}")
            except Untranslatable as error:
                told = re.sub(r"\[\d+\]", "", str(error))
                assert told == f"{name}: {f'{path}.unheardOf'.removeprefix('.')} is not translated"
            finally:
                del place["unheardOf"]
    assert {path for path in free if ".metadata" not in path} == {
        # The user chooses the keys of these maps.
        "AuthorizationPolicy.spec.selector.matchLabels",
        "EnvoyFilter.spec.workloadSelector.labels",
        "Gateway.spec.selector",
        "PeerAuthentication.spec.selector.matchLabels",
        "RequestAuthentication.spec.selector.matchLabels",
        "Telemetry.spec.selector.matchLabels",
        "VirtualService.spec.http.headers.response.set",
    }


# Each row has the kind, the place in its spec, what is written there, and the error's text.
REFUSED: list[tuple[str, Callable[[Json], Json], Json, str]] = [
    ("VirtualService", lambda s: s, {"tls": []}, "VirtualService approval: spec.tls is not translated"),
    ("VirtualService", lambda s: s, {"hosts": ["approval"]}, "spec: approval is not translated: a service's full name"),
    ("VirtualService", lambda s: s, {"gateways": ["other"]}, "spec.gateways: there is no Gateway other"),
    ("VirtualService", lambda s: s["http"][0], {"mirror": {}}, "spec.http[0].mirror"),
    ("VirtualService", lambda s: s["http"][0], {"timeout": "2"}, "spec.http[0].timeout: '2' is no duration"),
    ("VirtualService", lambda s: s["http"][0]["retries"], {"retryRemoteLocalities": True}, "retryRemoteLocalities"),
    ("VirtualService", lambda s: s["http"][0]["match"][0], {"authority": {"exact": "x"}}, "match[0].authority"),
    ("VirtualService", lambda s: s["http"][0]["match"][0]["uri"], {"prefix": "/"}, "uri: has 2 of the fields"),
    ("VirtualService", lambda s: s["http"][0]["match"][0], {"port": 9090}, "match.port is not translated where"),
    (
        "VirtualService",
        lambda s: s["http"][0]["route"][0]["destination"],
        {"subset": "x"},
        "a subset x of approval",
    ),
    ("DestinationRule", lambda s: s["trafficPolicy"], {"tls": {}}, "trafficPolicy.tls"),
    ("DestinationRule", lambda s: s, {"host": "*.local"}, "spec.host: *.local is not translated"),
    ("DestinationRule", lambda s: s["trafficPolicy"]["loadBalancer"], {"simple": "ROUND_ROBIN"}, "warmup is not"),
    ("DestinationRule", lambda s: s["trafficPolicy"]["outlierDetection"], {"minHealthPercent": 1}, "minHealth"),
    ("DestinationRule", lambda s: s, {"subsets": [{"name": "v2", "labels": {"version": "2"}}]}, "subsets[0].labels"),
    (
        "DestinationRule",
        lambda s: s,
        {"subsets": [{"name": "v2", "trafficPolicy": {"outlierDetection": {}}}]},
        "subsets[0].trafficPolicy.outlierDetection",
    ),
    ("RequestAuthentication", lambda s: s["jwtRules"][0], {"fromCookies": ["a"]}, "jwtRules[0].fromCookies"),
    ("RequestAuthentication", lambda s: s["jwtRules"][0], {"jwksUri": "http://x"}, "jwtRules[0]: has 2 of the fields"),
    ("AuthorizationPolicy", lambda s: s, {"action": "DENY"}, "spec.action: 'DENY' is not translated"),
    ("AuthorizationPolicy", lambda s: s["rules"][0]["from"][0]["source"], {"ipBlocks": ["::"]}, "source.ipBlocks"),
    ("AuthorizationPolicy", lambda s: s["rules"][0]["from"][0]["source"], {"principals": ["a/*"]}, "a/* is not"),
    ("AuthorizationPolicy", lambda s: s["rules"][0]["to"][0]["operation"], {"paths": ["/{*}/b"]}, "/{*}/b is not"),
    ("AuthorizationPolicy", lambda s: s["rules"][0]["when"][0], {"key": "source.ip"}, "source.ip is not"),
]


@pytest.mark.parametrize(("kind", "place", "field", "told"), REFUSED)
def test_a_value_that_would_mean_something_else_here_is_refused_with_its_object(
    kind: str, place: Callable[[Json], Json], field: Json, told: str
) -> None:
    items = with_ports(objects())
    [changed] = [item for item in items if item["kind"] == kind]
    place(changed["spec"]).update(field)
    with pytest.raises(Untranslatable, match=re.escape(told)):
        translate(items)


def translate(items: list[Json]) -> None:
    found = Objects(items)
    found.cluster(HOST, PORT)
    for route in found.routes("mesh", HOST):
        found.cluster(HOST, PORT, route["route"]["cluster"].split("|")[2])
    found.jwt_authn(LABELS), found.rbac(LABELS), found.strict(LABELS, PORT)


def made(kind: str, name: str, **spec: Any) -> Json:
    return {"apiVersion": "x.istio.io/v1", "kind": kind, "metadata": {"name": name, "namespace": "n"}, "spec": spec}


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("VirtualService", {"hosts": [HOST], "http": []}),
        ("DestinationRule", {"host": HOST}),
        ("PeerAuthentication", {"mtls": {"mode": "STRICT"}}),
    ],
)
def test_two_objects_about_the_same_thing_are_refused_because_istio_takes_the_older_one(kind: str, spec: Json) -> None:
    translate([made(kind, "one", **spec)])
    with pytest.raises(Untranslatable, match=f"{kind} two"):
        translate([made(kind, "one", **spec), made(kind, "two", **spec)])


def test_other_parts_of_an_object_that_istio_reads_are_refused() -> None:
    with pytest.raises(Untranslatable, match="WasmPlugin x: the kind is not translated"):
        Objects([made("WasmPlugin", "x")])
    for where in ("labels", "annotations"):
        item = made("AuthorizationPolicy", "x")
        item["metadata"][where] = {"istio.io/dry-run": "true"}
        with pytest.raises(Untranslatable, match="dry-run is not translated"):
            Objects([item])
    item = made("AuthorizationPolicy", "x")
    item["metadata"]["namespace"] = "istio-system"
    with pytest.raises(Untranslatable, match="more than one namespace"):
        Objects([item, made("AuthorizationPolicy", "y")])


def test_mutual_tls_of_a_port_overrides_its_workloads_and_that_overrides_the_namespaces() -> None:
    def strict(*policies: Json, port: int = 8080) -> bool:
        named = [made("PeerAuthentication", f"p{i}", **spec) for i, spec in enumerate(policies)]
        return Objects(named).strict(LABELS, port)

    namespace, selector = {"mtls": {"mode": "STRICT"}}, {"selector": {"matchLabels": LABELS}}
    opened = {"9090": {"mode": "PERMISSIVE"}}
    assert not strict()
    assert strict(namespace)
    assert not strict(namespace, selector | {"mtls": {"mode": "PERMISSIVE"}})
    assert strict(namespace, selector | {"portLevelMtls": opened})
    assert not strict(namespace, selector | {"portLevelMtls": opened}, port=9090)
    assert strict(selector | {"portLevelMtls": {"8080": {"mode": "STRICT"}}})
    with pytest.raises(Untranslatable, match=r"spec.portLevelMtls.9090.mode: 'DISABLE' is not translated"):
        strict(selector | {"portLevelMtls": {"9090": {"mode": "DISABLE"}}})
    with pytest.raises(Untranslatable, match="portLevelMtls is not translated without a selector"):
        strict({"portLevelMtls": opened})


def test_a_telemetry_about_a_component_is_refused(rendered: list[Json], tmp_path: Path) -> None:
    everything = chart.render({"auth": {"jwks": "{}"}})
    envoy.Machine(Home(tmp_path), envoy.Chart(everything)).config()
    logging = made("Telemetry", "all", accessLogging=[{"providers": [{"name": "envoy"}]}])
    logging["metadata"]["namespace"] = "vaccination"
    with pytest.raises(Untranslatable, match="Telemetry"):
        envoy.Machine(Home(tmp_path), envoy.Chart([*everything, logging])).config()


def test_no_proxy_takes_more_of_an_endless_stream_than_its_reader_has_room_for(tmp_path: Path) -> None:
    made = envoy.Machine(Home(tmp_path), envoy.Chart(chart.render({"auth": {"jwks": "{}"}}))).config()
    bounded = {
        found["name"]
        for found in made["static_resources"]["clusters"]
        for options in found["typed_extension_protocol_options"].values()
        if options["explicit_http_config"].get("http2_protocol_options", {}).get("initial_stream_window_size") == 65536
    }
    assert bounded == {"gateway>outbound|8080||mypage.vaccination.svc.cluster.local", "inbound|mypage"}


def test_a_gateway_answers_for_its_hosts_and_ends_tls_where_somebody_has_a_certificate(
    rendered: list[Json], tmp_path: Path
) -> None:
    with pytest.raises(Untranslatable, match=r"Gateway gateway: spec.servers\[0\].tls is not translated"):
        gateway.config(rendered)  # a pod without Istio
    other = copy.deepcopy(rendered)
    [selector] = [item["spec"]["selector"] for item in other if item["kind"] == "Gateway"]
    for item in other:
        if item["kind"] == "VirtualService":
            item["spec"]["hosts"] = ["www.example.org"]
    with pytest.raises(Untranslatable, match=r"spec\.hosts are not the hosts of Gateway gateway"):
        Objects(other).gateway(selector)


def test_the_gateway_of_the_chart_that_is_released_starts_with_this_version_too(tmp_path: Path) -> None:
    helm, folder = Path(sys.executable).parent / "helm", extract("0.3.0", tmp_path / "released") / "helm/vaccination"
    values: list[str | Path] = ["--values", folder / "values-evaluation.yaml", "--set", "auth.jwks=JWKS"]
    command: list[str | Path] = [helm, "template", "vaccination", folder, *values]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    [found] = [
        item["data"]["objects.json"]
        for item in yaml.load_all(done.stdout, yaml.CSafeLoader)
        if item and item["kind"] == "ConfigMap" and "objects.json" in item["data"]
    ]
    listeners = gateway.config(json.loads(found))["static_resources"]["listeners"]
    addresses = [listener["address"]["socket_address"] for listener in listeners]
    assert {a["port_value"] for a in addresses} == {8080, 15021}
    # It is called and probed by whichever family the cluster has.
    assert {(f"[{a['address']}]", a["ipv4_compat"]) for a in addresses} == {
        (EVERYWHERE, True)
    } or "::" not in EVERYWHERE


def test_a_policy_about_a_port_applies_to_the_port_that_listens_in_its_place() -> None:
    rule = {"to": [{"operation": {"ports": ["8080"], "notPorts": ["9090"]}}]}
    rbac = Objects([made("AuthorizationPolicy", "x", rules=[rule])]).rbac(LABELS, {8080: 18090})
    assert rbac is not None
    [policy] = rbac["typed_config"]["rules"]["policies"].values()
    here, other = policy["permissions"][0]["and_rules"]["rules"]
    assert here == {"or_rules": {"rules": [{"destination_port": 18090}]}}
    assert other == {"not_rule": {"or_rules": {"rules": [{"destination_port": 9090}]}}}


def test_a_policy_without_rules_lets_nobody_in() -> None:
    rbac = Objects([made("AuthorizationPolicy", "nobody")]).rbac(LABELS)
    assert rbac is not None
    assert rbac["typed_config"]["rules"] == {"policies": {}}
    assert Objects([]).rbac(LABELS) is None


def test_a_route_that_does_not_say_how_often_it_is_tried_is_refused() -> None:
    items = with_ports(objects())
    for item in items:
        if item["kind"] == "VirtualService":
            del item["spec"]["http"][1]["retries"]
    with pytest.raises(Untranslatable, match=r"spec.http\[1\]: retries is missing: Istio would retry twice"):
        Objects(items)


def test_the_inbound_listener_is_as_istiod_makes_it() -> None:
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


def test_the_outbound_listener_is_as_istiod_makes_it() -> None:
    theirs = read("listener-outbound.yaml")["filter_chains"][0]["filters"][0]["typed_config"]
    ours = manager("outbound", [], [], use_remote_address=False)
    same = set(ours) - {"stat_prefix", "route_config", "http_filters", "http2_protocol_options", "server_name"}
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}


@pytest.mark.parametrize(
    ("written", "meant"), [("2s", "2s"), ("250ms", "0.250s"), ("1m30s", "90s"), ("1h", "3600s"), ("0.9s", "0.900s")]
)
def test_durations_are_read_as_go_reads_them(written: str, meant: str) -> None:
    assert duration(written) == meant


@pytest.mark.parametrize("text", ["", "2", "s", "2 s", "2d", "-1s"])
def test_a_text_that_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(Untranslatable):
        duration(text)
