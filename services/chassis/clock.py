"""The clock of every service."""

from datetime import UTC, datetime


def now() -> datetime:
    """The present time in whole milliseconds, which every store can keep, so that a time is the same everywhere."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
