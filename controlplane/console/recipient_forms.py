"""Preferences and imports as forms, and back: pure. Whether values are right is for the API to say."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import FormData

from controlplane.domain.catalog import MessageClass
from controlplane.domain.merge import guess
from controlplane.domain.sheet import SAMPLE_BYTES, Reader, SheetError, detect

__all__ = ["CLASSES", "DAYS", "read_preference", "read_table", "show_preference"]

CLASSES = tuple(cls.value for cls in MessageClass)
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_ACTIONS = frozenset({"hold", "reject"})
_MOST_WINDOWS = 20
_MOST_NUMBERS = 10_000


def show_preference(found: dict[str, Any]) -> dict[str, Any]:
    """What the template shows: the API's preference, with its gaps filled and a spare row for quiet hours."""
    quiet = found.get("quiet_hours") or {}
    spare = {"start": "", "end": "", "days": list(DAYS)}
    return {
        "id": found.get("id", ""),
        "recipient": found.get("recipient", ""),
        "time_zone": found.get("time_zone") or "",
        "windows": [*quiet.get("windows", []), spare],
        "actions": {cls: quiet.get("actions", {}).get(cls, "") for cls in CLASSES},
        "sender": found.get("sender") or "",
        "blocked_classes": found.get("blocked_classes", []),
        "source": found.get("source") or "",
    }


def read_preference(form: FormData) -> dict[str, Any]:
    """The API's body, without the recipient."""
    windows = []
    for number in range(_MOST_WINDOWS):
        start, end = (str(form.get(f"quiet.{number}.{name}", "")).strip() for name in ("start", "end"))
        if start or end:
            windows.append(
                {"start": start, "end": end, "days": [str(day) for day in form.getlist(f"quiet.{number}.days")]}
            )
    given = {cls: str(form.get(f"action.{cls}", "")) for cls in CLASSES}
    actions = {cls: action for cls, action in given.items() if action in _ACTIONS}
    return {
        "time_zone": str(form.get("time_zone", "")).strip(),
        "quiet_hours": {"windows": windows, **({"actions": actions} if actions else {})} if windows else None,
        "sender": str(form.get("sender", "")).strip(),
        "blocked_classes": [str(cls) for cls in form.getlist("blocked_classes")],
        "source": str(form.get("source", "")).strip(),
    }


def read_table(data: bytes) -> list[tuple[int, str]]:
    """(line, number) of each row: of the column that is named so, else of the first. Raises SheetError."""
    dialect = detect(data[:SAMPLE_BYTES])
    reader = Reader(dialect)
    rows = reader.feed(data) + reader.close()
    column = 0
    if dialect.header and rows:
        header = rows.pop(0).cells
        column = header.index(named) if (named := guess(header).columns.get("to")) else 0
    numbers = [(row.line, row.cells[column].strip() if column < len(row.cells) else "") for row in rows]
    if not 1 <= len(numbers) <= _MOST_NUMBERS:
        raise SheetError(f"has {len(numbers)} numbers; 1 to {_MOST_NUMBERS} can be taken at once")
    return numbers
