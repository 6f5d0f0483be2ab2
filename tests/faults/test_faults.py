"""Short attacks with fixed seeds; `./dev faults` runs long ones."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .checks import INTERNAL
from .run import UNREST, Plan, Report, play


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not in pytest's folder: another session that begins would take away the way in there of Postgres' user."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        yield Path(name)


def found(report: Report) -> list[str]:
    """What a broken rule does to the books: that a call fails, or that there is no rest, can have other reasons."""
    return [violation for violation in report.violations if not violation.startswith((UNREST, INTERNAL))]


def shown(report: Report) -> Report:
    """The account, in the test's output."""
    print(report)
    return report


@pytest.mark.parametrize(("seed", "replicated"), [(1, False), pytest.param(2, True, marks=pytest.mark.slow)])
async def test_no_fault_overbooks_loses_or_doubles_anything(folder: Path, seed: int, replicated: bool) -> None:
    report = shown(await play(Plan(seed=seed, seconds=25, least=3, replicated=replicated), folder))
    assert not report.violations
    assert sum(report.faults.values()) >= 3


@pytest.mark.parametrize("seed", [2])
async def test_a_version_that_is_rolled_out_and_back_under_faults_loses_nothing(folder: Path, seed: int) -> None:
    faults = ("kill", "crash", "stop_service", "cut_alone", "duplicate")
    report = shown(await play(Plan(seed=seed, seconds=20, change=True, faults=faults, least=3), folder))
    assert not report.violations


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutation", "faults"),
    [
        ("validate-at-reader", ()),
        ("widen-late", ()),
        ("no-parking", ()),
        ("in-progress-for-ever", ("cut_alone",)),
    ],
)
async def test_a_broken_rule_of_change_is_found(folder: Path, mutation: str, faults: tuple[str, ...]) -> None:
    plan = Plan(
        seed=3, seconds=20, mutation=mutation, change=not faults, pause=0.3 if faults else 0, faults=faults,
        least=len(faults), settle=20,
    )  # fmt: skip
    report = shown(await play(plan, folder))
    assert found(report)


@pytest.mark.parametrize(
    ("mutation", "faults"),
    [
        ("publish-before-commit", ("crash_mutant",)),
        ("ack-before-commit", ("crash_mutant",)),
        ("not-idempotent", ("duplicate",)),
        ("read-then-write", ()),
    ],
)
async def test_a_broken_rule_is_found(folder: Path, mutation: str, faults: tuple[str, ...]) -> None:
    pause, least = (0.3, 5) if faults else (0, 0)
    # Who repeats a call mends what a broken rule left behind: here nobody does.
    plan = Plan(seed=3, seconds=12, mutation=mutation, pause=pause, faults=faults, settle=15, least=least, tries=1)
    report = shown(await play(plan, folder))
    assert found(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutation",
    ["recall-forgets", "gives-back-what-was-given", "moves-keep-the-old-place", "ledger-forgets-returns"],
)
async def test_a_broken_rule_of_the_dose_is_found(folder: Path, mutation: str) -> None:
    report = shown(await play(Plan(seed=3, seconds=30, mutation=mutation, pause=0, settle=20, tries=5), folder))
    assert found(report)
