"""Batches follow each other at once while there is little to do, and the later the more there is to do."""

import pytest

from services.chassis.pace import CALM, ENOUGH, GROWTH, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def under(rate: float, clock: Clock, longest: float = 10.0) -> Pace:
    """A pace that has seen so many items a second, one by one, for some time."""
    pace = Pace(longest, clock)
    for _ in range(round(5 * rate)):
        clock.now += 1 / rate
        pace.begin(1)
    return pace


def test_who_comes_alone_waits_for_nobody() -> None:
    clock = Clock()
    pace = Pace(0.1, clock)
    assert pace.pause() == 0
    for _ in range(3):  # a booking's events
        pace.begin(1)
        clock.now += 0.001
        assert pace.pause() == 0


def test_up_to_some_dozens_a_second_nobody_waits() -> None:
    assert under(0.9 * CALM, Clock()).pause() == 0


@pytest.mark.parametrize("rate", [100, 200])
def test_the_more_come_the_longer_they_gather(rate: int) -> None:
    clock = Clock()
    pace = under(rate, clock)
    interval = rate * GROWTH
    assert pace.pause() == pytest.approx(interval, rel=0.05)
    clock.now += interval / 2
    assert pace.pause() == pytest.approx(interval / 2, rel=0.25)
    clock.now += interval / 2
    assert pace.pause() < 0.05 * interval


def test_nobody_waits_longer_than_the_longest_interval() -> None:
    assert under(1000, Clock(), longest=0.1).pause() == pytest.approx(0.1)


def test_when_the_load_is_over_nobody_waits_any_more() -> None:
    clock = Clock()
    pace = under(200, clock)
    clock.now += 2.0
    pace.begin(1)
    clock.now += 0.001
    assert pace.pause() == 0


async def test_enough_items_do_not_wait_for_more() -> None:
    clock = Clock()
    pace = under(1000, clock)  # its time never comes: the clock stands still
    waiting = iter([0, ENOUGH - 1, ENOUGH])
    await pace.gather(lambda: next(waiting))
    assert next(waiting, None) is None
