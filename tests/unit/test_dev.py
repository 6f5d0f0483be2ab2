"""What `./dev` says before it begins."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def dev(programs: Path, system: str, machine: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Runs ./dev on a machine that calls itself so; on the PATH are `programs`, and then `path`."""
    uname = programs / "uname"
    uname.write_text(f'#!/bin/sh\n[ "$1" = -s ] && echo {system} || echo {machine}\n')
    uname.chmod(0o755)
    env = os.environ | {"PATH": f"{programs}{path}"}
    return subprocess.run(
        [shutil.which("bash") or "bash", ROOT / "dev", "jwks", "--help"], env=env, text=True, capture_output=True
    )


@pytest.mark.parametrize(
    ("system", "machine", "told"),
    [
        ("Darwin", "arm64", "MongoDB and Helm have no wheel for a Mac"),
        ("Linux", "aarch64", "Helm has no wheel for Linux on aarch64"),
        ("Linux", "riscv64", "MongoDB, Envoy and Helm have no wheel for Linux on riscv64"),
    ],
)
def test_a_machine_without_the_wheels_is_told_which_and_what_to_do(
    tmp_path: Path, system: str, machine: str, told: str
) -> None:
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "")
    done = dev(tmp_path, system, machine)
    assert (done.returncode, done.stdout) == (1, "")
    [sentence] = done.stderr.splitlines()
    assert sentence.startswith(f"dev: {told}")
    assert "please" in sentence


def test_linux_on_arm_works_with_a_helm_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "helm").symlink_to("/bin/true")
    done = dev(tmp_path, "Linux", "aarch64", f":{os.environ['PATH']}")
    assert (done.returncode, done.stderr) == (0, "")
