"""Quiet hours as requests and answers write them: `{"windows": [{"start": "21:00", "end": "08:00", "days": ["mon", …]}], …}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.catalog import MessageClass
from controlplane.domain.quiet import DAYS, Action, QuietHours, Window

__all__ = ["QuietBody", "WindowBody", "quiet_hours", "quiet_view", "windows_of", "windows_view"]

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def _every_day() -> set[Day]:
    return set(get_args(Day))


Start = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
End = Annotated[str, Field(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$")]


class WindowBody(BaseModel):
    """A period of the recipient's local time, every day or on some. An end that is not after the start is that of the next day."""

    model_config = ConfigDict(extra="forbid")
    start: Annotated[Start, Field(description="HH:MM, included.")]
    end: Annotated[End, Field(description="HH:MM, not included.")]
    days: Annotated[set[Day], Field(min_length=1, description="Days on which it begins.")] = Field(
        default_factory=_every_day
    )


class QuietBody(BaseModel):
    """When messages of one class must not arrive, and what becomes of those that would."""

    model_config = ConfigDict(extra="forbid")
    windows: Annotated[list[WindowBody], Field(min_length=1, max_length=20)]
    action: Annotated[Action, Field(description="hold: sent when they are over; reject: refused.")] = Action.HOLD


def windows_of(bodies: Iterable[WindowBody]) -> tuple[Window, ...]:
    """As the rules want them."""
    return tuple(
        Window(_minutes(body.start), _minutes(body.end), sum(1 << DAYS.index(day) for day in body.days))
        for body in bodies
    )


def quiet_hours(bodies: Mapping[MessageClass, QuietBody]) -> dict[str, QuietHours]:
    """By class."""
    return {cls.value: QuietHours(windows_of(body.windows), body.action.value) for cls, body in bodies.items()}


def windows_view(windows: Iterable[Window]) -> list[dict[str, Any]]:
    """As answers write them."""
    return [
        {
            "start": _clock(window.start),
            "end": _clock(window.end),
            "days": [day for bit, day in enumerate(DAYS) if window.days >> bit & 1],
        }
        for window in windows
    ]


def quiet_view(quiet: Mapping[str, QuietHours]) -> dict[str, Any]:
    """By class, as answers write them."""
    return {cls: {"windows": windows_view(hours.windows), "action": hours.action} for cls, hours in quiet.items()}


def _minutes(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
