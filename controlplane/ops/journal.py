"""What a run wrote down: which steps are done, which was under way when it was cut, and what is still to be taken back. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Journal", "read"]


@dataclass(frozen=True, slots=True)
class Journal:
    """One operation's."""

    done: tuple[str, ...] = ()
    """Steps, in order."""
    open: tuple[str, ...] = ()
    """Begun and not done. Each may be begun again: what is done twice changes nothing."""
    owed: tuple[str, ...] = ()
    """To be taken back: `balancer`, `node <name>`."""
    total: int | None = None
    """Steps that there are; None where that is not known."""
    passed: int | None = None
    """Steps that the last run is past, those that had nothing to change too."""


def read(lines: Iterable[str]) -> Journal:
    """From its lines; one that was cut is left out, since what it tells of had not begun."""
    done: dict[str, None] = {}
    begun: dict[str, None] = {}
    owed: dict[str, None] = {}
    passed: dict[str, None] = {}
    total: int | None = None
    for line in lines:
        try:
            found = json.loads(line)
            entry, step = found["entry"], found["step"]
        except (ValueError, KeyError, TypeError):
            continue
        match entry:
            case "begun":
                begun[step] = None
            case "done":
                begun.pop(step, None)
                done[step] = None
            case "owed":
                owed[step] = None
            case "settled":
                owed.pop(step, None)
            case "expected" if str(step).isdecimal():
                total = int(step)
                passed.clear()
            case "passed":
                passed[step] = None
    return Journal(tuple(done), tuple(begun), tuple(owed), total, None if total is None else len(passed))
