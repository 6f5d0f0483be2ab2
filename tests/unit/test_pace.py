"""Batches follow each other at once while there is little to do, and at intervals under load."""

from services.chassis.pace import BUSY, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_who_comes_alone_waits_for_nobody() -> None:
    clock = Clock()
    pace = Pace(0.01, clock)
    assert pace.pause() == 0
    for _ in range(3):  # a booking's events
        pace.begin(1)
        clock.now += 0.001
        assert pace.pause() == 0


def test_under_load_a_batch_waits_for_the_rest_of_the_interval() -> None:
    clock = Clock()
    pace = Pace(0.01, clock)
    pace.begin(round(2 * BUSY))
    clock.now += 0.004
    assert abs(pace.pause() - 0.006) < 1e-9
    clock.now += 0.006
    assert pace.pause() < 1e-9


def test_when_the_load_is_over_nobody_waits_any_more() -> None:
    clock = Clock()
    pace = Pace(0.01, clock)
    pace.begin(round(2 * BUSY))
    clock.now += 1.0
    pace.begin(1)
    clock.now += 0.001
    assert pace.pause() == 0


def test_a_hundred_items_a_second_one_by_one_are_a_load() -> None:
    clock = Clock()
    pace = Pace(0.01, clock)
    for _ in range(200):
        pace.begin(1)
        clock.now += 0.005
    assert pace.pause() > 0
