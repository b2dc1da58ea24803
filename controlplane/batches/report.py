"""What the check of a table found."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controlplane.domain.batch_job import Judged

__all__ = ["SUPPRESSED", "Report"]

SUPPRESSED = frozenset(
    {"recipient-opted-out", "recipient-complained", "recipient-invalid", "recipient-suppressed", "class-blocked"}
)
"""Problems by which a recipient's own record refuses a message."""
_LINES = 20
"""Of each problem so many lines are named."""
_PROBLEMS = 50


@dataclass(slots=True)
class _Problem:
    error: str
    detail: str
    rows: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.rows += 1
        if len(self.lines) < _LINES:
            self.lines.append(line)


class Report:
    """Grows row by row; 16 octets a row for finding the recipients that come twice."""

    def __init__(self) -> None:
        self._problems: dict[tuple[str, str], _Problem] = {}
        self._rest = _Problem("others", "Rows with yet other problems.")
        self._encodings: Counter[str] = Counter()
        self._prices: dict[str, list[int]] = {}
        self._parts = 0
        self._longest = 0
        self._held = 0
        self._good = 0
        self._suppressed = 0
        self._recipients = array("q")
        self._lines = array("q")

    @property
    def rows(self) -> int:
        """Seen so far."""
        return self._good + sum(problem.rows for problem in self._problems.values()) + self._rest.rows

    def add(self, line: int, judged: Judged) -> None:
        """One row."""
        error = judged.result.error
        if error:
            self._suppressed += error in SUPPRESSED
            self._problem(error, judged.result.detail).add(line)
            return
        self._good += 1
        self._held += judged.result.status == "scheduled"
        self._encodings[judged.encoding] += 1
        self._parts += judged.parts
        self._longest = max(self._longest, judged.parts)
        price = self._prices.setdefault(judged.currency, [judged.price, judged.price, 0])
        price[0], price[1], price[2] = min(price[0], judged.price), max(price[1], judged.price), price[2] + judged.price
        self._recipients.append(hash(judged.to))
        self._lines.append(line)

    def _problem(self, error: str, detail: str) -> _Problem:
        found = self._problems.get((error, detail))
        if found is None:
            if len(self._problems) >= _PROBLEMS:
                return self._rest
            found = self._problems[error, detail] = _Problem(error, detail)
        return found

    def document(self) -> dict[str, Any]:
        """As stored and shown. Prices in minor units, the least and the most of a message, and of all."""
        problems = sorted(self._problems.values(), key=lambda problem: -problem.rows)
        problems += [self._rest] if self._rest.rows else []
        recipients, lines = self._repeated()
        return {
            "rows": self.rows,
            "good": self._good,
            "bad": self.rows - self._good,
            "suppressed": self._suppressed,
            "scheduled": self._held,
            "parts": self._parts,
            "longest": self._longest,
            "encodings": dict(self._encodings),
            "prices": [
                {"currency": currency, "least": price[0], "most": price[1], "total": price[2]}
                for currency, price in sorted(self._prices.items())
            ],
            "duplicates": {"recipients": recipients, "rows": len(lines), "lines": lines[:_LINES]},
            "problems": [
                {"error": problem.error, "detail": problem.detail, "rows": problem.rows, "lines": problem.lines}
                for problem in problems
            ],
        }

    def _repeated(self) -> tuple[int, list[int]]:
        """How many recipients come more than once, and the lines on which they come again."""
        if not self._recipients:
            return 0, []
        recipients = np.frombuffer(self._recipients, dtype=np.int64)
        order = np.argsort(recipients, kind="stable")
        again = recipients[order][1:] == recipients[order][:-1]
        lines = np.sort(np.frombuffer(self._lines, dtype=np.int64)[order[1:][again]])
        return int(np.unique(recipients[order[1:][again]]).size), [int(line) for line in lines]
