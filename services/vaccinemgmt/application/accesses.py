"""Who of the staff has read whose data."""

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from .ports import Clock


@dataclass(frozen=True, slots=True)
class Access:
    """Somebody of the staff read personal data.

    `by` is the subject of the token, `about` what was asked for: a day, a reservation id or a customer's id.
    """

    access_id: str
    at: datetime
    by: str
    role: str
    hospital_id: str
    call: str
    about: str


class AccessRecord(Protocol):
    """Where accesses are kept."""

    async def add(self, access: Access) -> None:
        """Writes one."""

    async def page(self, hospital_id: str, after: tuple[datetime, str] | None, limit: int) -> Sequence[Access]:
        """Reads a hospital's, newest first, behind a position."""

    async def rename(self, customer_id: str, pseudonym: str) -> None:
        """Puts another name in the place of a customer's id."""


class Accesses:
    """The record of accesses to personal data."""

    def __init__(self, kept: AccessRecord, clock: Clock) -> None:
        self._kept, self._clock = kept, clock

    async def record(self, by: str, role: str, hospital_id: str, call: str, about: str) -> None:
        """Records an access before the answer is given: what cannot be recorded is not shown."""
        await self._kept.add(Access(str(uuid.uuid4()), self._clock(), by, role, hospital_id, call, about))

    async def page(self, hospital_id: str, after: tuple[datetime, str] | None, limit: int) -> Sequence[Access]:
        """A hospital's accesses, newest first."""
        return await self._kept.page(hospital_id, after, limit)

    async def erase(self, customer_id: str, rest: Callable[[str], Awaitable[int | None]]) -> int | None:
        """Erases the person by `rest`, unless that says None, and then puts nobody's name in the place of the id here.

        It remains that somebody was asked for.
        """
        erased = await rest(customer_id)
        if erased is not None:
            await self._kept.rename(customer_id, f"erased-{uuid.uuid4()}")
        return erased
