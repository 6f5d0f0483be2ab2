"""The next version of the services, made of this one: what it adds is what a version beside it can notice.

| added       | who writes it                                | who takes it                                        |
|-------------|----------------------------------------------|-----------------------------------------------------|
| an event    | vaccine management, after each cancellation  | reservation and mypage; the version before parks it |
| a status    | reservation, when the event comes            | mypage, by the same event                           |
| a reason    | approval, for half of those who find no place| reservation and mypage, as they are                 |
| a wider text| approval, in the hospital's name             | everybody, passed on as it came                     |

The event's message class is made here, since this version's contracts do not have it.
"""

from dataclasses import replace
from importlib import import_module
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

CLOSED = 60
"""The status behind all others: nothing is left to do."""
FULL_FOR_GOOD = 40
"""A reason that this version has no name for."""
EVENT = "vaccination.vaccinemgmt.v1.ReservationClosed"
AFTER = "vaccination.vaccinemgmt.v1.CancellationCompleted"


def event_class() -> Any:
    """The message class of the new event: the appointment and the version, as in CancellationCompleted."""
    from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2

    file, name = descriptor_pb2.FileDescriptorProto(), EVENT.rpartition(".")[2]
    vaccinemgmt_events_pb2.DESCRIPTOR.CopyToProto(file)
    [like] = [m for m in file.message_type if m.name == AFTER.rpartition(".")[2]]
    new = descriptor_pb2.FileDescriptorProto(
        name="tests/closed.proto", package=file.package, syntax="proto3", dependency=file.dependency
    )
    new.message_type.add().CopyFrom(like)
    new.message_type[0].name = name
    descriptor_pool.Default().Add(new)
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(EVENT))


def install(service: str) -> None:
    """Makes this process one of the next version."""
    {"vaccinemgmt": _vaccinemgmt, "reservation": _reservation, "mypage": _mypage, "approval": _approval}[service]()


def _vaccinemgmt() -> None:
    from services.chassis.events import Outgoing
    from services.chassis.mongo import Transaction

    closed, enqueue = event_class(), Transaction.enqueue

    async def and_close(self: Transaction, rows: Any) -> None:
        more = [
            Outgoing.of(row.key, row.time, closed.FromString(row.payload), quoted=("appointment",))
            for row in rows
            if row.subject == AFTER
        ]
        await enqueue(self, [*rows, *more])

    Transaction.enqueue = and_close  # type: ignore[method-assign]


def _reservation() -> None:
    from services.chassis.events import Subscription
    from services.reservation.adapters import events
    from services.reservation.application import Followup, _granted
    from services.reservation.domain import Status

    closed, subscriptions = event_class(), events.subscriptions

    def and_closed(followup: Followup) -> list[Subscription[Any]]:
        async def close(appointments: Any) -> None:
            async with followup._reservations.unit_of_work() as work:
                reservations = await _granted(work, appointments)
                for reservation in reservations:
                    reservation.status = Status(CLOSED)
                await work.save(reservations)

        return [*subscriptions(followup), Subscription(closed, events._appointment, close)]

    events.subscriptions = and_closed


def _mypage() -> None:
    from services.mypage import projector

    projector.STATUS[event_class()] = CLOSED


def _approval() -> None:
    from services.approval.domain import Denial, Ledger

    postgres: Any = import_module("services.approval.adapters.postgres")
    outbox: Any = import_module("services.chassis.events.outbox")

    why_not, violations, hospitals = Ledger._why_not, outbox.violations, postgres.Hospital

    def says_more(self: Ledger, wanted: Any, old: Any) -> Denial | None:
        reason = why_not(self, wanted, old)
        return (
            Denial(FULL_FOR_GOOD)
            if reason is Denial.DAY_FULL and int(str(wanted.reservation_id)[-1], 16) % 2
            else reason
        )

    def knows_more(message: Any) -> Any:
        return [(f, p) for f, p in violations(message) if f not in ("denial_reason", "appointment.hospital_name")]

    def longer(**row: Any) -> Any:
        hospital = hospitals(**row)
        return replace(hospital, name=hospital.name.ljust(400, "."))

    Ledger._why_not = says_more  # type: ignore[method-assign]
    outbox.violations = knows_more
    postgres.Hospital = longer
