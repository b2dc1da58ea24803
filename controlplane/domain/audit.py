"""What the audit remembers of an act."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["AuditFilter", "Entry", "Outcome", "person_actor"]


class Outcome(StrEnum):
    """What came of it."""

    DONE = "done"
    REFUSED = "refused"
    """Nothing was changed: not allowed, not valid, not there."""
    FAILED = "failed"
    """It broke; whether something was changed is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One act. `id`, `at` and `node` are the store's."""

    actor: str
    """`person:<name>`, the id of an API key, or "" for somebody who did not say (or prove) who they are."""
    action: str
    """The API's operation (`createKey`), or `login`, `logout`, `reveal` …"""
    object: str = ""
    """`<collection>/<id>`: what it was done to."""
    outcome: Outcome = Outcome.DONE
    tenant: str = ""
    """The actor's."""
    address: str = ""
    rid: str = ""
    """Request id, as in the log."""
    detail: str = ""
    """A few words: from which role to which, or the problem's slug."""
    id: str = ""
    at: int = 0
    """ms since the epoch."""
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries; "" and None = all."""

    actor: str = ""
    action: str = ""
    object: str = ""
    outcome: str = ""
    since: int | None = None
    until: int | None = None
    """ms since the epoch: from then on, before then."""


def person_actor(name: str) -> str:
    """A person, as entries name them."""
    return f"person:{name}"
