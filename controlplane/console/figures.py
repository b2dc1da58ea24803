"""What the API's statistics look like as charts: over time, as a funnel, route by route. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from controlplane.console.frame import count, share
from controlplane.console.svg import Chart, bars, lines

__all__ = ["SPANS", "Span", "axis", "delivery_chart", "funnel", "seconds", "traffic_chart"]


class Span:
    """A stretch of time up to now, in points."""

    def __init__(self, key: str, word: str, length: timedelta, step: str, width: timedelta) -> None:
        self.key, self.word, self.length, self.step, self.width = key, word, length, step, width

    def query(self, now_ms: int) -> dict[str, str]:
        """For GET /v1/statistics."""
        since = datetime.fromtimestamp(now_ms / 1000, UTC) - self.length
        return {"since": since.isoformat(timespec="seconds").replace("+00:00", "Z"), "step": self.step}


SPANS = {
    span.key: span
    for span in (
        Span("hour", "Hour", timedelta(hours=1), "minute", timedelta(minutes=1)),
        Span("day", "Day", timedelta(days=1), "hour", timedelta(hours=1)),
        Span("week", "Week", timedelta(days=7), "6h", timedelta(hours=6)),
        Span("month", "30 days", timedelta(days=30), "day", timedelta(days=1)),
    )
}


def axis(found: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> list[tuple[datetime, Mapping[str, Any]]]:
    """Every time of an answer with its point; {} where nothing happened."""
    by_time = {datetime.fromisoformat(point["at"]): point for point in points}
    at, end = datetime.fromisoformat(found["since"]), datetime.fromisoformat(found["until"])
    step = timedelta(seconds=found["step_seconds"])
    times = []
    while at < end:
        times.append((at, by_time.get(at, {})))
        at += step
    return times


def seconds(value: float | None) -> str:
    """A time that a person can read."""
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 90 else f"{value / 60:.0f} min"


def _clock(at: datetime, zone: str, width: float) -> str:
    return at.astimezone(ZoneInfo(zone)).strftime("%H:%M" if width < 21_600 else "%d %b %H:%M")


def traffic_chart(found: Mapping[str, Any], zone: str, title: str = "Messages over time") -> Chart:
    """Accepted, delivered, and what came to another end."""
    times = axis(found, found["points"])
    named = {
        "accepted": [float(point.get("accepted", 0)) for _, point in times],
        "delivered": [float(point.get("delivered", 0)) for _, point in times],
        "not delivered": [float(_lost(point)) for _, point in times],
    }
    if not any(named["accepted"]):
        del named["accepted"]  # of one route: what is accepted has none yet
    total = found["total"]
    happened = [(at, point) for at, point in times if point]
    return Chart(
        title=title,
        summary=f"{count(total['accepted'] or total['submitted'])} {'accepted' if total['accepted'] else 'sent to the carrier'}, "
        f"{count(total['delivered'])} delivered, {count(_lost(total))} came to another end.",
        svg=lines(named),
        head=("Time", "Accepted", "Sent", "Delivered", "Not delivered", "Within 5 s", "p95"),
        rows=[
            (
                _clock(at, zone, found["step_seconds"]),
                count(point["accepted"]),
                count(point["submitted"]),
                count(point["delivered"]),
                count(_lost(point)),
                share(point["in_5s_rate"]),
                seconds(point["delivery_seconds"]["p95"]),
            )
            for at, point in reversed(happened)
        ],
    )


def delivery_chart(found: Mapping[str, Any], zone: str) -> Chart:
    """The share delivered, and within 5 s, over time."""
    times = axis(found, found["points"])
    series = {
        "delivered": [point.get("delivery_rate") for _, point in times],
        "within 5 s": [point.get("in_5s_rate") for _, point in times],
    }
    percent = {name: [None if value is None else value * 100 for value in values] for name, values in series.items()}
    total = found["total"]
    return Chart(
        title="How much arrived",
        summary=f"{share(total['delivery_rate'])} of what came to its end was delivered, {share(total['in_5s_rate'])} within 5 seconds.",
        svg=lines(percent, top=100.0, unit="%"),
        head=("Time", "Delivered", "Within 5 s", "Within its deadline"),
        rows=[
            (
                _clock(at, zone, found["step_seconds"]),
                share(point["delivery_rate"]),
                share(point["in_5s_rate"]),
                share(point["in_time_rate"]),
            )
            for at, point in reversed(times)
            if point and point["delivery_rate"] is not None
        ],
    )


def funnel(total: Mapping[str, Any]) -> Chart:
    """From accepted to each end. Counts of one stretch of time: what was accepted before it may have ended in it."""
    stages = [
        ("accepted", total["accepted"]),
        ("sent", total["submitted"]),
        ("delivered", total["delivered"]),
        ("undelivered", total["undelivered"]),
        ("failed", total["failed"]),
        ("expired", total["expired"]),
    ]
    if total["cancelled"]:
        stages.append(("cancelled", total["cancelled"]))
    first = max(total["accepted"], total["submitted"], 1)
    shares = [share(value / first, 1) for _, value in stages]
    lost = _lost(total)
    return Chart(
        title="What became of them",
        summary=f"Of {count(total['accepted'])} accepted messages {count(total['submitted'])} were sent and {count(total['delivered'])} delivered; "
        f"{count(lost)} came to another end.",
        svg=bars([(name, value, count(value)) for name, value in stages], most=first),
        head=("Stage", "Messages", "Share"),
        rows=[(name, count(value), part) for (name, value), part in zip(stages, shares, strict=True)]
        if any(value for _, value in stages)
        else (),
        note="A message that goes to a second route is sent twice." if total["submitted"] > total["accepted"] else "",
    )


def _lost(point: Mapping[str, Any]) -> int:
    return sum(int(point.get(name, 0)) for name in ("undelivered", "failed", "expired"))
