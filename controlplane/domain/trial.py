"""What a trial of a connector's settings found: each step in words. Pure shapes."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Step", "Trial"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was tried."""

    step: str
    """slot, dns, tcp, tls, bind, enquire_link or unbind."""
    ok: bool
    detail: str
    ms: int
    """How long it took."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The steps up to the first that failed."""

    steps: list[Step]
    next_step: str
    """What to do about it; nothing to do: says so."""

    @property
    def ok(self) -> bool:
        """Whether every step was."""
        return all(step.ok for step in self.steps)

    def document(self) -> dict[str, Any]:
        """As the API shows it."""
        last = self.steps[-1]
        return {
            "ok": self.ok,
            "result": "The carrier takes this account." if self.ok else last.detail,
            "next_step": self.next_step,
            "milliseconds": sum(step.ms for step in self.steps),
            "steps": [msgspec.to_builtins(step) for step in self.steps],
        }
