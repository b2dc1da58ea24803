"""What may be stopped. Pure, and the same for every caller: the planner asks with what is configured, an operation with what the members tell at that moment.

A replica set takes writes while a majority of its votes is healthy (MongoDB manual, "Replica Set Elections"). Nothing that takes it away is begun.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Voter", "has_majority", "live_voters", "majority", "node_refusal", "refusals"]


@dataclass(frozen=True, slots=True)
class Voter:
    """One member of a replica set. `votes` is 0 or 1; `healthy`: PRIMARY or SECONDARY, and answers."""

    name: str
    """Its endpoint, or its host, as the caller names what is to be stopped."""
    votes: int = 1
    healthy: bool = True
    why: str = ""
    """What it is instead of healthy."""


def majority(votes: int) -> int:
    """How many of so many votes must be there."""
    return votes // 2 + 1


def has_majority(voters: Iterable[Voter], without: Collection[str] = ()) -> bool:
    """Whether the healthy ones are still a majority of all votes when those named are gone. A set without votes has none."""
    known = list(voters)
    left = sum(one.votes for one in known if one.healthy and one.name not in without)
    return left >= majority(sum(one.votes for one in known))


def live_voters(described: Mapping[str, Any]) -> tuple[Voter, ...]:
    """The voters of one entry of `sets` in what `heliograph cluster status` answers: from the configuration that the set itself has."""
    return tuple(
        Voter(
            one["host"], int(one["votes"]), bool(one["healthy"] and one["answers"]), str(one.get("why") or one["state"])
        )
        for one in described["members"]
    )


def refusals(sets: Sequence[Mapping[str, Any]], stopped: Collection[str]) -> list[str]:
    """Why these endpoints must not be stopped now: a sentence for each set (as `heliograph cluster status` describes it) that would lose its majority.

    A set of one vote has nobody to wait for: stopping it is an outage that its owner chose (`safety: none`), and not refused.
    """
    found = []
    for described in sets:
        voters = live_voters(described)
        hit = [one.name for one in voters if one.name in stopped]
        votes = sum(one.votes for one in voters)
        if not hit or votes == 1 or has_majority(voters, stopped):
            continue
        sick = [f"{one.name} is {one.why}" for one in voters if not one.healthy and one.name not in stopped]
        left = sum(one.votes for one in voters if one.healthy and one.name not in stopped)
        found.append(
            f"{described['set']}: without {', '.join(hit)} {left} of {votes} votes are left, no majority"
            + (f" ({'; '.join(sick)}); bring the others back first" if sick else "; stop fewer at once")
        )
    return found


def node_refusal(ready: Mapping[str, bool], stopped: Collection[str]) -> str:
    """Why these nodes must not be stopped now: nobody would take messages. `ready`: every node of the region → whether it takes messages. "" = they may.

    The only node of a region may be: its owner chose that.
    """
    if not [name for name in stopped if name in ready] or len(ready) == 1:
        return ""
    if [name for name, well in ready.items() if well and name not in stopped]:
        return ""
    return f"without {', '.join(sorted(stopped))} no node takes messages; bring another one back first"
