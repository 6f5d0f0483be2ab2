"""Exchange: whom no free dose suits may be served when somebody else can do with a free one.

Doses and bookings are a bipartite graph, and who has a dose is a matching in it. An exchange is an augmenting path: the
one who waits gets a dose of a lot whose booking moves to another lot, and so on up to a lot with a free dose. While
there is such a path somebody waits in vain, and when there is none as many as possible have a dose (Berge, 1957). Along
a path nobody who has a dose loses it.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from .lot import Lot, LotId
from .vaccination import Appointment, Vaccination

Movable = Callable[[Lot, Lot], Awaitable[Vaccination | None]]
"""A booking with a dose of the first lot that one of the second would suit as well, if there is any that may move."""


@dataclass(frozen=True, slots=True)
class Move:
    """A booking that moves from one lot to another."""

    vaccination: Vaccination
    source: Lot
    target: Lot


class Exchange:
    """The shortest ways from a hospital's lots to a free dose."""

    def __init__(self, lots: Sequence[Lot], moves: dict[LotId, Move]) -> None:
        self._lots, self._moves = lots, moves

    @classmethod
    async def among(cls, lots: Iterable[Lot], movable: Movable) -> "Exchange":
        """Looks from the free doses backwards, breadth first."""
        shelf = sorted(lots, key=lambda lot: (lot.expiry_date, lot.lot_id))
        reached, moves = [lot for lot in shelf if lot.free], dict[LotId, Move]()
        full = [lot for lot in shelf if not lot.free and lot.balance.reserved]
        for target in reached:  # it grows meanwhile
            for source in list(full):
                if _may_share(source, target) and (one := await movable(source, target)):
                    moves[source.lot_id] = Move(one, source, target)
                    full.remove(source)
                    reached.append(source)
        return cls(reached, moves)

    @property
    def lots(self) -> Sequence[Lot]:
        """Lots of which a dose is free, or can become free; the shortest way first."""
        return self._lots

    def lot_for(self, appointment: Appointment) -> Lot | None:
        """The lot of which the appointment can get a dose: a free one that expires first, else by fewest moves."""
        return next((lot for lot in self._lots if appointment.accepts(lot)), None)

    def make_room(self, lot: Lot, now: datetime) -> list[Vaccination]:
        """Moves bookings so that the lot has a free dose; returns those that moved. After it, look anew."""
        moves = []
        while lot.free == 0:
            moves.append(self._moves[lot.lot_id])
            lot = moves[-1].target
        for move in reversed(moves):
            move.vaccination.exchange(move.target, move.source, now)
        return [move.vaccination for move in moves]


def _may_share(source: Lot, target: Lot) -> bool:
    """Whether a booking on one may be suited by the other: spares the store a question."""
    return max(source.production_date, target.production_date) <= min(source.expiry_date, target.expiry_date)
