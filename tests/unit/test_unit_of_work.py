"""Use cases are repeated after a lost race, and only so often. No servers."""

import pytest

from services.chassis import unit_of_work
from services.chassis.unit_of_work import TRIES, LostRace, StoreUnavailable, repeated_after_lost_race


class UseCase:
    """Loses as many races as the test says."""

    def __init__(self, losses: int, error: Exception | None = None) -> None:
        self.losses, self.error, self.tries = losses, error or LostRace("another one was faster"), 0

    @repeated_after_lost_race
    async def decide(self, answer: str) -> str:
        self.tries += 1
        if self.tries <= self.losses:
            raise self.error
        return answer


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_of_work, "LONGEST_PAUSE", 0.0)


@pytest.mark.parametrize("losses", [0, 1, TRIES - 1])
async def test_a_use_case_that_lost_a_race_begins_again_and_gets_an_answer(losses: int) -> None:
    use_case = UseCase(losses)
    assert await use_case.decide("yes") == "yes"
    assert use_case.tries == losses + 1


async def test_the_caller_of_a_use_case_that_loses_every_race_is_told_to_repeat_the_call() -> None:
    use_case = UseCase(TRIES)
    with pytest.raises(StoreUnavailable, match="repeat the call") as end:
        await use_case.decide("yes")
    assert type(end.value) is StoreUnavailable
    assert use_case.tries == TRIES


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ValueError("a bug")])
async def test_a_use_case_with_any_other_error_is_not_repeated(error: Exception) -> None:
    use_case = UseCase(1, error)
    with pytest.raises(type(error)):
        await use_case.decide("yes")
    assert use_case.tries == 1
