"""The chart renders the golden files, refuses values that it does not know, and agrees with the services it installs.

`python -m tests.unit.test_chart` writes helm/golden/ again. Read the difference before you commit it.
"""

import datetime
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_reflection.v1alpha import reflection

from mesh import CHART, ROOT
from mesh.istio import Objects
from mesh.machine.home import SERVICES, WEB
from mesh.machine.issuer import CLIENT
from tests.releases import extract

GOLDEN = ROOT / "helm" / "golden"
FILES = sorted(CHART.glob("values*.yaml"))
Json = dict[str, Any]
PREVIOUS = "0.3.0"  # the last release
# This value has to be given, because no default would be right anywhere.
NEEDED = ("--set", "auth.jwks=JWKS")
SERVICERS = {
    "vaccination.approval.v1.HospitalService": ("services.approval.adapters.grpc", "HospitalServicer"),
    "vaccination.reservation.v1.ReservationService": ("services.reservation.adapters.grpc", "ReservationServicer"),
    "vaccination.vaccinemgmt.v1.VaccinemgmtService": ("services.vaccinemgmt.adapters.grpc", "VaccinemgmtServicer"),
    "vaccination.vaccinemgmt.v1.CounterService": ("services.vaccinemgmt.adapters.counter", "CounterServicer"),
    "vaccination.vaccinemgmt.v1.RecallService": ("services.vaccinemgmt.adapters.recalls", "RecallServicer"),
    "vaccination.mypage.v1.MypageService": ("services.mypage.server", "MypageServicer"),
    "vaccination.mypage.v1.ViewService": ("services.mypage.rebuild", "ViewServicer"),
}


