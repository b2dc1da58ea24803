"""Quiet hours, against a clock that is read minute by minute: over changes of the clock, weekdays, midnight, and several zones at once."""

import timeit
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from controlplane.domain.quiet import ALL_DAYS, NEVER, Window, is_time_zone, quiet_until

# Zones whose clocks change in the night, by half an hour, at midnight, in the other hemisphere, never.
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Havana",
    "Africa/Cairo",
    "Asia/Beirut",
    "Pacific/Chatham",
    "America/Santiago",
    "Asia/Kolkata",
    "UTC",
)
DAY = 1_440
FIRST = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) // 60


def minute(text: str, zone: str = "UTC", fold: int = 0) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()) // 60


@cache
def changes(zone: str) -> tuple[int, ...]:
    """Hours of 2026 (in minutes) after which the zone's clock has changed."""
    tz = ZoneInfo(zone)
    offsets = [datetime.fromtimestamp((FIRST + 60 * hour) * 60, tz).utcoffset() for hour in range(365 * 24)]
    return tuple(FIRST + 60 * hour for hour in range(1, len(offsets)) if offsets[hour] != offsets[hour - 1])


@cache
def walls(zone: str, day: int) -> tuple[datetime, ...]:
    """What the clock shows in each minute of five days, the third of which is `day`."""
    tz = ZoneInfo(zone)
    return tuple(
        datetime.fromtimestamp(m * 60, tz).replace(tzinfo=None, fold=0) for m in range(day - 2 * DAY, day + 3 * DAY)
    )


@cache
def periods(zone: str, day: int, window: Window) -> tuple[tuple[int, int], ...]:
    """Every period of this window in those days, by reading the clock."""
    shown, base, found = walls(zone, day), day - 2 * DAY, []
    first = shown[0].date() + timedelta(days=1)
    for number in range(4):
        date = first + timedelta(days=number)
        if not window.days >> date.weekday() & 1:
            continue
        midnight = datetime(date.year, date.month, date.day)  # noqa: DTZ001 - what a clock on the wall shows
        start = midnight + timedelta(minutes=window.start)
        end = midnight + timedelta(minutes=window.end + (0 if window.end > window.start else DAY))
        begins = next((i for i, wall in enumerate(shown) if wall >= start), None)
        shows_end = [i for i, wall in enumerate(shown) if wall == end]
        ends = shows_end[-1] if shows_end else next((i for i, wall in enumerate(shown) if wall >= end), None)
        if begins is not None and ends is not None:
            found.append((base + begins, base + ends))
    return tuple(found)


minutes = st.integers(0, DAY - 1) | st.sampled_from([0, 30, 60, 90, 120, 150, 180, 1_380, 1_410])
windows = st.builds(Window, minutes, minutes | st.just(DAY), st.integers(1, ALL_DAYS) | st.just(ALL_DAYS))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([zone for zone in ZONES if zone not in ("Asia/Kolkata", "UTC")]),
    st.integers(0, 3),
    windows,
    st.integers(-360, 360) | st.integers(-DAY, DAY),
)
def test_around_a_change_of_the_clock_it_is_what_the_clock_shows(zone, which, window, offset):
    hour = changes(zone)[which % len(changes(zone))]
    at = hour + offset
    day = hour // DAY * DAY
    known = periods(zone, day, window)
    reached = at
    while inside := [end for start, end in known if start <= reached < end]:
        reached = max(inside)
    end = quiet_until((window,), (zone,), at)
    if reached < day + DAY + DAY // 2:  # what was read of the clock goes further than that
        assert end == reached
    else:
        assert end == NEVER or end >= reached


