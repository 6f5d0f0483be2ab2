"""The clock of every service."""

from datetime import UTC, datetime


def now() -> datetime:
    """Now, to the millisecond: what every store along the journey can keep, so that a time is the same everywhere."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
