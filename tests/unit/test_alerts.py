"""Alerts fire when they should and lead to a runbook that says what to do; dashboards ask valid questions."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh import ROOT

ALERTS = ROOT / "helm/vaccination/files/alerts.yaml"
DASHBOARDS = sorted((ROOT / "helm/vaccination/files/dashboards").glob("*.json"))
RULE_TESTS = Path(__file__).with_name("alerts.yaml")
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]


def promtool(*arguments: str | Path) -> None:
    """Runs promtool; fails with its output."""
    if shutil.which("promtool") is None:
        pytest.fail("promtool is not there: ./dev test fetches it, or install Prometheus")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_every_rule() -> None:
    promtool("check", "rules", ALERTS)


def test_each_alert_fires_on_its_condition_and_not_in_health() -> None:
    promtool("test", "rules", RULE_TESTS)


def test_every_alert_has_such_a_test() -> None:
    fired, silent = set(), set()
    for case in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for expected in case["alert_rule_test"]:
            alerts = expected.get("exp_alerts") or []
            fired |= {(expected["alertname"], alert["exp_labels"]["severity"]) for alert in alerts}
            if not alerts:
                silent.add(expected["alertname"])
    assert fired == {(rule["alert"], rule["labels"]["severity"]) for rule in RULES}
    assert silent == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_an_alert_tells_its_severity_its_meaning_and_its_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    about = rule["annotations"]
    assert about["summary"]
    assert about["description"]
    name = re.sub(r"(?<!^)([A-Z])", r"-\1", rule["alert"]).lower()
    assert about["runbook_url"] == f"docs/runbooks/{name}.md"
    assert f"({name}.md)" in (ROOT / "docs/runbooks/README.md").read_text()
    assert (ROOT / about["runbook_url"]).exists()


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_of_a_dashboard_is_valid_promql(dashboard: Path, tmp_path: Path) -> None:
    panels = json.loads(dashboard.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert expressions
    rules = [{"record": f"panel:{i}", "expr": e.replace("$__rate_interval", "5m")} for i, e in enumerate(expressions)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yaml")
