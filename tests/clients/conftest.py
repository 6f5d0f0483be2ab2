"""The mesh and its people, as the end-to-end tests have them."""

from tests.e2e.conftest import world

__all__ = ["world"]
