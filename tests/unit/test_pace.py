"""Batches follow each other at once while there is little to do, and at intervals under load."""

import asyncio

import pytest

from services.chassis.pace import BUSY, GROWTH, Pace

SHORTEST, LONGEST, ENOUGH = 0.1, 0.3, 100


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def under(rate: float, clock: Clock) -> Pace:
    """A pace that has seen so many items a second, one by one, for some time."""
    pace = Pace(SHORTEST, LONGEST, ENOUGH, clock)
    for _ in range(round(5 * rate)):
        clock.now += 1 / rate
        pace.begin(1)
    return pace


def test_who_comes_alone_waits_for_nobody() -> None:
    clock = Clock()
    pace = Pace(SHORTEST, LONGEST, ENOUGH, clock)
    assert pace.pause() == 0
    for _ in range(3):  # a booking's events
        pace.begin(1)
        clock.now += 0.001
        assert pace.pause() == 0


@pytest.mark.parametrize("items", [1, 3])
async def test_one_who_calls_again_and_again_hardly_waits(monkeypatch: pytest.MonkeyPatch, items: int) -> None:
    clock, calls, seconds, each = Clock(), 0, 20.0, 0.01

    async def sleep(some: float) -> None:
        clock.now += some

    monkeypatch.setattr(asyncio, "sleep", sleep)
    pace, end = Pace(SHORTEST, LONGEST, ENOUGH, clock), clock.now + seconds
    while clock.now < end:
        await pace.gather(lambda: items)
        pace.begin(items)
        clock.now += each
        calls += 1
    assert calls > seconds / each / 2


def test_a_few_a_second_do_not_wait_for_each_other() -> None:
    assert under(0.9 * BUSY, Clock()).pause() == 0


@pytest.mark.parametrize(
    ("rate", "interval"), [(1.3 * BUSY, SHORTEST), (0.2 / GROWTH, 0.2), (2 * LONGEST / GROWTH, LONGEST)]
)
def test_under_load_a_batch_waits_for_the_rest_of_an_interval_that_grows_with_it(rate: float, interval: float) -> None:
    clock = Clock()
    pace = under(rate, clock)
    assert pace.pause() == pytest.approx(interval, rel=0.02)
    clock.now += interval / 2
    assert interval / 4 < pace.pause() < interval / 2 + 1e-9
    clock.now += interval / 2
    assert pace.pause() < 1e-9


def test_when_the_load_is_over_nobody_waits_any_more() -> None:
    clock = Clock()
    pace = under(200, clock)
    clock.now += 5.0
    pace.begin(1)
    clock.now += 0.001
    assert pace.pause() == 0


async def test_enough_items_do_not_wait_for_more() -> None:
    clock = Clock()
    pace = under(1000, clock)  # its time never comes: the clock stands still
    waiting = iter([0, ENOUGH - 1, ENOUGH])
    await pace.gather(lambda: next(waiting))
    assert next(waiting, None) is None
