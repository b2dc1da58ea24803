"""From a replica set's present configuration to the declared one, a safe step at a time. Pure: no I/O.

MongoDB takes at most one added or removed voter in a reconfiguration, so that each majority of the old configuration meets
each of the new (https://www.mongodb.com/docs/manual/reference/command/replSetReconfig/). Beyond this rule of the server:

- who is added enters without a vote, and votes only when it is SECONDARY: an empty voter counts for the majority and cannot give one;
- who is replaced (same id, other host) gives its vote back first, for the same reason;
- the new come before the old go, unless seven vote already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from controlplane.errors import ConfigError
from controlplane.store.cluster.spec import MAX_VOTERS, Member

__all__ = ["Members", "Step", "differences", "has_majority", "next_step", "plan", "settle_ids"]

Members = tuple[Member, ...]
_NOBODY: frozenset[int] = frozenset()
_MOST_STEPS = 500  # 50 members, four steps each, and room


@dataclass(frozen=True, slots=True)
class Step:
    """One reconfiguration. `members` is the whole configuration after it."""

    change: str
    host: str
    detail: str
    members: Members
    ready: int | None = None
    """The id of the member that must be SECONDARY before this step."""
    lowers: bool = False
    """Takes a vote away: the healthy voters left must still be a majority."""


def _voters(members: Sequence[Member]) -> int:
    return sum(member.votes for member in members)


def _possible(members: Sequence[Member]) -> bool:
    return _voters(members) <= MAX_VOTERS and any(member.priority > 0 and member.votes for member in members)


def _with(members: Members, *changed: Member) -> Members:
    """`members` with those of the same id replaced and new ones appended."""
    new = {member.id: member for member in changed}
    kept = tuple(new.pop(member.id, member) for member in members)
    return kept + tuple(new.values())


def _silent(member: Member) -> Member:
    return member.model_copy(update={"votes": 0, "priority": 0.0})


def settle_ids(current: Members, declared: Members, *, apart: Set[int] = _NOBODY) -> Members:
    """The declared members under the ids that the set knows them by.

    A host keeps the id that it has. A new host gets its declared id, unless that is the id of a member that stays: then one that the set has not now.
    So whoever declares may number the members by position, and take one out of the middle.

    `apart`: ids of members that go and are well. Who comes in the place of one of them gets another id: it has its data and its vote before the old one leaves. Under the
    same id the old one would have to give its vote back first, which is right where it is dead.
    """
    known = {member.host: member.id for member in current}
    taken = {known[member.host] for member in declared if member.host in known} | set(apart)
    settled = []
    for member in declared:
        identity = known.get(member.host)
        if identity is None:
            identity = member.id
            if identity in taken:
                identity = max(*taken, *known.values(), *(each.id for each in declared)) + 1
            taken.add(identity)
        settled.append(member.model_copy(update={"id": identity}))
    return tuple(settled)


def differences(current: Members, desired: Members) -> list[str]:
    """Sentences; empty when nothing is to be done."""
    have = {member.id: member for member in current}
    want = {member.id: member for member in desired}
    found = [f"{member.host} (id {member.id}) is not in the set" for member in desired if member.id not in have]
    found += [
        f"{member.host} (id {member.id}) is in the set and not declared" for member in current if member.id not in want
    ]
    for old, new in ((have[name], want[name]) for name in want if name in have):
        for field in ("host", "priority", "votes", "hidden", "tags"):
            if getattr(old, field) != getattr(new, field):
                found.append(
                    f"{new.host} (id {new.id}) has {field} {_show(old, field)}, declared is {_show(new, field)}"
                )
    return found


def _show(member: Member, field: str) -> str:
    value = getattr(member, field)
    return f"{value:g}" if field == "priority" else str(value).lower() if field == "hidden" else str(value)


def _arrivals(current: Members, desired: Members, moved: Set[int]) -> Iterator[Step]:
    """Members that come: at a new address, added, and given their vote."""
    have = {member.id: member for member in current}
    for new in desired:
        old = have.get(new.id)
        if old is None:
            yield Step("added", new.host, f"id {new.id}, without a vote yet", _with(current, _silent(new)))
        elif old.host != new.host and new.id in moved:
            here = old.model_copy(update={"host": new.host})
            yield Step("moved", new.host, f"id {new.id} was {old.host}", _with(current, here))
        elif old.host != new.host and not old.votes:
            yield Step("replaced", new.host, f"id {new.id} was {old.host}", _with(current, _silent(new)))
    for new in desired:
        old = have.get(new.id)
        if old is not None and old.host == new.host and new.votes > old.votes:
            yield Step("votes", new.host, f"votes 1, priority {new.priority:g}", _with(current, new), ready=new.id)


def _attributes(current: Members, desired: Members) -> Iterator[Step]:
    """What changes no voter, in one step: priorities, tags, hidden."""
    have = {member.id: member for member in current}
    changed = [
        new
        for new in desired
        if (old := have.get(new.id)) is not None and (old.host, old.votes) == (new.host, new.votes) and old != new
    ]
    if changed:
        detail = "; ".join(differences(tuple(have[new.id] for new in changed), tuple(changed)))
        yield Step("changed", ", ".join(new.host for new in changed), detail, _with(current, *changed))


def _departures(current: Members, desired: Members, moved: Set[int], primary: int | None) -> Iterator[Step]:
    """Members that give back their vote or leave; the primary last, so that there are few elections."""
    want = {member.id: member for member in desired}
    for old in sorted(current, key=lambda member: (member.id == primary, member.id)):
        new = want.get(old.id)
        if new is None:
            left = tuple(member for member in current if member.id != old.id)
            yield Step("removed", old.host, f"id {old.id}", left, lowers=bool(old.votes))
        elif old.host != new.host and new.id not in moved:
            yield Step(
                "silenced",
                old.host,
                f"id {old.id} makes room for {new.host}",
                _with(current, _silent(old)),
                lowers=True,
            )
        elif old.votes > new.votes:
            yield Step("silenced", old.host, f"id {old.id}: votes 0", _with(current, new), lowers=True)


def next_step(
    current: Members, desired: Members, *, moved: Set[int] = _NOBODY, primary: int | None = None
) -> Step | None:
    """The next reconfiguration, or None at the end.

    `moved`: ids whose process already answers at the declared address (same data, other address).
    ConfigError when no safe step exists; which is known before the first one: see `plan`.
    """
    ids = {member.host: member.id for member in current}
    for new in desired:
        if ids.get(new.host, new.id) != new.id:
            raise ConfigError(
                f"{new.host} has id {ids[new.host]} in the set and is declared with id {new.id}; MongoDB does not change an id. "
                f"Declare it with id {ids[new.host]}."
            )
    if not differences(current, desired):
        return None
    steps = (
        *_arrivals(current, desired, moved),
        *_attributes(current, desired),
        *_departures(current, desired, moved, primary),
    )
    for step in steps:
        if _possible(step.members):
            return step
    raise ConfigError(
        f"No safe step leads to the declared members: {'; '.join(differences(current, desired))}. "
        "Each way leaves, for a moment, no member that could be elected. Give another voter a priority above 0 first."
    )


def plan(current: Members, desired: Members, *, moved: Set[int] = _NOBODY, primary: int | None = None) -> list[Step]:
    """All steps. ConfigError when there is no safe way."""
    steps: list[Step] = []
    while (step := next_step(current, desired, moved=moved, primary=primary)) is not None:
        steps.append(step)
        current = step.members
        if len(steps) > _MOST_STEPS:
            raise ConfigError(
                "The plan does not end; this is a defect of heliograph. Change the members in smaller steps."
            )
    return steps


def has_majority(members: Sequence[Member], healthy: Set[int]) -> bool:
    """Are the voters in `healthy` (ids) a majority of all voters?"""
    return sum(member.votes for member in members if member.id in healthy) * 2 > _voters(members)
