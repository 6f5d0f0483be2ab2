"""Renders the chart with `helm template`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mesh import CHART
from mesh.machine.processes import MeshError

NAMESPACE = "vaccination"


def render(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chart's objects with these values. MeshError has Helm's own words if it refuses them."""
    # The wheel's, which stands beside this interpreter, or the machine's own where there is no wheel.
    helm = shutil.which("helm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if helm is None:
        raise MeshError("needs Helm: run ./dev, or put it on the PATH")
    command: list[str | Path] = [helm, "template", "vaccination", CHART, "--namespace", NAMESPACE, "--values", "-"]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True)
    if done.returncode != 0:
        raise MeshError(f"the chart does not render: {done.stderr.strip()}")
    # The loader without libyaml takes a second for this.
    objects = [item for item in yaml.load_all(done.stdout, yaml.CSafeLoader) if item]
    for item in objects:
        item["metadata"].setdefault("namespace", NAMESPACE)
    return objects
