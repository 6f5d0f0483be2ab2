"""The chart renders what was agreed on, refuses what it does not know, and is true to the services that it installs.

`python -m tests.unit.test_chart` writes helm/golden/ anew: look at the difference before you commit it.
"""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh import CHART, ROOT
from mesh.machine.home import SERVICES

GOLDEN = ROOT / "helm" / "golden"
FILES = sorted(CHART.glob("values*.yaml"))
# What has no default that would do anywhere.
NEEDED = ("--set", "auth.jwks=JWKS")
SERVICERS = {
    "vaccination.approval.v1.HospitalService": ("services.approval.adapters.grpc", "HospitalServicer"),
    "vaccination.reservation.v1.ReservationService": ("services.reservation.adapters.grpc", "ReservationServicer"),
    "vaccination.vaccinemgmt.v1.VaccinemgmtService": ("services.vaccinemgmt.adapters.grpc", "VaccinemgmtServicer"),
    "vaccination.mypage.v1.MypageService": ("services.mypage.server", "MypageServicer"),
    "vaccination.mypage.v1.ViewService": ("services.mypage.rebuild", "ViewServicer"),
}


def template(*options: str | Path, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    helm = Path(sys.executable).parent / "helm"
    command = [helm, "template", "vaccination", chart, "--namespace", "vaccination", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rendered(file: Path, *options: str) -> str:
    done = template("--values", file, "--api-versions", "monitoring.coreos.com/v1", *NEEDED, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def golden(text: str) -> str:
    """Without what is of chance, and without what is long and in files of its own."""
    text = re.sub(r"(?<=:)( *\"?)[A-Za-z0-9]{24}(?=\"?$|@)", r"\1PASSWORD", text, flags=re.M)
    text = re.sub(r"(://[a-z]+:)[A-Za-z0-9]{24}@", r"\1PASSWORD@", text)
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
def test_what_is_rendered_is_what_was_agreed_on(file: Path) -> None:
    assert golden(rendered(file)) == (GOLDEN / file.name).read_text(), "if it should be so: see this file's head"


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
        ("components.approval.env.log-level=INFO", "components.approval.env"),
    ],
)
def test_a_slip_in_the_values_is_refused_by_its_path(setting: str, path: str) -> None:
    done = template(*NEEDED, "--set", setting)
    assert done.returncode != 0
    assert path in done.stderr


def test_nothing_is_installed_without_the_keys_of_those_who_sign_tokens() -> None:
    done = template()
    assert done.returncode != 0
    assert "auth.jwksUri" in done.stderr


def test_every_public_rpc_is_for_the_roles_that_its_servicer_admits() -> None:
    public = {service: rpcs for c in values()["components"].values() for service, rpcs in c.get("public", {}).items()}
    assert public.keys() == SERVICERS.keys()
    for service, (module, name) in SERVICERS.items():
        servicer = getattr(importlib.import_module(module), name)
        admitted = {rpc: m.allowed_roles for rpc, m in vars(servicer).items() if hasattr(m, "allowed_roles")}
        assert {rpc: set(roles) for rpc, roles in public[service].items()} == admitted


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_who_calls_waits_longer_than_whom_he_calls_and_tries_fit(file: Path) -> None:
    found = values(file)
    budget = {name: seconds(value) for name, value in found["budget"].items()}
    pause = seconds(found["retries"]["pause"])
    assert budget["gateway"] > budget["reservation"] > budget["approval"]
    assert 2 * budget["approvalTry"] + pause <= budget["approval"]
    assert 2 * budget["gatewayTry"] + pause <= budget["gateway"]
    assert seconds(found["gateway"]["limits"]["drain"]) > budget["gateway"]
    life = {name: seconds(value) for name, value in found["lifecycle"].items()}
    # The chassis gives calls half of it after the drain; then connections have 5 s to close, and traces 2.
    assert life["drain"] + life["shutdown"] / 2 < life["shutdown"]
    assert life["shutdown"] + 7 < life["grace"]
    assert life["shutdown"] / 2 > budget["gateway"]


def test_the_components_are_the_services() -> None:
    assert set(values()["components"]) == set(SERVICES)


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


def test_the_version_is_one() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert chart["version"] == chart["appVersion"] == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file in FILES:
        (GOLDEN / file.name).write_text(golden(rendered(file)))
