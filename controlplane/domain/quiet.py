"""Quiet hours by the recipient's own clock: daily periods in local time, over one or several time zones. Pure.

A period lasts from the first moment at which the clock shows its start to the last at which it shows its end, so that the hour which is repeated when summer
time ends is quiet both times; a time that a change of the clock leaves out is the moment of the change (IANA time zone database, by `zoneinfo`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

__all__ = [
    "ALL_DAYS",
    "DAYS",
    "NEVER",
    "NO_QUIET_HOURS",
    "Action",
    "QuietHours",
    "Window",
    "is_time_zone",
    "quiet_document",
    "quiet_record",
    "quiet_until",
]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ALL_DAYS = 0b111_1111
_DAY = 1_440
_HORIZON = 15 * _DAY
"""Minutes ahead in which quiet hours must have an end."""
NEVER = -1


class Action(StrEnum):
    """What quiet hours do to a message."""

    HOLD = "hold"
    REJECT = "reject"


class Window(NamedTuple):
    """A daily period in minutes after local midnight, start included, end not. An end that is not after the start is that of the next day."""

    start: int
    end: int
    days: int = ALL_DAYS
    """Days on which it begins: bit 0 is Monday."""


class QuietHours(NamedTuple):
    """When messages of one class must not arrive."""

    windows: tuple[Window, ...]
    action: str = Action.HOLD.value


NO_QUIET_HOURS: Mapping[str, QuietHours] = {}


def quiet_document(quiet_hours: Mapping[str, QuietHours]) -> dict[str, Any]:
    """As they are stored: `{class: {windows: [[start, end, days], …], action}}`."""
    return {
        cls: {"windows": [list(window) for window in quiet.windows], "action": quiet.action}
        for cls, quiet in quiet_hours.items()
    }


def quiet_record(document: Mapping[str, Any]) -> dict[str, QuietHours]:
    """What `quiet_document` made."""
    return {
        cls: QuietHours(tuple(Window(*window) for window in quiet["windows"]), quiet["action"])
        for cls, quiet in document.items()
    }


@lru_cache(maxsize=16_384)
def quiet_until(windows: tuple[Window, ...], zones: tuple[str, ...], minute: int) -> int:
    """The first minute (since the epoch) from `minute` on that no window has in any of the zones; -1 when there is none within 15 days.

    Remembered by the minute: windows begin and end on full minutes, and so do changes of the clock.
    """
    known = [zone for name in zones if (zone := _zone(name)) is not None] or [ZoneInfo("UTC")]
    now, moved = minute, True
    while moved:
        moved = False
        for zone in known:
            for window in windows:
                end = _end(window, zone, now)
                if end > now:
                    now, moved = end, True
        if now > minute + _HORIZON:
            return NEVER
    return now


def _end(window: Window, zone: ZoneInfo, minute: int) -> int:
    """When the window's period that has `minute` ends, in minutes since the epoch; `minute` itself when none has it."""
    today = datetime.fromtimestamp(minute * 60, zone).date()
    latest = minute
    for offset in (-1, 0, 1):  # tomorrow's, since the clock may be put back over midnight
        day = today + timedelta(days=offset)
        if window.days >> day.weekday() & 1:
            end = window.end if window.end > window.start else window.end + _DAY
            if _first(zone, day, window.start) <= minute < _last(zone, day, end):
                latest = max(latest, _last(zone, day, end))
    return latest


def _first(zone: ZoneInfo, day: date, minutes: int) -> int:
    return _instants(zone, day, minutes)[0]


def _last(zone: ZoneInfo, day: date, minutes: int) -> int:
    return _instants(zone, day, minutes)[1]


def _instants(zone: ZoneInfo, day: date, minutes: int) -> tuple[int, int]:
    """The first and the last minute since the epoch at which the clock shows this time; for one that is left out, the moment of the change, twice."""
    local = datetime(day.year, day.month, day.day, tzinfo=zone) + timedelta(minutes=minutes)  # wall-clock arithmetic
    before, after = (int(local.replace(fold=fold).timestamp()) // 60 for fold in (0, 1))
    if before <= after:
        return before, after
    low, high = after, before  # PEP 495: in a gap the offset from before the change gives the later instant
    offset = _offset(zone, low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _offset(zone, middle) == offset else (low, middle)
    return high, high


def _offset(zone: ZoneInfo, minute: int) -> timedelta | None:
    return datetime.fromtimestamp(minute * 60, zone).utcoffset()


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder's name, such as "Europe"
        return None


def is_time_zone(name: str) -> bool:
    """Whether the time zone database has this name."""
    return _zone(name) is not None
