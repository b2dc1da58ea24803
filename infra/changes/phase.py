"""A change as phases over the `config` of a stack's file. Pure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Any

from infra.config import ConfigError

__all__ = ["CHANGE", "Config", "Fresh", "Phase", "Ups", "begun", "ended", "following", "key", "moved"]

Config = dict[str, Any]
"""`config` of a stack's file: `heliograph:region` and what stands beside it. A secret is `{"secure": ciphertext}`."""
CHANGE, DONE, TOLD = "heliograph:change", "heliograph:changed", "heliograph:told"


class Ups(StrEnum):
    """Whose `up` makes a phase so."""

    NONE = "none"
    OWN = "own"
    PEERS = "peers"
    """Of the stacks of the other regions, which are given this one's new entry first."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """What an edit needs that the stack's file does not tell. Nothing secret: new secrets are in the file already, encrypted, as `next…`."""

    today: date
    certificate: str = ""
    """PEM of the next authority."""
    public: str = ""
    """Public half of the next key."""
    former: str = ""
    """Public half of the present one."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One state on the way."""

    name: str
    says: str
    """What it brings, in a sentence."""
    edit: Callable[[Config, Fresh], None] | None = None
    """Changes the configuration, a copy, in place."""
    ups: Ups = Ups.OWN
    makes: str = ""
    """The secret (`nextAdminKey` …) that must be made before its edit."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """For the playbook."""


def key(name: str) -> str:
    """As the stack's file has it."""
    return f"heliograph:{name}"


def moved(config: Config, source: str, target: str) -> None:
    """A value, ciphertext as it stands, under another name. Pulumi's ciphertexts do not depend on the name."""
    config[key(target)] = config.pop(key(source))


def _stands(config: Config, kind: str) -> dict[str, Any] | None:
    found = config.get(CHANGE)
    if found is not None and found["kind"] != kind:
        raise ConfigError(
            f"the stack is in the middle of another change ({found['kind']}, phase {found['phase']}); go on with that one first"
        )
    return found


def following(config: Config, kind: str, phases: Sequence[Phase], by: str, today: date, *, again: bool) -> Phase | None:
    """The phase that is next: one that was begun and not ended, the one after the last that was, or the first. None when there is nothing (more) to do.

    `by` is the operation's id: what it ended itself it does not begin again. Without `again`, what was ended today is not begun a second time either.
    """
    at = _stands(config, kind)
    names = [phase.name for phase in phases]
    if at is not None:
        if at["phase"] not in names:
            raise ConfigError(
                f"heliograph:change names the phase {at['phase']!r} of {kind}, which is none of {', '.join(names)}; put back what was edited"
            )
        place = names.index(at["phase"]) + bool(at["applied"])
        return phases[place] if place < len(phases) else None
    last = config.get(DONE, {}).get(kind)
    if last is not None and (last["by"] == by or (last["on"] == today.isoformat() and not again)):
        return None
    return phases[0] if phases else None


def begun(config: Config, kind: str, phase: Phase, fresh: Fresh, **noted: Any) -> Config:
    """The configuration of a phase; as it stands where its edit was made already. `noted` stays until the change ends."""
    at = _stands(config, kind)
    if at is not None and at["phase"] == phase.name and not at["applied"]:
        return config
    edited = copy.deepcopy(config)
    if phase.edit is not None:
        phase.edit(edited, fresh)
    edited[CHANGE] = {**(at or {}), "kind": kind, "phase": phase.name, "applied": False, **noted}
    return edited


def ended(config: Config, kind: str, phase: Phase, phases: Sequence[Phase], by: str, today: date) -> Config:
    """With the phase done; after the last one nothing of the change is left but that it was made."""
    at = _stands(config, kind)
    if at is None or at["phase"] != phase.name:
        return config
    edited = copy.deepcopy(config)
    edited[CHANGE]["applied"] = True
    if phase.ups is Ups.PEERS:
        edited.pop(TOLD, None)
    if phase.name == phases[-1].name:
        del edited[CHANGE]
        edited.pop(TOLD, None)
        edited[DONE] = {**edited.get(DONE, {}), kind: {"on": today.isoformat(), "by": by}}
    return edited
