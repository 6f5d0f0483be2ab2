"""The images and the tests have the same packages, and a release lists them."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def locked(name: str) -> set[str]:
    """The lines of a lock file, each of them a requirement with its hashes."""
    return set((ROOT / name).read_text().replace(" \\\n", "").splitlines())


@pytest.mark.parametrize("part", ["requirements.txt", "requirements-contracts.txt", "requirements-servers.txt"])
def test_the_image_has_what_the_tests_run_with(part: str) -> None:
    assert locked(part) - locked("requirements-dev.txt") == set()


def test_a_release_is_a_chart_and_a_list_of_what_is_in_each_image(tmp_path: Path) -> None:
    subprocess.run([ROOT / "dev", "release", tmp_path], cwd=ROOT, check=True, capture_output=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (tmp_path / f"vaccination-{version}.tgz").stat().st_size
    for image, lock in (("services", "requirements.txt"), ("evaluation", "requirements-servers.txt")):
        sbom = json.loads((tmp_path / f"vaccination-{version}-{image}.cdx.json").read_text())
        assert sbom["metadata"]["component"]["version"] == version
        listed = {f"{component['name']}=={component['version']}" for component in sbom["components"]}
        assert listed == {line.split()[0] for line in locked(lock)}
