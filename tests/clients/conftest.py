"""The mesh and its people, as the end-to-end tests have them."""

import shutil

import pytest

from tests.e2e.conftest import world

__all__ = ["world"]


@pytest.fixture(scope="session", autouse=True)
def _toolchains() -> None:
    if missing := [tool for tool in ("go", "npm") if shutil.which(tool) is None]:
        pytest.fail(f"needs {' and '.join(missing)}: Go 1.26 or later, Node 22 or later")
