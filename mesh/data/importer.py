"""Imports a directory of hospitals, daily capacity and vaccine lots: `python -m mesh import DIR`.

`feed` says what the files hold and what is assumed where they do not keep to their format. The report names, with files
and lines, what was refused, what was assumed, what was left out, and what was not read: nothing is left out silently.

Exit code 0: everything was taken, perhaps with notes. 1: something was refused, and the rest is in. 2: nothing could be
imported, or the import had to stop.

A day that is open here from an earlier import, and is in no file any more, is reported as gone. It stays open, since a
file may be missing, or a manager may have opened it, unless `--close-gone-days` is given: then nobody new is approved
for it, and what is booked stays. It is never closed while a row is refused, which might have been that day, or while a
file is not read that may hold slots (*.json, *.jsonl, *.gz, *.zip, *.xlsx).

`--shift-to DATE` moves the first day that has a slot to DATE, and every other day and the lots' dates by as many days,
so that who can be given which lot stays as it was. A lot that is already registered under other dates is therefore
refused (LOT_CONFLICT): a lot has one expiry date. Days that are gone are then not looked for.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path

import grpc
from rich.console import Console
from rich.progress import Progress

from mesh.data.dataset import Data, Invalid, Lines, Row, RowError, shift
from mesh.data.feed import read
from mesh.data.files import Folder, printable
from mesh.data.sender import Advance, Outcome, Refused, Sender, Stopped
from mesh.data.zones import Options
from vaccination.approval.v1.hospital_pb2 import DayAvailability

REPORTED = (
    ("hospitals", "new or changed", "unchanged"),
    ("days", "new or changed", "unchanged"),
    ("deliveries", "taken", "taken before"),
)
Connect = Callable[[], grpc.aio.Channel]


def run(
    directory: Path,
    connect: Connect,
    token: str,
    shift_to: date | None = None,
    time_zones: Sequence[str] = (),
    *,
    close_gone_days: bool = False,
) -> int:
    """Imports `directory` with an operator's JWT, through the gateway to which `connect` opens a channel.

    `time_zones` are the values of --time-zone, NAME or STATE=NAME. Returns the exit code.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not directory.is_dir():
        console.print(f"{printable(directory)} is not a directory")
        return 2
    try:
        options, size = Options.of(time_zones), Folder.of(directory).size()
    except (Invalid, OSError) as error:
        console.print(str(error))
        return 2
    data, outcome = Data(), Outcome()
    with Progress(console=console) as progress:
        bar = progress.add_task("Reading", total=size)
        try:
            data = read(
                directory, options, lambda size: progress.advance(bar, size),
                lambda: asyncio.run(_zones_here(connect, token)),
            )  # fmt: skip
            if not data.rows():
                raise Stopped(f"there is no hospital and no lot to import in {printable(directory)}")
            if shift_to:
                console.print(f"Dates are moved by {shift(data, shift_to):+,} days: the first is {shift_to}.")
            bar = progress.add_task("Importing", total=data.rows())
            look, close = shift_to is None, close_gone_days
            asyncio.run(_import(data, connect, token, outcome, lambda rows: progress.advance(bar, rows), look, close))
        except* (Stopped, Refused, Invalid) as group:
            outcome.stopped = str(group.exceptions[0])
    return _report(console, data, outcome)


async def _zones_here(connect: Connect, token: str) -> dict[str, str]:
    async with connect() as channel:
        return await Sender(Data(), channel, token, Outcome()).known_hospitals()


async def _import(
    data: Data, connect: Connect, token: str, outcome: Outcome, advance: Advance, look: bool, close: bool
) -> None:
    async with connect() as channel:
        sender = Sender(data, channel, token, outcome, advance)
        await sender.everything()
        if look:
            await sender.days_gone()
        if close and not data.keeps_open():
            await sender.close_days_gone()


def _report(console: Console, data: Data, outcome: Outcome) -> int:
    for line in refusals(data.errors):
        console.print(line)
    for what, new, old in REPORTED:
        console.print(f"{what:10}{outcome.changed[what]:>7,} {new}, {outcome.unchanged[what]:,} {old}")
    if outcome.before:
        console.print(f"Taken before, and not again: {Lines(outcome.before)}")
    if data.notes:
        console.print("Taken, with notes:")
        for text, lines in data.notes.items():
            console.print(f"  {text} ({lines})")
    if outcome.over:
        days = ", ".join(
            f"{key} {_day(day)}" for key, day in sorted(outcome.over, key=lambda one: (one[0], one[1].date))
        )
        console.print(f"More bookings than places: {days}")
    if outcome.gone:
        console.print(f"Open here, but in no file{_closed(data, outcome)}:")
        for gone in outcome.gone:
            console.print(f"  {gone.hospital_id}: {', '.join(map(_day, gone.days))}")
    if data.not_read:
        console.print(f"Not read: {', '.join(data.not_read)}")
    if data.ignored:
        console.print("Left out: " + ", ".join(f"{number:,} {what}" for what, number in data.ignored.most_common()))
    if data.lots and (waiting := data.without_lot()):
        some = ", ".join(waiting[:5]) + ", ..." * (len(waiting) > 5)
        console.print(f"Offered, but no lot in the files: {some}. Who books that waits for stock.")
    if data.errors:
        console.print(f"Rows refused: {len({error.row for error in data.errors}):,}, see above")
    imported = outcome.changed.total() + outcome.unchanged.total()
    if outcome.stopped:
        console.print(f"Stopped: {outcome.stopped}" + "\nWhat is in stays in; import again to go on." * bool(imported))
    if outcome.stopped or not imported:
        return 2
    return 1 if data.errors else 0


def refusals(errors: Iterable[RowError]) -> list[str]:
    """What is wrong with which rows, by file and line. Rows of a file with which the same is wrong are one line."""
    alike = defaultdict[tuple[str, str, str], list[Row]](list)
    for error in sorted(errors):
        alike[error.row.file, error.field, error.reason].append(error.row)
    return [
        f"{Lines(rows)}: {name}: {reason}" if len(rows) > 1 else str(RowError(rows[0], name, reason))
        for (_, name, reason), rows in alike.items()
    ]


def _day(day: DayAvailability) -> str:
    return f"{day.date} ({day.capacity:,} places, {day.approved:,} booked)"


def _closed(data: Data, outcome: Outcome) -> str:
    if outcome.closed:
        return ", and closed to new bookings"
    reason = data.keeps_open()
    return f", and not closed, since {reason}" if reason else "; --close-gone-days closes such days"
