"""What the image and the tests are made of."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def locked(name: str) -> set[str]:
    """The lock's requirements and hashes, each with what it belongs to."""
    return set((ROOT / name).read_text().replace(" \\\n", "").splitlines())


@pytest.mark.parametrize("part", ["requirements.txt", "requirements-contracts.txt", "requirements-servers.txt"])
def test_the_image_has_what_the_tests_run_with(part: str) -> None:
    assert locked(part) - locked("requirements-dev.txt") == set()
