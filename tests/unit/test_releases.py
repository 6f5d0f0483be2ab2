"""A released version that is kept can run beside the present code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mesh.machine.home import SERVICES
from tests.releases import FOLDER, extract

VERSIONS = [file.name.removesuffix(".tar.xz") for file in FOLDER.glob("*.tar.xz")]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_kept_release_has_its_own_chart_and_services_that_start(version: str, tmp_path: Path) -> None:
    release = extract(version, tmp_path / "release")
    chart = yaml.safe_load((release / "helm" / "vaccination" / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(release), "PYTHONDONTWRITEBYTECODE": "1"}
    for service in SERVICES:
        # It starts as far as its settings, which are missing.
        started = subprocess.run([sys.executable, "-P", "-m", f"services.{service}"], env=env, check=False)
        assert started.returncode == 2
    for module in ("services.chassis.server", "mesh.gateway", "vaccination.approval.v1.approval_service_pb2"):
        where = f"import {module}; print({module}.__file__)"
        file = subprocess.check_output([sys.executable, "-P", "-c", where], env=env, text=True).strip()
        assert Path(file).is_relative_to(release)
