"""`python -m tests.faults [--seed N ...] [--minutes M]`: long runs, one after the other, and their accounts."""

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from .run import Plan, play


def main() -> int:
    """Returns the exit code: 1 if anything was violated."""
    parser = argparse.ArgumentParser("faults", description=__doc__)
    parser.add_argument("--seed", type=int, nargs="*", help="to replay; else five random ones")
    parser.add_argument("--minutes", type=float, default=20, help="in all, shared by the seeds")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--customers", type=int, default=24)
    parser.add_argument("--mutation", help="a rule to break on purpose, see launcher.MUTATIONS")
    arguments = parser.parse_args()
    seeds = arguments.seed or [random.SystemRandom().randrange(10**6) for _ in range(5)]
    violated = 0
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            plan = Plan(
                seed=seed,
                seconds=60 * arguments.minutes / len(seeds),
                replicas=arguments.replicas,
                customers=arguments.customers,
                mutation=arguments.mutation,
            )
            report = asyncio.run(play(plan, Path(folder)))
        sys.stdout.write(f"{report}\n")
        sys.stdout.flush()
        violated += len(report.violations)
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
