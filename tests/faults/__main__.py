"""`python -m tests.faults [--seed N ...] [--minutes M]`: long runs, one after the other, and their accounts.

`python -m tests.faults study NAME`: what a fault costs, in figures, see studies.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from .run import Plan, Report, play
from .studies import STUDIES, Options


def main() -> int:
    """Returns the exit code: 1 if anything was violated."""
    parser = argparse.ArgumentParser("faults", description=__doc__)
    parser.add_argument("--seed", type=int, nargs="*", help="to replay; else five random ones")
    parser.add_argument("--minutes", type=float, default=20, help="in all, shared by the seeds")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--customers", type=int, default=24)
    parser.add_argument("--replicated", action="store_true", help="stores of several servers, of which some die")
    parser.add_argument("--change", action="store_true", help="the next version is rolled out, half way, and back")
    parser.add_argument("--mutation", help="a rule to break on purpose, see launcher.MUTATIONS")
    study = parser.add_subparsers(dest="command").add_parser("study", help="measures what a fault costs")
    study.add_argument("name", choices=STUDIES)
    for option, default in vars(Options()).items():
        study.add_argument(f"--{option}", type=type(default), default=default)
    arguments = parser.parse_args()
    return _study(arguments) if arguments.command else _runs(arguments)


def _runs(arguments: argparse.Namespace) -> int:
    seeds = arguments.seed or [random.SystemRandom().randrange(10**6) for _ in range(5)]
    violated = 0
    for seed in seeds:
        plan = Plan(
            seed=seed,
            seconds=60 * arguments.minutes / len(seeds),
            replicas=arguments.replicas,
            customers=arguments.customers,
            mutation=arguments.mutation,
            replicated=arguments.replicated,
            change=arguments.change,
        )
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            report = asyncio.run(play(plan, Path(folder)))
        print(report, flush=True)
        violated += len(report.violations)
    return 1 if violated else 0


def _study(arguments: argparse.Namespace) -> int:
    options = Options(**{name: getattr(arguments, name) for name in vars(Options())})

    async def run(folder: Path) -> Report:
        return await STUDIES[arguments.name](folder, options)

    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        report = asyncio.run(run(Path(folder)))
    for violation in report.violations:
        print(f"VIOLATION {violation}", flush=True)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
