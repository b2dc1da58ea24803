"""Tables of text (CSV) as people save them: found out how one is written, and read in pieces, each row with the line on which it begins.

RFC 4180 with what spreadsheets do beside it: other delimiters, UTF-16, a byte order mark, fields of several lines, no header. A row that cannot be read is told as such
and never spoils the others. Nothing is held but the row that is not complete yet.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controlplane.domain.address import normalise_recipient

__all__ = ["DELIMITERS", "ENCODINGS", "SAMPLE_BYTES", "Dialect", "Reader", "Row", "SheetError", "cell", "detect"]

SAMPLE_BYTES = 256 * 1024
"""What `detect` looks at is at most this much of the beginning."""
MAX_RECORD = 64 * 1024
"""Characters that one row may have."""
MAX_COLUMNS = 200
MAX_UNREADABLE = 1_000
"""Rows that may be unreadable before the table as a whole is."""
ENCODINGS = ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "windows-1252", "latin-1")
DELIMITERS = (",", ";", "\t", "|")

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_SAMPLE_ROWS = 200
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class SheetError(ValueError):
    """The table cannot be read; the message says from which line on, and what to do."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a table is written."""

    encoding: str = "utf-8"
    """One of ENCODINGS."""
    delimiter: str = ","
    header: bool = True
    """The first row names the columns."""


class Row(NamedTuple):
    """One row."""

    line: int
    """Where it begins, from 1, as an editor counts."""
    cells: list[str]
    error: str = ""
    """Why it cannot be read; then there are no cells."""


def detect(
    sample: bytes, *, encoding: str | None = None, delimiter: str | None = None, header: bool | None = None
) -> Dialect:
    """How the table that begins with `sample` is written; what is given is taken as it is. Raises SheetError."""
    encoding = encoding or _encoding(sample)
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(sample).removeprefix("\ufeff")
    delimiter = delimiter or max(DELIMITERS, key=lambda mark: _fit(text, mark))
    if header is None:
        header = _has_header(_sample(text, delimiter))
    return Dialect(encoding, delimiter, header)


def _encoding(sample: bytes) -> str:
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return name
    pairs = len(sample) // 2
    if pairs and sample[0::2].count(0) + sample[1::2].count(0) > pairs * 0.4:  # Latin text in UTF-16 is zeros by half
        return "utf-16-be" if sample[0::2].count(0) > sample[1::2].count(0) else "utf-16-le"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # a character that the sample cuts is no error
    except UnicodeDecodeError:
        return "windows-1252"
    return "utf-8"


def _sample(text: str, delimiter: str) -> list[list[str]]:
    reader = Reader(Dialect(delimiter=delimiter))
    try:
        rows = reader.parse(text[: MAX_RECORD * 2])
    except SheetError:
        return []
    if len(rows) < 2:  # a short table may lack its last line's end
        rows += reader.close()
    return [row.cells for row in rows[:_SAMPLE_ROWS] if not row.error]


def _fit(text: str, delimiter: str) -> float:
    """How well the delimiter explains the table: the share of rows that have the most frequent number of columns, if that is more than one."""
    widths = Counter(len(cells) for cells in _sample(text, delimiter))
    if not widths:
        return 0.0
    width, count = widths.most_common(1)[0]
    return count / widths.total() + width / 10_000 if width > 1 else 0.0


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """A first row without a number to send to is a header; so is one whose words no later row would have."""
    return bool(rows) and not any(map(_is_number, rows[0]))


def _is_number(text: str) -> bool:
    try:
        normalise_recipient(text.strip())
    except ValueError:
        return text.strip().isdigit() and len(text.strip()) > 5
    return True


