"""What `./dev` says before it begins, and when it cannot."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mesh.__main__ import main

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


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", ["release", "web", "gen"])
def test_who_asks_for_help_gets_it_and_nothing_is_made(tmp_path: Path, command: str, option: str) -> None:
    (tmp_path / "uname").symlink_to("/bin/false")  # so that whatever is more than help would fail
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", ROOT / "dev", command, option], env=env, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"./dev {command}" in done.stdout


@pytest.mark.parametrize("seconds", ["inf", "nan", "-inf", "0", "-5", "soon"])
def test_a_token_expires_in_a_positive_number_of_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    monkeypatch.setattr("sys.argv", ["mesh", "token", "--role", "operator", f"--expires-in={seconds}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "argument --expires-in: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"), [(None, "error: there is no mesh in "), ("[", "JSONDecodeError"), ("[]", "AttributeError")]
)
def test_an_import_that_cannot_begin_does_not_exit_as_one_with_a_row_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: str | None, said: str
) -> None:
    if settings:
        (tmp_path / "mesh.json").write_text(settings)
    for command, code in ((["import", "."], 2), (["status"], 1)):
        monkeypatch.setattr("sys.argv", ["mesh", *command, "--home", str(tmp_path)])
        assert main() == code
        assert said in capsys.readouterr().err
