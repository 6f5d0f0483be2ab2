"""What the README tells people to type works as it stands."""

import os
import re
import shutil
import subprocess

import pytest

from mesh import ROOT
from mesh.machine import Mesh


@pytest.mark.parametrize(
    ("file", "section", "lot"),
    [
        ("README.md", "## Calling it", '"lot_number": "MP-P26B7"'),
        ("README.ko.md", "## 호출하기", '"lotNumber":"MP-P26B7"'),
    ],
    ids=["English", "Korean"],
)
def test_the_commands_of_the_readme_work_in_their_order(mesh: Mesh, file: str, section: str, lot: str) -> None:
    if shutil.which("curl") is None:
        pytest.fail("the README's reader has curl: install it")
    calling = (ROOT / file).read_text().split(section)[1].split("\n## ")[0]
    script = "\n".join(re.findall(r"```sh\n(.*?)```", calling, flags=re.DOTALL))
    assert "GATEWAY=127.0.0.1:18080" in script
    script = script.replace("127.0.0.1:18080", mesh.gateway)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=os.environ | {"MESH_HOME": str(mesh.home.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RESERVATION_STATUS_APPROVED" in done.stdout
    assert lot in done.stdout
