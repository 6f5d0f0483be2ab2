"""Starts a service that can be told to fail. The process reads how to fail from the file TROUBLE/<component>.

usage: -m tests.e2e.troubled COMPONENT services.NAME

`flaky 0.3`: this share of approval's decisions ends with UNAVAILABLE, half of them after the commit.
`slow`: decisions wait until the file is gone.
"""

import asyncio
import os
import random
import runpy
import sys
from pathlib import Path
from typing import Any


def main(component: str, service: str) -> None:
    from services.approval.application import Approval
    from services.chassis.errors import StoreUnavailable

    file, dice = Path(os.environ["TROUBLE"]) / component, random.Random(component)
    decide = Approval.decide

    def ails() -> str:
        return file.read_text() if file.exists() else ""

    async def troubled(self: Any, *args: Any) -> Any:
        while ails() == "slow":  # noqa: ASYNC110 - another process ends it
            await asyncio.sleep(0.01)
        unlucky = ails().startswith("flaky") and dice.random() < float(ails().split()[1])
        if unlucky and dice.random() < 0.5:
            raise StoreUnavailable("away before the commit")
        answers = await decide(self, *args)
        if unlucky:
            raise StoreUnavailable("away after the commit")
        return answers

    Approval.decide = troubled  # type: ignore[method-assign,assignment]
    runpy.run_module(service, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    component, service = sys.argv[1:3]
    del sys.argv[1:3]
    main(component, service)
