"""From the rows of a table to messages: which column is what, and texts with `{column}` in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["FIELDS", "Mapping", "Merge", "Template", "guess"]

FIELDS = (
    "to",
    "body",
    "from",
    "class",
    "reference",
    "send_at",
    "origin",
    "validity_seconds",
    "callback_url",
    "max_price",
    "max_parts",
    "unknown_policy",
)
"""Fields of a message that a column, or one value for all, may give."""

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAMES = {
    "to": ("to", "phone", "phone number", "phonenumber", "number", "mobile", "msisdn", "recipient", "telefon", "handy", "mobil"),
    "body": ("body", "text", "message", "sms", "nachricht"),
    "from": ("from", "sender", "sender id", "absender"),
    "class": ("class",),
    "reference": ("reference", "ref", "id", "external id"),
    "send_at": ("send_at", "send at", "schedule", "scheduled"),
    "origin": ("origin", "country"),
    "validity_seconds": ("validity_seconds",),
    "callback_url": ("callback_url",),
    "max_price": ("max_price",),
    "max_parts": ("max_parts",),
    "unknown_policy": ("unknown_policy",),
}  # fmt: skip
_EXACT = frozenset({"origin"})
"""Taken only under its own name: `country` is as often the recipient's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """What the columns of a table are. A column is known by its header, or by its number from 1."""

    columns: dict[str, str] = field(default_factory=dict)
    """Field → column."""
    body: str = ""
    """Text with `{column}` for each row, in the place of a column; `{{` and `}}` are braces."""
    values: dict[str, str] = field(default_factory=dict)
    """Field → what it is where its column is empty, or there is none."""


def guess(header: Sequence[str]) -> Mapping:
    """What the names of the columns tell."""
    columns: dict[str, str] = {}
    taken: set[str] = set()
    for name, words in _NAMES.items():
        known = words[:1] if name in _EXACT else words
        for column in header:
            if column.strip().lower() in known and column not in taken:
                columns[name] = column
                taken.add(column)
                break
    return Mapping(columns=columns)


class Columns:
    """The columns of one table by name and number."""

    def __init__(self, header: Sequence[str], width: int) -> None:
        self._names = [name.strip() for name in header]
        self._by_name: dict[str, int] = {}
        for index, name in enumerate(self._names):
            if name:
                self._by_name.setdefault(name.lower(), index)
        self._width = max(width, len(self._names))

    def find(self, column: str) -> int:
        """Its index from 0. ValueError says which there are."""
        wanted = column.strip()
        found = self._by_name.get(wanted.lower())
        if found is not None:
            return found
        if wanted.isascii() and wanted.isdigit() and 1 <= int(wanted) <= self._width:
            return int(wanted) - 1
        names = ", ".join(name for name in self._names[:20] if name)
        raise ValueError(
            f"{wanted[:60]!r} is no column; there are {names or 'no names'}, and the numbers 1 to {self._width}"
        )


class Template:
    """A text with the values of columns in it. ValueError for a brace without its partner, or a column that is not there."""

    def __init__(self, text: str, columns: Columns) -> None:
        self._pieces: list[str | int] = list(self._parse(text, columns))

    @staticmethod
    def _parse(text: str, columns: Columns) -> Iterator[str | int]:
        end = 0
        for match in _TOKEN.finditer(text):
            yield text[end : match.start()]
            end = match.end()
            token = match.group()
            if token in ("{{", "}}"):
                yield token[0]
            elif match[1] is not None:
                yield columns.find(match[1])
            else:
                raise ValueError(
                    f"has a {token} without its partner at {match.start()}; write {token * 2} for the sign"
                )
        yield text[end:]

    def fill(self, cells: Sequence[str]) -> str:
        """The text for one row; a cell that is missing is empty."""
        return "".join(
            piece if isinstance(piece, str) else cells[piece].strip() if piece < len(cells) else ""
            for piece in self._pieces
        )


class Merge:
    """Makes messages of rows. Raises ValueError, as `field: what is wrong`, for a mapping that does not fit the table."""

    def __init__(self, mapping: Mapping, header: Sequence[str], width: int) -> None:
        columns = Columns(header, width)
        self._values = {name: value for name, value in mapping.values.items() if value}
        self._columns: list[tuple[str, int]] = []
        for name, column in mapping.columns.items():
            if name not in FIELDS:
                raise ValueError(f"columns/{name}: is no field; there are {', '.join(FIELDS)}")
            try:
                self._columns.append((name, columns.find(column)))
            except ValueError as error:
                raise ValueError(f"columns/{name}: {error}") from None
        for name in mapping.values:
            if name not in FIELDS:
                raise ValueError(f"values/{name}: is no field; there are {', '.join(FIELDS)}")
        if "to" not in mapping.columns:
            raise ValueError("columns/to: say which column has the recipient's number")
        self._body: Template | None = None
        if mapping.body:
            try:
                self._body = Template(mapping.body, columns)
            except ValueError as error:
                raise ValueError(f"body: {error}") from None
        elif "body" not in mapping.columns and not self._values.get("body"):
            raise ValueError(
                "body: give a text, in which {column} stands for a column's value, or a column that has it"
            )

    def fields(self, cells: Sequence[str]) -> dict[str, str]:
        """The fields of the message of one row; empty ones are left out."""
        found = dict(self._values)
        for name, index in self._columns:
            text = cells[index] if index < len(cells) else ""
            if text.strip():
                found[name] = text if name == "body" else text.strip()
        if self._body is not None:
            found["body"] = self._body.fill(cells)
        return found
