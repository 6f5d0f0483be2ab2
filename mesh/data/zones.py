"""Which time zone a hospital is in, as far as its publisher's files tell.

FHIR R4 gives a Location no time zone. What decides is, in this order:

1. the extension `timezone` (valueCode);
2. the zone that `--time-zone STATE=NAME` gives for `address.state`;
3. an address in a US state that lies in one zone, or in Korea;
4. the offsets from UTC that the publisher wrote into the slots: they choose among the zones of the US state, the zone
   that `--time-zone NAME` gives, and Asia/Seoul for an address without a country. UTC itself is no hint, since many
   publishers write every time in it. If none of these fits, a place that is in no state of several zones is in the
   zone of the offset itself, Etc/GMT-9 for +09:00;
5. without offsets that help, `--time-zone NAME`, then the zone of most people in the US state, then Asia/Seoul, unless
   the address names another country.

What 4 and 5 give is an assumption, and is noted. A hospital that was imported before keeps the zone that it
has, if there is only an assumption, or nothing, to tell another.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from mesh.data.dataset import Invalid, show
from services.approval.domain import DEFAULT_TIME_ZONE, time_zones

# US states and territories that lie in one zone as a whole (49 CFR 71) ...
STATES = {
    "America/New_York": "CT DC DE GA MA MD ME NC NH NJ NY OH PA RI SC VA VT WV",
    "America/Chicago": "AL AR IA IL LA MN MO MS OK WI",
    "America/Denver": "CO MT NM UT WY",
    "America/Los_Angeles": "CA WA",
    "Pacific/Honolulu": "HI",
    "America/Puerto_Rico": "PR VI",
    "Pacific/Guam": "GU MP",
    "Pacific/Pago_Pago": "AS",
}
STATE_ZONE = {state: zone for zone, states in STATES.items() for state in states.split()}
# ... and those that do not, the zone of most people first.
EASTERN, CENTRAL, MOUNTAIN, PACIFIC = "America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles"
SEVERAL_ZONES: Mapping[str, Sequence[str]] = {
    "AK": ("America/Anchorage", "America/Adak"),
    "AZ": ("America/Phoenix", MOUNTAIN),
    "FL": (EASTERN, CENTRAL),
    "ID": ("America/Boise", PACIFIC),
    "IN": ("America/Indiana/Indianapolis", CENTRAL),
    "KS": (CENTRAL, MOUNTAIN),
    "KY": (EASTERN, CENTRAL),
    "MI": ("America/Detroit", CENTRAL),
    "ND": (CENTRAL, MOUNTAIN),
    "NE": (CENTRAL, MOUNTAIN),
    "NV": (PACIFIC, MOUNTAIN),
    "OR": (PACIFIC, MOUNTAIN),
    "SD": (CENTRAL, MOUNTAIN),
    "TN": (CENTRAL, EASTERN),
    "TX": (CENTRAL, MOUNTAIN),
}
AMERICAN_ZONES = (EASTERN, CENTRAL, MOUNTAIN, PACIFIC, "America/Anchorage", "Pacific/Honolulu")
AMERICA = {"US", "USA", "U.S.", "UNITED STATES", "UNITED STATES OF AMERICA"}
KOREA = {"KR", "KOR", "KOREA", "SOUTH KOREA", "REPUBLIC OF KOREA", "한국", "대한민국"}

Written = Counter[tuple[date, timedelta]]
"""How often the slots of a hospital are written with which offset on which day."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `--time-zone` says: of hospitals whose files tell no zone, and of those in a state."""

    default: str | None = None
    by_state: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Iterable[str]) -> "Options":
        """Takes NAME and STATE=NAME. Invalid: there is no such zone."""
        default, by_state = None, dict[str, str]()
        for argument in arguments:
            state, _, zone = argument.rpartition("=")
            if zone not in time_zones():
                raise Invalid("--time-zone", f"{zone} is not an IANA time zone")
            if state:
                by_state[state.strip().upper()] = zone
            else:
                default = zone
        return cls(default, by_state)


@dataclass(frozen=True, slots=True)
class Zone:
    """A hospital's zone; `assumed`, if not empty, says why.

    Where the zone is assumed, the offset that the publisher wrote is the better witness of what day it is there.
    """

    name: str
    assumed: str = ""


def zone_of(told: object, address: object, written: Written, options: Options) -> Zone:
    """The zone of a Location with this extension `timezone` and this address. Invalid: nothing tells it."""
    if isinstance(told, str) and told in time_zones():
        return Zone(told)
    fields = address if isinstance(address, dict) else {}
    state, country = (_word(fields.get(name)) for name in ("state", "country"))
    if zone := options.by_state.get(state):
        return Zone(zone)
    american = not country or country in AMERICA
    if american and state in STATE_ZONE:
        return Zone(STATE_ZONE[state])
    if country in KOREA:
        return Zone(DEFAULT_TIME_ZONE)
    several = SEVERAL_ZONES.get(state, AMERICAN_ZONES if country else ()) if american else ()
    candidates = [*several, *filter(None, [options.default]), *([] if country or several else [DEFAULT_TIME_ZONE])]
    if written:
        if fitting := _fitting(candidates, written):
            if fitting == options.default:
                return Zone(fitting)
            return Zone(fitting, f"no time zone is told: {fitting} fits the offsets of the slots")
        if not several and (of_offset := _of_offset(written)):
            return Zone(of_offset, f"no time zone is told: {of_offset} is the offset of the slots")
    if options.default:
        return Zone(options.default)
    if state in SEVERAL_ZONES and several:
        return Zone(several[0], f"{state} has several time zones, and no slot says which: {several[0]} is assumed")
    if not country:
        return Zone(DEFAULT_TIME_ZONE, f"no time zone is told: {DEFAULT_TIME_ZONE} is assumed")
    raise Invalid("address", f"{show(country)} tells no time zone: give the extension timezone, or --time-zone")


def _word(value: Any) -> str:
    return value.strip().upper() if isinstance(value, str) else ""


def _fitting(candidates: Sequence[str], written: Written) -> str | None:
    """The zone that has the offset that was written most often."""
    fits = dict.fromkeys(candidates, 0)
    for zone in fits:
        for (day, offset), times in written.items():
            # At noon no zone changes its offset.
            fits[zone] += times * (datetime.combine(day, time(12), ZoneInfo(zone)).utcoffset() == offset)
    best = max(fits, key=fits.__getitem__, default=None)
    return best if best and fits[best] else None


def _of_offset(written: Written) -> str | None:
    """The zone that always has the offset that was written most often: whole hours have one, whose sign is reversed."""
    offsets = Counter[timedelta]()
    for (_, offset), times in written.items():
        offsets[offset] += times
    [(offset, _)] = offsets.most_common(1)
    hours, rest = divmod(offset, timedelta(hours=1))
    name = f"Etc/GMT{-hours:+d}"
    return name if not rest and name in time_zones() else None
