"""The workflows of GitHub Actions do no more than they must, and Argo CD's Application fits the chart.

With Go, `./dev test -e clients` also asks actionlint, and the schema of Applications.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh import CHART, ROOT
from tests.unit.test_chart import template, values

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


def read(file: Path) -> dict[str, Any]:
    return yaml.load(file.read_text(), yaml.BaseLoader)  # type: ignore[no-any-return]  # in YAML 1.1 `on` is a boolean


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_is_pinned_and_bounded_and_may_only_read_unless_a_job_says_more(file: Path) -> None:
    workflow = read(file)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert "concurrency" in workflow
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job or job["uses"].startswith("./.github/"), name
    used = re.findall(r"uses: (.+)", file.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"\./\.github/\S+|[\w/-]+@[0-9a-f]{40} # v[\d.]+", action), f"{action} is not pinned"


def test_only_a_tag_releases_and_only_after_the_tests() -> None:
    release = read(ROOT / ".github" / "workflows" / "release.yaml")
    assert release["on"] == {"push": {"tags": ["v*"]}}
    writers = {name for name, job in release["jobs"].items() if "write" in job["permissions"].values()}
    assert writers == {"publish"}
    assert "test" in release["jobs"]["publish"]["needs"]


def test_what_may_write_a_release_runs_none_of_the_packages_that_make_its_files() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "release.yaml")["jobs"]
    made_here = {name for name, job in jobs.items() if "./dev " in str(job) or ".venv" in str(job)}
    assert {name: jobs[name]["permissions"] for name in made_here} == {"files": {"contents": "read"}}
    assert set(jobs["publish"]["needs"]) == {"test", "files"}


@pytest.mark.parametrize("file", ["README.md", "helm/argo-cd.yaml", "helm/vaccination/values-production.yaml"])
def test_the_secrets_that_productions_values_name_are_said_to_be_needed_before(file: str) -> None:
    production = values(CHART / "values-production.yaml")
    text = (ROOT / file).read_text()
    said = text if file.endswith(".md") else "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for secret in (production["trust"]["existingSecret"], production["gateway"]["tlsSecret"]):
        assert secret in said


def test_argo_cds_application_installs_this_chart_and_names_all_that_is_to_be_replaced(tmp_path: Path) -> None:
    text = (ROOT / "helm" / "argo-cd.yaml").read_text()
    source = yaml.safe_load(text)["spec"]["source"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (source["chart"], source["targetRevision"]) == (chart["name"], chart["version"])
    mine = yaml.safe_load(text.replace("example.org", "clinic.test"))["spec"]["source"]["helm"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine["valuesObject"]))
    files = [CHART / name for name in mine["valueFiles"]] + [tmp_path / "mine.yaml"]
    rendered = template(*(f"--values={file}" for file in files))
    assert rendered.returncode == 0, rendered.stderr
    assert "clinic.test" in rendered.stdout
    assert "example.org" not in rendered.stdout