@settings(max_examples=300, deadline=None)
@given(
    st.lists(windows, min_size=1, max_size=3).map(tuple),
    st.sets(st.sampled_from(ZONES), min_size=1, max_size=4).map(lambda zones: tuple(sorted(zones))),
    st.integers(FIRST, FIRST + 360 * DAY),
)
def test_the_end_is_allowed_everywhere_and_no_minute_before_is(of, zones, at):
    end = quiet_until(of, zones, at)
    assume(end != NEVER)
    assert end >= at
    single = [((window,), (zone,)) for window in of for zone in zones]
    assert all(quiet_until(*one, end) == end for one in single)
    for before in {at, (at + end) // 2, end - 1} - {end}:
        if before >= at:
            assert any(quiet_until(*one, before) > before for one in single)


@settings(max_examples=200, deadline=None)
@given(windows, st.sampled_from(ZONES), st.integers(FIRST, FIRST + 360 * DAY))
def test_asked_again_within_the_period_the_answer_is_the_same(window, zone, at):
    end = quiet_until((window,), (zone,), at)
    assume(end not in (at, NEVER))
    assert quiet_until((window,), (zone,), (at + end) // 2) == end


NIGHT = (Window(22 * 60, 7 * 60),)


@pytest.mark.parametrize(
    ("zone", "at", "end"),
    [
        ("Europe/Berlin", "2026-01-10T21:59+01:00", "2026-01-10T21:59+01:00"),
        ("Europe/Berlin", "2026-01-10T22:00+01:00", "2026-01-11T07:00+01:00"),
        ("Europe/Berlin", "2026-01-11T06:59+01:00", "2026-01-11T07:00+01:00"),
        ("Europe/Berlin", "2026-01-11T07:00+01:00", "2026-01-11T07:00+01:00"),
        ("Europe/Berlin", "2026-03-28T23:00+01:00", "2026-03-29T07:00+02:00"),  # one hour less to wait
        ("Europe/Berlin", "2026-10-24T23:00+02:00", "2026-10-25T07:00+01:00"),  # one hour more
        ("Asia/Kolkata", "2026-10-24T23:00+05:30", "2026-10-25T07:00+05:30"),
    ],
)
def test_a_night(zone, at, end):
    assert quiet_until(NIGHT, (zone,), minute_of(at)) == minute_of(end)


def minute_of(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) // 60


def test_a_time_that_is_left_out_is_the_moment_of_the_change():
    at = minute_of("2026-03-29T01:30+01:00")
    assert quiet_until((Window(60, 150),), ("Europe/Berlin",), at) == minute_of("2026-03-29T03:00+02:00")


def test_the_repeated_hour_is_quiet_both_times():
    window = (Window(60, 150),)
    second = minute("2026-10-25T02:30", "Europe/Berlin", fold=1)
    assert quiet_until(window, ("Europe/Berlin",), minute("2026-10-25T02:45", "Europe/Berlin")) == second
    assert quiet_until(window, ("Europe/Berlin",), second) == second


def test_weekdays_are_those_on_which_it_begins():
    friday_night = (Window(22 * 60, 6 * 60, 1 << 4),)
    assert quiet_until(friday_night, ("UTC",), minute("2026-01-10T05:00")) == minute("2026-01-10T06:00")  # a Saturday
    assert quiet_until(friday_night, ("UTC",), minute("2026-01-10T23:00")) == minute("2026-01-10T23:00")


def test_several_zones_are_waited_for_and_a_day_without_end_is_told():
    coasts = ("America/New_York", "America/Los_Angeles")
    at = minute_of("2026-01-10T07:30-05:00")  # New York wakes up, Los Angeles sleeps
    assert quiet_until(NIGHT, coasts, at) == minute_of("2026-01-10T07:00-08:00")
    around = ("Pacific/Auckland", "Europe/Berlin", "America/Los_Angeles")
    assert quiet_until((Window(20 * 60, 9 * 60),), around, at) == NEVER
    assert quiet_until((Window(0, DAY),), ("UTC",), at) == NEVER
    assert quiet_until((Window(300, 300, 0b11),), ("UTC",), minute("2026-01-12T06:00")) == minute("2026-01-14T05:00")


def test_names_of_zones():
    assert is_time_zone("Europe/Berlin")
    assert not is_time_zone("Europe")
    assert not is_time_zone("Berlin")
    assert not is_time_zone("../../etc/passwd")
    assert quiet_until(NIGHT, ("Nowhere/At_All",), minute("2026-01-10T23:00")) == minute("2026-01-11T07:00")  # UTC


def test_within_a_minute_it_is_remembered():
    zones = tuple(f"America/{name}" for name in ("Anchorage", "Chicago", "Denver", "Los_Angeles", "New_York"))
    at = minute("2026-01-10T23:00")
    quiet_until(NIGHT, zones, at)
    assert min(timeit.repeat(lambda: quiet_until(NIGHT, zones, at), number=10_000, repeat=5)) / 10_000 < 20e-6