class Reader:
    """Reads one table, as it comes: `feed` octets (or `parse` text), then `close`. Large pieces cost less: an incomplete row is read again with each."""

    def __init__(self, dialect: Dialect) -> None:
        self._decoder = codecs.getincrementaldecoder(dialect.encoding)()
        self._newlines = io.IncrementalNewlineDecoder(None, translate=True)
        self._delimiter = dialect.delimiter
        self._first = True
        self._rest = ""
        """Text after the last line's end."""
        self._lines: list[str] = []
        """Lines of a row that is not complete yet."""
        self._line = 1
        """Number of the first of them."""
        self._unreadable = 0

    def feed(self, data: bytes) -> list[Row]:
        """The rows that are complete now. Raises SheetError where the octets are not of the encoding, or nothing makes sense."""
        try:
            return self.parse(self._decoder.decode(data))
        except UnicodeDecodeError as error:
            raise self._not_of_encoding(error) from None

    def close(self) -> list[Row]:
        """The rest. Raises SheetError."""
        try:
            text = self._decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise self._not_of_encoding(error) from None
        self._rest += self._newlines.decode(text, final=True)
        if self._rest:
            self._lines.append(self._rest + "\n")
            self._rest = ""
        return list(self._records(final=True))

    def parse(self, text: str) -> list[Row]:
        """`feed` for text."""
        if self._first and text:
            text, self._first = text.removeprefix("\ufeff"), False
        text = self._rest + self._newlines.decode(text)
        *whole, self._rest = text.split("\n")
        if len(self._rest) > MAX_RECORD:
            raise SheetError(
                f"line {self._line + len(self._lines) + len(whole)} has more than {MAX_RECORD} characters: is this a table of text?"
            )
        self._lines += [line + "\n" for line in whole]
        return list(self._records(final=False))

    def _not_of_encoding(self, error: UnicodeDecodeError) -> SheetError:
        octets = error.object[error.start : error.start + 1].hex()
        line = self._line + len(self._lines) + error.object[: error.start].count(b"\n")
        return SheetError(
            f"near line {line}: octet 0x{octets} is not {error.encoding}; say which encoding it is: {', '.join(ENCODINGS)}"
        )

    def _records(self, *, final: bool) -> Iterator[Row]:
        """Rows of the complete lines; those of an incomplete row stay. An unreadable row costs one line."""
        lines, self._lines = self._lines, []
        start = 0
        while start < len(lines):
            source = _Source(lines, start)
            reader = csv.reader(source, delimiter=self._delimiter, strict=True)
            try:
                for cells in reader:
                    if any(map(str.strip, cells)):
                        yield self._row(cells)
                    self._line += source.at - start
                    start = source.at
            except csv.Error as error:
                taken = lines[start : source.at]
                if source.at == len(lines) and not final and sum(map(len, taken)) <= MAX_RECORD and _open(taken):
                    self._lines = taken
                    return
                yield self._bad(str(error))
                self._line += 1
                start += 1

    def _row(self, cells: list[str]) -> Row:
        if len(cells) > MAX_COLUMNS:
            return self._bad(f"has {len(cells)} columns; at most {MAX_COLUMNS} are read")
        if sum(map(len, cells)) > MAX_RECORD:
            return self._bad(f"has more than {MAX_RECORD} characters")
        return Row(self._line, cells)

    def _bad(self, error: str) -> Row:
        self._unreadable += 1
        if self._unreadable > MAX_UNREADABLE:
            raise SheetError(
                f"more than {MAX_UNREADABLE} rows cannot be read, the last on line {self._line} ({error}); look at quotation marks, delimiter and encoding"
            )
        return Row(self._line, [], error)


class _Source:
    """Lines from one on, for csv.reader; `at` is the next."""

    __slots__ = ("_lines", "at")

    def __init__(self, lines: list[str], at: int) -> None:
        self._lines = lines
        self.at = at

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.at >= len(self._lines):
            raise StopIteration
        self.at += 1
        return self._lines[self.at - 1]


def _open(lines: Iterable[str]) -> bool:
    """Whether a quotation mark among these lines waits for its partner."""
    return sum(line.count('"') for line in lines) % 2 == 1


def cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: one that begins like it gets an apostrophe before it."""
    return "'" + text if text.startswith(_FORMULA) else text
