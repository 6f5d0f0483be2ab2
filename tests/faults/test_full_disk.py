"""A full disk, of one store or of all, loses nothing and ends with the runbook's one command."""

import tempfile
from pathlib import Path

import pytest

from .studies import Options, full_disks


@pytest.mark.slow
async def test_after_a_full_disk_the_accounts_are_equal_and_all_flows_again_with_the_runbooks_command() -> None:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        report = await full_disks(Path(folder), Options(rounds=1))
    assert not report.violations