@cache
def template(*options: str | Path, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    helm = Path(sys.executable).parent / "helm"
    command = [helm, "template", "vaccination", chart, "--namespace", "vaccination", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rendered(file: Path, *options: str) -> str:
    done = template("--values", file, "--api-versions", "monitoring.coreos.com/v1", *NEEDED, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(*options: str | Path, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> dict[str, Json]:
    """The rendered objects by "Kind name"; `values` override the values files among the options."""
    given = [f"--set-json={key}={json.dumps(value)}" for key, value in (values or {}).items()]
    done = template(*NEEDED, *options, *given, chart=chart)
    assert done.returncode == 0, done.stderr
    items = [item for item in yaml.load_all(without_passwords(done.stdout), yaml.CSafeLoader) if item]
    return {f"{item['kind']} {item['metadata']['name']}": item for item in items}


def pod_templates(found: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """Every pod template, with the name of the object that has it."""
    for name, item in found.items():
        if item["kind"] == "Pod":
            yield name, item
        elif item["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, item["spec"]["template"]


def without_passwords(text: str) -> str:
    """The text without passwords, which are random."""
    text = re.sub(r"(?<=:)( *\"?)[A-Za-z0-9]{24}(?=\"?$|@)", r"\1PASSWORD", text, flags=re.M)
    return re.sub(r"(://[a-z]+:)[A-Za-z0-9]{24}@", r"\1PASSWORD@", text)


def golden(text: str) -> str:
    """The text without passwords, and without the long contents that are files of their own in the chart."""
    text = without_passwords(text)
    text = re.sub(r"^(.{200}).{800,}$", r"\1 ... and so on", text, flags=re.M)
    return re.sub(r"(?ms)^( *local_reply_config: ).*?^}$", r"\1 ... and so on", text)


def values(*files: Path) -> Any:
    def merged(one: Any, other: Any) -> Any:
        if isinstance(one, dict) and isinstance(other, dict):
            return one | {k: merged(one.get(k), v) for k, v in other.items()}
        return other

    found: Any = {}
    for file in (CHART / "values.yaml", *files):
        found = merged(found, yaml.safe_load(file.read_text()))
    return found


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"ms": 0.001, "s": 1}[unit]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_chart_renders_the_golden_files(file: Path) -> None:
    assert golden(rendered(file)) == (GOLDEN / file.name).read_text(), "if it should be so: see this file's head"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_kubectl_apply_can_note_down_every_object(file: Path) -> None:
    for item in yaml.load_all(rendered(file), yaml.CSafeLoader):
        if item:  # the annotation may be as long, and there should be room to grow
            assert len(json.dumps(item, ensure_ascii=False)) < 200_000, (item["kind"], item["metadata"]["name"])


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_names_are_unique_and_every_pod_is_restricted(file: Path) -> None:
    items = [item for item in yaml.load_all(rendered(file), yaml.CSafeLoader) if item]
    names = [(item["apiVersion"], item["kind"], item["metadata"]["name"]) for item in items]
    assert len(names) == len(set(names))
    pods = [item["spec"] if item["kind"] == "Pod" else item["spec"]["template"]["spec"] for item in items
            if item["kind"] in ("Pod", "Deployment", "StatefulSet", "Job")]  # fmt: skip
    assert pods
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            allowed = container["securityContext"]
            assert allowed["readOnlyRootFilesystem"]
            assert not allowed["allowPrivilegeEscalation"]
            assert allowed["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("imag.tag=1", "(root): Additional property imag"),
        ("components.approval.replica=3", "components.approval: Additional property replica"),
        ("components.approval.connections.max=3", "components.approval.connections: Additional property max"),
        ("gateway.limits.drain=15", "gateway.limits.drain: Invalid type"),
        ("budget.approval=soon", "budget.approval: Does not match pattern"),
        ("evaluation.stores.nats.replicas=2", "evaluation.stores.nats.replicas"),
        ("evaluation.stores.postgres.replicas=3", "evaluation.stores.postgres.replicas"),
        ("evaluation.stores.mongo.replicas=3", "evaluation.stores.mongo.replicas"),
        ("gateway.name=", "gateway.name"),
        ("components.approval.env.log-level=INFO", "components.approval.env"),
        ("default.nodeselector.disk=ssd", "default: Additional property nodeselector"),
        ("default.tolerations=all", "default.tolerations: Invalid type"),
        ("components.approval.affinity.nodes=1", "components.approval.affinity: Additional property nodes"),
        ("migrations.resources.request.cpu=1", "migrations.resources: Additional property request"),
        ("evaluation.stores.nats.priorityClass=high", "evaluation.stores.nats: Additional property priorityClass"),
        ("check.deadline=5s", "check: Additional property deadline"),
        ("components.reservation.deadlines.approval=soon", "components.reservation.deadlines.approval"),
        ("components.approval.callers.reservation[0].retries=-1", "components.approval.callers.reservation.0"),
        ("components.approval.callers.nobody[0].name=x", "components.approval.callers.nobody.0: path is required"),
        ("components.approval.pages={/}", "components.approval"),
        ("components.web.store=postgres", "components.web"),
        ("components.web.pages={customer}", "components.web.pages.0: Does not match pattern"),
        ("components.web.pages={/*/x}", "components.web.pages.0: Does not match pattern"),
        ("auth.signIn.clientId=", "auth.signIn.clientId"),
        ("auth.signIn.scope=profile", "auth.signIn.scope: Does not match pattern"),
        ("default.podSecurityContext.runAsuser=1", "default.podSecurityContext: Additional property runAsuser"),
        ("gateway.service.externalTrafficPolicy=local", "gateway.service.externalTrafficPolicy"),
        ("networkPolicy.dnsPorts={}", "networkPolicy.dnsPorts"),
        ("components.approval.secrets.password.key=x", "components.approval.secrets"),
        ("components.approval.databaseUrl=postgresql://a:secret@h/a", "components.approval.databaseUrl"),
    ],
)
def test_a_mistake_in_the_values_is_refused_with_its_path(setting: str, path: str) -> None:
    done = template(*NEEDED, "--set", setting)
    assert done.returncode != 0
    assert path in done.stderr


def test_nothing_is_installed_without_the_public_keys_of_the_token_issuer() -> None:
    done = template()
    assert done.returncode != 0
    assert "auth.jwksUri" in done.stderr


def test_the_chart_and_the_servicers_admit_the_same_roles_to_every_public_rpc() -> None:
    public = {service: rpcs for c in values()["components"].values() for service, rpcs in c.get("public", {}).items()}
    assert public.keys() == SERVICERS.keys()
    for service, (module, name) in SERVICERS.items():
        servicer = getattr(importlib.import_module(module), name)
        admitted = {rpc: m.allowed_roles for rpc, m in vars(servicer).items() if hasattr(m, "allowed_roles")}
        assert {rpc: set(roles) for rpc, roles in public[service].items()} == admitted


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_caller_has_a_longer_deadline_than_the_component_it_calls_and_time_for_two_tries(file: Path) -> None:
    found = values(file)
    budget = {name: seconds(value) for name, value in found["budget"].items()}
    pause = seconds(found["retries"]["pause"])

    def time(value: str) -> float:
        """Seconds; the value may be the name of one of the budget's times."""
        return (
            budget[named[1]] if (named := re.fullmatch(r"\{\{ \.Values\.budget\.(\w+) \}\}", value)) else seconds(value)
        )

    for callee, component in found["components"].items():
        for caller, calls in component.get("callers", {}).items():
            deadline = time(found["components"][caller]["deadlines"][callee])
            assert budget["gateway"] > deadline
            for call in calls:
                assert deadline > time(call["timeout"])
                assert 2 * time(call["tryTimeout"]) + pause <= time(call["timeout"])
    assert 2 * budget["gatewayTry"] + pause <= budget["gateway"]
    assert seconds(found["gateway"]["limits"]["drain"]) > budget["gateway"]
    life = {name: seconds(value) for name, value in found["lifecycle"].items()}
    # After the drain the chassis gives calls half of this time. Then connections have 5 s to close, and traces 2 s.
    assert life["drain"] + life["shutdown"] / 2 < life["shutdown"]
    assert life["shutdown"] + 7 < life["grace"]
    assert life["shutdown"] / 2 > budget["gateway"]


def test_the_components_are_the_services() -> None:
    assert set(values()["components"]) == {*SERVICES, WEB}


def test_a_new_version_of_the_chart_alone_restarts_nothing(tmp_path: Path) -> None:
    other = tmp_path / "vaccination"
    shutil.copytree(CHART, other)
    about = (CHART / "Chart.yaml").read_text()
    (other / "Chart.yaml").write_text(re.sub(r"(?m)^(version|appVersion): .*", r"\1: 99.0.0", about))
    same_image = ("--set", "image.tag=same", "--values", CHART / "values-evaluation.yaml", *NEEDED)
    pods = []
    for chart in (CHART, other):
        objects = [item for item in yaml.safe_load_all(template(*same_image, chart=chart).stdout) if item]
        pods.append({f"{o['kind']} {o['metadata']['name']}": o["spec"].get("template") for o in objects if "spec" in o})
    for name, pod in pods[0].items():
        assert pod == pods[1][name], f"{name} would be restarted"


def test_an_upgrade_from_the_last_release_restarts_no_store_but_nats_for_its_new_probe(tmp_path: Path) -> None:
    previous = extract(PREVIOUS, tmp_path) / "helm" / "vaccination"
    stores = []
    for chart in (previous, CHART):
        found = objects("--values", chart / "values-evaluation.yaml", "--set", "image.tag=same", chart=chart)
        stores.append({name: item["spec"] for name, item in found.items() if item["kind"] == "StatefulSet"})
        nats = stores[-1]["StatefulSet nats"]["template"]["spec"]["containers"][0]
        assert nats.pop("livenessProbe")  # 0.3.0's did not see that a full disk had ended publishing
    assert stores[0] == stores[1]


@pytest.mark.parametrize("name", ["values-production.yaml", "values-evaluation.yaml"])
def test_a_file_of_values_of_the_last_release_still_means_the_same(name: str, tmp_path: Path) -> None:
    previous = extract(PREVIOUS, tmp_path) / "helm" / "vaccination"
    assert objects("--values", previous / name) == objects("--values", CHART / name)


# Beside other charts


def defines() -> list[str]:
    return [name for f in (CHART / "templates").iterdir() for name in re.findall(r'define "([^"]+)"', f.read_text())]


def test_every_define_carries_the_charts_name() -> None:
    assert [name for name in defines() if not name.startswith("vaccination.")] == []


def test_defines_of_a_chart_beside_it_under_one_parent_change_nothing(tmp_path: Path) -> None:
    """Helm has one namespace of defines for all charts installed together, and the last define of a name wins."""
    names = {part for name in defines() for part in (name.removeprefix("vaccination."), name.split(".")[-1])} | {"name"}
    theirs = "".join(f'{{{{ define "{name}" }}}}theirs: "{name}"{{{{ end }}}}\n' for name in sorted(names))
    shutil.copytree(CHART, tmp_path / "charts" / "vaccination")
    # Helm reads one of these charts before ours and one after it; the third is the parent itself.
    for folder in (tmp_path / "charts" / "another", tmp_path / "charts" / "zoo", tmp_path):
        (folder / "templates").mkdir(parents=True)
        (folder / "Chart.yaml").write_text(f"{{apiVersion: v2, name: {folder.name}, version: 1.0.0}}")
        (folder / "templates" / "_helpers.tpl").write_text(theirs)
    production = CHART / "values-production.yaml"
    (tmp_path / "values.yaml").write_text(json.dumps({"vaccination": yaml.safe_load(production.read_text())}))
    together = objects("--set", "vaccination.auth.jwks=JWKS", "--set", "auth=null", chart=tmp_path)
    assert together == objects("--values", production)


# Components


MYPAGE_CALLS = {
    "components.mypage.deadlines": {"approval": "1.5s"},
    "components.approval.callers.mypage": [
        {
            "name": "hospitals",
            "path": "/vaccination.approval.v1.HospitalService/ListHospitals",
            "timeout": "1s",
            "retries": 1,
            "tryTimeout": "0.4s",
            "retryOn": "unavailable",
            "connections": {"maxRequests": 16, "maxPending": 8},
        }
    ],
}
HOST = "approval.vaccination.svc.cluster.local"


def test_a_second_component_can_call_another_with_a_budget_and_a_breaker_of_its_own() -> None:
    before, found = objects(), objects(values=MYPAGE_CALLS)
    settings = found["ConfigMap mypage"]["data"]
    assert (settings["APPROVAL_TARGET"], settings["APPROVAL_TIMEOUT"]) == (f"{HOST}:8080", "1.5")
    assert found["ConfigMap reservation"] == before["ConfigMap reservation"]

    rules = found["AuthorizationPolicy approval"]["spec"]["rules"]
    allowed = {
        r["from"][0]["source"]["principals"][0].rpartition("/")[2]: r["to"][0]["operation"]["paths"] for r in rules
    }
    assert allowed["mypage"] == ["/vaccination.approval.v1.HospitalService/ListHospitals"]
    decides = "/vaccination.approval.v1.ApprovalService"
    assert allowed["reservation"] == [f"{decides}/Approve", f"{decides}/Move"]

    def peers(policy: str, way: str) -> str:
        return json.dumps(found[f"NetworkPolicy {policy}"]["spec"][way])

    assert '"mypage"' in peers("approval", "ingress")
    assert '"approval"' in peers("mypage", "egress")
    assert '"approval"' not in peers("vaccinemgmt", "egress")

    # This is what each proxy gets.
    istio = Objects(found.values())
    routes = {route["name"]: route for route in istio.routes("mesh", HOST)}
    assert list(routes) == ["mypage-hospitals", "reservation-approve", "reservation-move", "other"]
    its_own = routes["mypage-hospitals"]["route"]
    assert its_own["timeout"] == "1s"
    assert (its_own["retry_policy"]["num_retries"], its_own["retry_policy"]["per_try_timeout"]) == (1, "0.400s")
    for route, most, pending in (("mypage-hospitals", 16, 8), ("reservation-approve", 512, 256)):
        _, port, subset, host = routes[route]["route"]["cluster"].split("|")
        [limits] = istio.cluster(host, int(port), subset)["circuit_breakers"]["thresholds"]
        assert (limits["max_requests"], limits["max_pending_requests"]) == (most, pending)


def test_without_istio_the_second_callers_client_retries_within_its_own_budget() -> None:
    found = objects(values=MYPAGE_CALLS | {"istio.enabled": False})
    settings = found["ConfigMap mypage"]["data"]
    [method] = json.loads(settings["APPROVAL_SERVICE_CONFIG"])["methodConfig"]
    assert method["name"] == [{"service": "vaccination.approval.v1.HospitalService", "method": "ListHospitals"}]
    assert method["retryPolicy"]["maxAttempts"] == 2
    assert settings["APPROVAL_TIMEOUT"] == "1.5"


def test_two_callers_of_one_rpc_each_have_their_own_route() -> None:
    calls = MYPAGE_CALLS["components.approval.callers.mypage"][0]  # type: ignore[index]
    approve = calls | {"path": "/vaccination.approval.v1.ApprovalService/Approve"}
    found = objects(values=MYPAGE_CALLS | {"components.approval.callers.mypage": [approve]})
    routes = found["VirtualService approval"]["spec"]["http"]
    labels = {r["name"]: r["match"][0].get("sourceLabels") for r in routes if "match" in r}
    callers = {name: label["app.kubernetes.io/name"] for name, label in labels.items() if label}
    assert callers == {"mypage-hospitals": "mypage", "reservation-approve": "reservation"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"components.approval.enabled": False}, "components.reservation is enabled and calls approval, which is not"),
        ({"components.reservation.deadlines": None}, "components.reservation.deadlines.approval is needed"),
        ({"components.mypage.callers": {"nobody": []}}, "components.mypage.callers: there is no component nobody"),
    ],
)
def test_calls_that_cannot_work_are_refused(given: Mapping[str, Any], told: str) -> None:
    done = template(*NEEDED, *(f"--set-json={key}={json.dumps(value)}" for key, value in given.items()))
    assert done.returncode != 0
    assert told in done.stderr


def test_nothing_is_rendered_for_a_component_that_is_not_enabled() -> None:
    everything = objects("--values", CHART / "values-evaluation.yaml", values={"istio.enabled": True})
    found = objects(
        "--values", CHART / "values-evaluation.yaml",
        values={"istio.enabled": True, "components.mypage.enabled": False},
    )  # fmt: skip
    gone = {"Deployment", "ServiceAccount", "ConfigMap", "Service", "Secret", "PodDisruptionBudget", "NetworkPolicy"}
    gone |= {"AuthorizationPolicy", "DestinationRule", "EnvoyFilter"}
    assert everything.keys() - found.keys() == {f"{kind} mypage" for kind in gone} | {"Job mypage-migrate"}
    filters = json.dumps(found["EnvoyFilter gateway"]["spec"])
    assert "vaccination.reservation.v1.ReservationService" in filters
    found.pop("EnvoyFilter gateway")  # it has all contracts, and the list of those that are served
    found.pop("Secret evaluation")  # the password is kept, because the store's data is kept
    found.pop("ConfigMap dashboard-vaccination")
    for name, item in found.items():
        routes = item["spec"].get("http", []) if item["kind"] == "VirtualService" else []
        item_without_description = item if not routes else [r for r in routes if r["name"] != "description"]
        assert "mypage" not in json.dumps(item_without_description), name
    # Any enabled component can answer reflection. If there is none, `helm test` does not ask for it.
    assert not [a for a in found["Pod check"]["spec"]["containers"][0]["args"] if a.startswith("vaccination.")]


# The page


def its_routes(found: Mapping[str, Json], component: str = WEB) -> dict[str, Json]:
    """The gateway's routes to a component, by the paths that they match."""
    routes = Objects(found.values()).routes("gateway")
    host = f"{component}.vaccination.svc.cluster.local"
    ours = [route for route in routes if "route" in route and route["route"]["cluster"].endswith(host)]
    return {r["match"].get("path") or f"{r['match']['prefix']}*": r for r in ours}


@pytest.mark.parametrize("istio", [True, False], ids=["istio", "without"])
def test_the_page_is_for_everybody_and_its_server_has_no_secret_and_calls_nobody(istio: bool) -> None:
    found = objects(values={"istio.enabled": istio, "telemetry.otlpEndpoint": "http://collector:4318"})
    component = values()["components"][WEB]
    policies = objects()
    assert its_routes(policies).keys() == {*component["pages"], *component["assets"]}
    # The gateway's policy lets everybody call what is no public RPC, and the server's lets nobody in but the gateway.
    public = policies["AuthorizationPolicy gateway"]["spec"]["rules"][-1]["to"][0]["operation"]["notPaths"]
    assert not set(public) & its_routes(policies).keys()
    rules = policies["AuthorizationPolicy web"]["spec"]["rules"]
    allowed = {
        r["from"][0]["source"]["principals"][0].rpartition("/")[2]: r["to"][0]["operation"]["paths"] for r in rules
    }
    assert allowed == {"gateway": component["pages"] + component["assets"], "check": ["/readyz"]}

    pod = found["Deployment web"]["spec"]["template"]["spec"]
    assert "volumes" not in pod
    assert "env" not in pod["containers"][0]
    assert not [name for name in found if name in ("Secret web", "Job web-migrate")]
    settings = found["ConfigMap web"]["data"]
    assert not [name for name in settings if "NATS" in name or "RETENTION" in name]
    egress = found["NetworkPolicy web"]["spec"]["egress"]
    ports = {port["port"] for rule in egress for port in rule["ports"]}
    assert ports == ({53, 15012} if istio else set()), "the proxy needs DNS and istiod, the server nobody"
    assert f"http://{WEB}." in " ".join(found["Pod check"]["spec"]["containers"][0]["args"])


def test_a_file_that_one_replica_does_not_have_is_asked_for_at_another_one() -> None:
    routes = its_routes(objects())
    policy = routes["/assets/*"]["route"]["retry_policy"]
    assert policy["retriable_status_codes"] == [404]
    assert "retriable-status-codes" in policy["retry_on"].split(",")
    assert "404" not in policy["retry_on"]
    assert policy["retry_host_predicate"][0]["name"] == "envoy.retry_host_predicates.previous_hosts"
    assert "retriable_status_codes" not in routes["/"]["route"]["retry_policy"]


def test_the_page_is_told_where_people_sign_in() -> None:
    found = objects(
        values={
            "auth.claims": {"roles": "groups"},
            "auth.signIn.clientId": "booking",
            "auth.signIn.tokenEndpoint": "https://id.example.org/token",
        }
    )["ConfigMap web"]["data"]
    auth = values()["auth"]
    assert found["ISSUER"] == auth["issuer"]
    assert auth["signIn"]["clientId"] == CLIENT
    assert auth["signIn"]["clientId"] not in auth["audiences"], "an id_token would pass for an access token"
    assert found["CLIENT_ID"] == "booking"
    assert json.loads(found["CLAIM_NAMES"]) == {"roles": "groups"}
    assert found["TOKEN_ENDPOINT"] == "https://id.example.org/token"
    assert "AUTHORIZATION_ENDPOINT" not in found


def test_without_the_page_the_gateway_has_no_routes_to_it_and_everything_else_is_the_same() -> None:
    evaluation = ("--values", CHART / "values-evaluation.yaml")
    everything = objects(*evaluation, values={"istio.enabled": True})
    found = objects(*evaluation, values={"istio.enabled": True, "components.web.enabled": False})
    kinds = ["Deployment", "ServiceAccount", "ConfigMap", "Service", "PodDisruptionBudget", "NetworkPolicy"]
    kinds += ["AuthorizationPolicy", "DestinationRule"]
    assert everything.keys() - found.keys() == {f"{kind} web" for kind in kinds}
    assert its_routes(found) == {}
    for name, item in found.items():
        text = json.dumps(item["spec"]) if "spec" in item else ""
        assert "web." not in text.replace("grpc_web.", ""), name


PLACEMENT: Json = {
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "bookings", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "bookings",
}


def test_every_pod_takes_the_defaults_and_its_own_settings_override_them() -> None:
    default = {f"default.{key}": value for key, value in PLACEMENT.items()}
    default |= {"default.podAnnotations": {"team": "bookings"}, "default.serviceAccountAnnotations": {"cloud": "all"}}
    own = {
        "nodeSelector": {"zone": "a"},
        "tolerations": [],
        "priorityClassName": "first",
        "podAnnotations": {"team": "own"},
        "serviceAccountAnnotations": {"cloud": "own"},
        "resources": {"requests": {"cpu": "1"}},
    }
    where = {
        "Deployment approval": "components.approval",
        "Deployment gateway": "gateway",
        "Job reservation-migrate": "migrations",
        "Pod check": "check",
        "StatefulSet nats": "evaluation.stores.nats",
    }
    both = default | {f"{path}.{key}": value for path in where.values() for key, value in own.items()}
    evaluation = ("--values", CHART / "values-evaluation.yaml")
    for name, pod in pod_templates(objects(*evaluation, values=default)):
        assert {key: pod["spec"][key] for key in PLACEMENT} == PLACEMENT, name
        assert pod["metadata"]["annotations"]["team"] == "bookings", name
    found = objects(*evaluation, values=both)
    pods = dict(pod_templates(found))
    for name in where:
        pod = pods[name]
        assert pod["spec"]["nodeSelector"] == {"disk": "ssd", "zone": "a"}, name
        assert "tolerations" not in pod["spec"], name
        assert pod["spec"]["priorityClassName"] == "first", name
        assert pod["metadata"]["annotations"]["team"] == "own", name
        account = found[f"ServiceAccount {pod['spec']['serviceAccountName']}"]
        assert account["metadata"]["annotations"]["cloud"] == "own", name
        for container in pod["spec"]["containers"]:
            assert container["resources"]["requests"]["cpu"] == "1", name
            assert container["resources"]["limits"]["memory"], name
    assert pods["Deployment mypage"]["spec"]["priorityClassName"] == "bookings"


def test_replicas_are_kept_apart_by_their_own_labels_whatever_the_constraint() -> None:
    constraint = {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
    found = objects(values={"components.approval.topologySpreadConstraints": [constraint]})
    for name, keys in (("approval", ["rack"]), ("mypage", ["kubernetes.io/hostname", "topology.kubernetes.io/zone"])):
        spec = found[f"Deployment {name}"]["spec"]
        spread = spec["template"]["spec"]["topologySpreadConstraints"]
        assert [c["topologyKey"] for c in spread] == keys
        assert all(c["labelSelector"] == spec["selector"] for c in spread)


# Beside others in one Istio


def in_namespace(namespace: str, release: str = "vaccination") -> dict[str, Json]:
    """The objects of another release than the other tests'."""
    helm = Path(sys.executable).parent / "helm"
    command: list[str | Path] = [helm, "template", release, CHART, "--namespace", namespace, *NEEDED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    items = [item for item in yaml.load_all(done.stdout, yaml.CSafeLoader) if item]
    return {f"{item['kind']} {item['metadata']['name']}": item for item in items}


def test_a_gateway_finds_no_other_releases_pods_although_it_looks_in_all_namespaces() -> None:
    releases = [objects(), in_namespace("other"), in_namespace("vaccination", "other")]
    selectors = [found["Gateway gateway"]["spec"]["selector"].items() for found in releases]
    pods = [found["Deployment gateway"]["spec"]["template"]["metadata"]["labels"].items() for found in releases]
    for number, selector in enumerate(selectors):
        assert [selector <= labels for labels in pods] == [number == i for i in range(len(releases))]
    # An upgrade from 0.3 has to look for less, and still lends nobody its routes.
    assert {tuple(found["VirtualService gateway"]["spec"]["exportTo"]) for found in releases} == {(".",)}


LABELLED = {"sidecar.istio.io/inject": "true", "namespace": "vaccination"}
REPLACED = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}


@pytest.mark.parametrize(
    ("labels", "status", "selector", "asked"),
    [
        (None, None, None, True),
        ({"sidecar.istio.io/inject": "true"}, REPLACED, {}, False),
        (LABELLED, REPLACED, {}, True),
        (LABELLED, REPLACED | {"observedGeneration": 1}, {}, False),
        (LABELLED, REPLACED | {"replicas": 3}, {}, False),
        (LABELLED, REPLACED | {"updatedReplicas": 1}, {}, False),
        (LABELLED, REPLACED | {"availableReplicas": 1}, {}, False),
        (LABELLED, {"observedGeneration": 2}, {}, False),
        (LABELLED, REPLACED | {"availableReplicas": 1}, {"namespace": "vaccination"}, True),
    ],
    ids=["install", "0.3", "replaced", "unseen", "old-pod", "not-updated", "not-ready", "no-pod", "already-asked"],
)
def test_a_gateway_asks_for_its_namespace_only_when_no_pod_of_the_last_release_runs(
    labels: Json | None, status: Json | None, selector: Json | None, asked: bool, tmp_path: Path
) -> None:
    """A chart of its own decides it for made objects, since none are looked up without a cluster."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: decision, version: 1.0.0}")
    shutil.copy(CHART / "templates" / "_gateway.tpl", tmp_path / "templates")
    decision = (
        '{kind: Decision, metadata: {name: asked, is: {{ include "vaccination.podsHaveNamespace" .Values | quote }}}}'
    )
    (tmp_path / "templates" / "decision.yaml").write_text(decision)
    deployment = {
        "metadata": {"generation": 2},
        "spec": {"template": {"metadata": {"labels": labels}}},
        "status": status,
    }
    made = {"deployment": deployment if labels else {}, "gateway": {"spec": {"selector": selector}} if labels else {}}
    (tmp_path / "values.yaml").write_text(json.dumps(made))
    assert objects(chart=tmp_path)["Decision asked"]["metadata"]["is"] == ("yes" if asked else "")


def test_the_gateways_proxy_is_pulled_as_the_values_say_although_its_image_has_no_tag_yet() -> None:
    def policy(**values: str) -> str:
        [proxy] = objects(values=values)["Deployment gateway"]["spec"]["template"]["spec"]["containers"]
        assert proxy["image"] == "auto"
        return str(proxy["imagePullPolicy"])

    assert policy() == "IfNotPresent"
    assert policy(**{"image.pullPolicy": "Never"}) == "Never"


def test_routes_to_a_component_take_no_call_for_its_metrics() -> None:
    found = objects()
    ports = {port["name"]: port["port"] for port in found["Service approval"]["spec"]["ports"]}
    routes = found["VirtualService approval"]["spec"]["http"]
    assert [[match["port"] for match in route["match"]] for route in routes] == [[ports["grpc"]]] * len(routes)


def test_stores_of_the_evaluation_can_be_left_out_of_the_mesh() -> None:
    file, stores = CHART / "values-evaluation.yaml", ("postgres", "mongo", "nats")
    for sidecars in (True, False):
        values = {"istio.enabled": True, "evaluation.sidecars": sidecars}
        found = objects("--values", file, values=values)
        for store in stores:
            labels = found[f"StatefulSet {store}"]["spec"]["template"]["metadata"]["labels"]
            assert labels["sidecar.istio.io/inject"] == str(sidecars).lower()
            # A policy needs a proxy that applies it. Without one the mesh must not speak TLS to the store.
            assert (f"AuthorizationPolicy {store}" in found) is sidecars
            assert (f"DestinationRule {store}" in found) is not sidecars
        assert (
            found["Deployment approval"]["spec"]["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] == "true"
        )
    for store in stores:
        rule = found[f"DestinationRule {store}"]["spec"]
        assert rule["host"] == f"{store}.vaccination.svc.cluster.local"
        assert rule["trafficPolicy"] == {"tls": {"mode": "DISABLE"}}


def test_the_check_calls_the_gateway_as_its_clients_do() -> None:
    def way_in(**values: Any) -> list[str]:
        url, host, *_ = objects(values=values)["Pod check"]["spec"]["containers"][0]["args"]
        return [url, host]

    tls = {"gateway.tlsSecret": "tls", "gateway.service.port": 443}
    assert way_in() == ["http://gateway:80", "gateway"]
    assert way_in(**{"gateway.hosts": ["a.example.org", "b"]}) == ["http://gateway:80", "a.example.org"]
    assert way_in(**tls, **{"gateway.hosts": ["*.example.org"]}) == ["https://gateway:443", "check.example.org"]
    assert way_in(**tls) == ["https://gateway:443", "*"]


@pytest.mark.parametrize("host", ["*", "check.clinic.test"])
def test_the_check_asks_a_gateway_for_any_host_by_its_certificates_own_name(host: str) -> None:
    server = grpc.server(ThreadPoolExecutor())
    service = reflection.SERVICE_NAME
    reflection.enable_server_reflection((service,), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([certified("*.clinic.test")]))
    server.start()
    try:
        command = [sys.executable, CHART / "files" / "check.py", f"https://127.0.0.1:{port}", host, service]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        server.stop(None).wait()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the gateway describes {service}" in done.stdout


def certified(name: str) -> tuple[bytes, bytes]:
    """A new key, and a certificate for it with the name, from an authority that nobody knows."""
    key, authority = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(pem, form, no_password), certificate.public_bytes(pem)


# Hooks


@pytest.mark.parametrize("evaluation", [True, False], ids=["evaluation", "production"])
@pytest.mark.parametrize("istio", [True, False], ids=["istio", "without"])
def test_before_any_new_pod_each_component_migrates_with_its_store_and_nats_in_reach(
    evaluation: bool, istio: bool
) -> None:
    file = CHART / ("values-evaluation.yaml" if evaluation else "values-production.yaml")
    edge = {} if istio else {"gateway.tlsSecret": "", "gateway.hosts": ["*"]}
    found = objects("--values", file, values={"istio.enabled": istio} | edge)
    jobs = {n.split()[1].removesuffix("-migrate"): item for n, item in found.items() if item["kind"] == "Job"}
    assert set(jobs) == set(SERVICES)
    for name, job in jobs.items():
        assert "pre-upgrade" in job["metadata"]["annotations"]["helm.sh/hook"].split(",")
        pod = job["spec"]["template"]
        [container] = pod["spec"]["containers"]
        assert container["command"] == ["python", "-m", f"services.{name}", "migrate"]
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        # The migration has the settings and secrets of the new pods: the store's URL and NATS' password.
        assert env.items() >= found[f"ConfigMap {name}"]["data"].items()
        assert {"NATS_URL", "NATS_USER", "STREAM_REPLICAS"} <= env.keys()
        deployed = found[f"Deployment {name}"]["spec"]["template"]["spec"]
        assert pod["spec"]["volumes"] == deployed["volumes"]
        assert container["volumeMounts"] == deployed["containers"][0]["volumeMounts"]
        assert secrets_of(job).keys() == {"database_url", "nats_password"}
        # A proxy that is an ordinary container would go on after the migration has ended, and so would the Job.
        annotations = pod["metadata"].get("annotations", {})
        assert annotations.get("sidecar.istio.io/nativeSidecar") == ("true" if istio else None)
        labels = pod["metadata"]["labels"]
        policy = found["NetworkPolicy migrate"]["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        rules = json.dumps(policy["egress"])
        if evaluation:
            for store in ("nats", deployed_store(name)):
                assert f'"{store}"' in rules
                assert '"migrate"' in json.dumps(found[f"NetworkPolicy {store}"]["spec"]["ingress"])
                if istio:
                    assert '/sa/migrate"' in json.dumps(found[f"AuthorizationPolicy {store}"]["spec"])
        else:
            assert {5432, 27017, 4222} <= {port["port"] for rule in policy["egress"] for port in rule["ports"]}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_no_hook_is_there_after_an_uninstall_but_one_that_failed(file: Path) -> None:
    """`helm uninstall` knows nothing of what hooks have made."""
    hooks = {
        name: annotations["helm.sh/hook-delete-policy"].split(",")
        for name, item in objects("--values", file).items()
        if "helm.sh/hook" in (annotations := item["metadata"].get("annotations", {}))
    }
    assert {"Pod check", "ServiceAccount check", "Job approval-migrate", "ServiceAccount migrate"} <= hooks.keys()
    assert {name for name, policy in hooks.items() if policy != ["before-hook-creation", "hook-succeeded"]} == set()


def deployed_store(component: str) -> str:
    """The kind of store that a component has."""
    return str(values()["components"][component]["store"])


# On other people's clusters


EVALUATION = ("--values", CHART / "values-evaluation.yaml")
GIVEN_PASSWORDS = (*EVALUATION, "--set", "evaluation.existingSecret=passwords")
WITH_ISTIO: Json = {"istio.enabled": True}


def containers(found: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """Every container, those that only begin a pod too, with the name of the object that has it."""
    for name, pod in pod_templates(found):
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())):
            yield name, container


@pytest.mark.parametrize("more", [{}, WITH_ISTIO], ids=["without", "istio"])
def test_the_cluster_may_choose_the_user_of_every_pod(more: Json) -> None:
    names = ("runAsUser", "runAsGroup", "fsGroup", "seccompProfile")
    found = objects(*EVALUATION, values=more | {f"default.podSecurityContext.{name}": None for name in names})
    for name, pod in pod_templates(found):
        assert pod["spec"]["securityContext"] == {"runAsNonRoot": True}, name
    for name, container in containers(found):
        assert not {"runAsUser", "runAsGroup"} & container["securityContext"].keys(), name


def test_pods_may_ask_for_names_where_the_cluster_answers_them() -> None:
    found = objects(*EVALUATION, values={"networkPolicy.dnsPorts": [53, 5353]})
    policies = {name: item["spec"] for name, item in found.items() if item["kind"] == "NetworkPolicy"}
    assert len(policies) > 8
    for name, policy in policies.items():
        if policy["egress"]:
            asked = [(port["port"], port.get("protocol")) for port in policy["egress"][0]["ports"]]
            assert asked == [(53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP")], name


@pytest.mark.parametrize("more", [{}, WITH_ISTIO], ids=["without", "istio"])
def test_the_clusters_domain_stands_in_one_value(more: Json) -> None:
    text = json.dumps(objects(*EVALUATION, values=more | {"clusterDomain": "k8s.example.internal"}))
    assert "svc.cluster.local" not in text
    assert "approval.vaccination.svc.k8s.example.internal:8080" in text


@pytest.mark.parametrize("more", [{}, WITH_ISTIO], ids=["without", "istio"])
def test_where_a_quota_asks_for_limits_every_container_can_have_them(more: Json) -> None:
    found = objects(*EVALUATION, values=more | {"default.resources.limits.cpu": "1"})
    amounts = {(kind, what) for kind in ("requests", "limits") for what in ("cpu", "memory")}
    assert {name.split()[0] for name, _ in containers(found)} == {"Deployment", "StatefulSet", "Job", "Pod"}
    for name, container in containers(found):
        given = {(kind, what) for kind, some in container["resources"].items() for what in some}
        assert given == amounts, (name, container["name"])


def test_how_the_gateways_service_is_reached_is_a_value() -> None:
    service = objects()["Service gateway"]["spec"]
    assert (service["type"], service["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    given = {"type": "NodePort", "externalTrafficPolicy": "Cluster", "nodePort": 30080}
    found = objects(values={f"gateway.service.{key}": value for key, value in given.items()})["Service gateway"]["spec"]
    [port] = found["ports"]
    assert found["externalTrafficPolicy"] == "Cluster"
    assert port["nodePort"] == 30080
    inside = objects(values={"gateway.service.type": "ClusterIP"})["Service gateway"]["spec"]
    assert "externalTrafficPolicy" not in inside
    assert "nodePort" not in inside["ports"][0]


def test_pages_of_allowed_origins_may_send_each_header_that_a_call_needs() -> None:
    routes = objects(values={"gateway.cors.origins": ["https://console.example.org"]})["VirtualService gateway"]["spec"]
    policies = [route["corsPolicy"] for route in routes["http"] if "corsPolicy" in route]
    needed = {"authorization", "content-type", "service", "x-grpc-web", "x-user-agent", "grpc-timeout"}
    assert policies
    assert all(needed <= set(policy["allowHeaders"]) for policy in policies)


@pytest.mark.parametrize(
    "options",
    [(), ("--values", CHART / "values-production.yaml"), GIVEN_PASSWORDS],
    ids=["values", "production", "evaluation"],
)
def test_two_renderings_without_a_cluster_are_equal(options: tuple[str | Path, ...]) -> None:
    again = template.__wrapped__(*NEEDED, *options)
    assert again.stdout == template(*NEEDED, *options).stdout != ""


def test_given_passwords_are_read_from_their_own_secret_and_nowhere_else() -> None:
    found = objects(*GIVEN_PASSWORDS)
    assert not [name for name in found if name.startswith("Secret ")]
    for name in SERVICES:
        url = found[f"ConfigMap {name}"]["data"]["DATABASE_URL"]
        assert f"://{name}@{deployed_store(name)}.vaccination.svc.cluster.local:" in url
        for pod in (found[f"Deployment {name}"], found[f"Job {name}-migrate"]):
            assert secrets_of(pod) == {"database_password": ("passwords", name), "nats_password": ("passwords", name)}
    for store in ("postgres", "mongo", "nats"):
        volumes = found[f"StatefulSet {store}"]["spec"]["template"]["spec"]["volumes"]
        assert [v["secret"]["secretName"] for v in volumes if "secret" in v] == ["passwords"]


def secrets_of(workload: Json) -> dict[str, tuple[str, str]]:
    """The Secret and the key of each file of a pod's secrets."""
    [volume] = [v for v in workload["spec"]["template"]["spec"]["volumes"] if v["name"] == "secrets"]
    sources = [source["secret"] for source in volume["projected"]["sources"]]
    return {item["path"]: (source["name"], item["key"]) for source in sources for item in source["items"]}


def test_secrets_may_be_where_the_operators_of_the_stores_put_them() -> None:
    found = objects(
        values={
            "components.approval.secrets": {
                "database_url": {"secret": "approval-app", "key": "uri"},
                "nats_password": {"secret": "nats-users", "key": "approval"},
            },
            "components.vaccinemgmt.databaseUrl": "mongodb://dose@m-0.m:27017,m-1.m:27017/doses?replicaSet=m&tls=true",
            "components.vaccinemgmt.secrets": {"database_password": {"secret": "doses-user", "key": "password"}},
        }
    )
    wanted = {
        "approval": {"database_url": ("approval-app", "uri"), "nats_password": ("nats-users", "approval")},
        "vaccinemgmt": {
            "database_password": ("doses-user", "password"),
            "nats_password": ("vaccinemgmt", "nats_password"),
        },
        "mypage": {"database_url": ("mypage", "database_url"), "nats_password": ("mypage", "nats_password")},
    }
    for name, secrets in wanted.items():
        assert secrets_of(found[f"Deployment {name}"]) == secrets
        assert secrets_of(found[f"Job {name}-migrate"]) == secrets
    assert found["ConfigMap vaccinemgmt"]["data"]["DATABASE_URL"].startswith("mongodb://dose@m-0.m:27017,m-1.m:27017/")
    assert "DATABASE_URL" not in found["ConfigMap approval"]["data"]


NAMED = {"secret": "somewhere", "key": "else"}


@pytest.mark.parametrize(
    ("given", "evaluation", "told"),
    [
        ({"secrets": {"database_password": NAMED}}, False, "secrets.database_password: databaseUrl is needed"),
        (
            {"databaseUrl": "postgresql://a@h/a", "secrets": {"database_url": NAMED}},
            False,
            "secrets.database_url: there is databaseUrl",
        ),
        ({"secrets": {"database_url": NAMED}}, True, "secrets.database_url: with evaluation.enabled"),
    ],
    ids=["half-a-url", "two-urls", "two-stores"],
)
def test_a_secret_that_would_not_be_read_is_refused(given: Json, evaluation: bool, told: str) -> None:
    values = {f"components.approval.{key}": value for key, value in given.items()}
    options = [f"--set-json={key}={json.dumps(value)}" for key, value in values.items()]
    done = template(*NEEDED, *(EVALUATION if evaluation else ()), *options)
    assert done.returncode != 0
    assert f"components.approval.{told}" in done.stderr


def test_the_examples_of_other_clusters_are_values_of_the_chart(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "clusters.md").read_text(), flags=re.DOTALL)
    for number, example in enumerate(examples):
        (tmp_path / f"{number}.yaml").write_text(example)
    files = [option for file in sorted(tmp_path.iterdir()) for option in ("--values", file)]
    found = objects(*files)
    assert found["Deployment web"]["spec"]["template"]["spec"]["securityContext"].keys() == {
        "runAsNonRoot", "seccompProfile",
    }  # fmt: skip
    assert secrets_of(found["Deployment approval"])["database_url"] == ("approval-app", "uri")


def test_argo_cd_makes_evaluations_stores_then_migrates_and_then_starts_everything_else() -> None:
    """It takes a first sync for an upgrade too, and runs what Helm calls pre-upgrade before there is any store."""
    found = objects(*GIVEN_PASSWORDS)
    waves: dict[int, set[str]] = {}
    for name, item in found.items():
        annotations = item["metadata"].get("annotations", {})
        if annotations.get("helm.sh/hook") != "test":  # Argo CD leaves it out
            waves.setdefault(int(annotations.get("argocd.argoproj.io/sync-wave", 0)), set()).add(name)
        if "helm.sh/hook" in annotations and "test" not in annotations["helm.sh/hook"]:
            assert annotations["argocd.argoproj.io/hook"] == "Sync", name
    stores = ("postgres", "mongo", "nats")
    assert waves[-2] == {f"{kind} {s}" for kind in ("ServiceAccount", "Service", "StatefulSet") for s in stores} | {
        "Service nats-peers", "ServiceAccount migrate",
    }  # fmt: skip
    assert waves[-1] == {f"Job {name}-migrate" for name in SERVICES}
    assert waves.keys() == {-2, -1, 0}
    # Where the stores are somebody else's, migrations come before all else, by Helm's own words.
    production = objects("--values", CHART / "values-production.yaml")
    assert "argocd" not in json.dumps(production)
    assert production["Job approval-migrate"]["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"


def test_a_version_with_build_metadata_is_one_that_labels_and_images_can_have(tmp_path: Path) -> None:
    other = tmp_path / "vaccination"
    shutil.copytree(CHART, other)
    about = (CHART / "Chart.yaml").read_text()
    (other / "Chart.yaml").write_text(re.sub(r"(?m)^(version|appVersion): .*", r"\1: 1.2.3+abc.1", about))
    found = objects(*EVALUATION, chart=other)
    label = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
    for name, item in found.items():
        for value in item["metadata"].get("labels", {}).values():
            assert label.fullmatch(value), (name, value)
    images = {container["image"] for _, container in containers(found)}
    assert images == {"vaccination:1.2.3_abc.1", "vaccination-evaluation:1.2.3_abc.1"}


def test_the_version_is_one() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert chart["version"] == chart["appVersion"] == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file in FILES:
        (GOLDEN / file.name).write_text(golden(rendered(file)))
