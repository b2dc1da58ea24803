"""Restarting members one at a time: a member goes only while its set stands without it, and the next one only once it is back.

The primary steps down first and never by force: when no other is caught up, the restart waits (MongoDB manual, tutorial/perform-maintence-on-replica-set-members).
"""

from __future__ import annotations

from controlplane.errors import StoreUnavailableError
from controlplane.store.cluster.identity import members_of, newest
from controlplane.store.cluster.members import Access, Connections, Probe, step_down
from controlplane.store.cluster.report import Deadline, Report
from controlplane.store.cluster.spec import MoveSpec

__all__ = ["rejoined", "release"]

_PRIMARY, _SECONDARY = 1, 2


async def release(spec: MoveSpec, access: Access, report: Report, deadline: Deadline) -> None:
    """Return once the member may be stopped: the others have a majority, and one of them is the primary.

    StoreUnavailableError when that does not come about in time. A set of one, or a member that was never initiated, is released at once;
    one that does not answer only when the others stand without it: it may yet be running.
    """
    async with Connections(access) as connections:
        while True:
            probes = await connections.probe_all(spec.members)
            voters = _voters(spec, probes)
            probes |= await connections.probe_all(voters - probes.keys())  # those who are to leave the set count too
            itself = probes[spec.member]
            if len(voters) == 1 or (itself.hello is not None and itself.config is None):
                return
            waiting = _obstacle(spec, probes)
            if not waiting:
                return
            if (
                _state(probes, spec.member) == _PRIMARY
                and _others(spec, probes)
                and not await step_down(connections, spec.set, spec.member)
            ):
                report.change("stepped_down", "another is elected", set=spec.set, member=spec.member)
            if not await deadline.pause():
                raise StoreUnavailableError(
                    f"{spec.member} of {spec.set} is not stopped: {waiting}. Nothing was changed. Bring the other members back, then run this again."
                )


async def rejoined(spec: MoveSpec, access: Access, _report: Report, deadline: Deadline) -> None:
    """Return once the member is PRIMARY or SECONDARY again. StoreUnavailableError when it is not in time."""
    async with Connections(access) as connections:
        while True:
            probe = await connections.probe(spec.member)
            if probe.hello is not None and (probe.config is None or _own_state(probe) in (_PRIMARY, _SECONDARY)):
                return
            if not await deadline.pause():
                words = probe.why or f"its state is {_own_state(probe)}"
                raise StoreUnavailableError(
                    f"{spec.member} has not joined {spec.set} again after {deadline.seconds:g} s: {words}. See its journal; the other members were left alone."
                )


def _own_state(probe: Probe) -> int:
    return int((probe.status or {}).get("myState", -1))


def _state(probes: dict[str, Probe], host: str) -> int:
    return _own_state(probes[host]) if probes[host].status else -1


def _voters(spec: MoveSpec, probes: dict[str, Probe]) -> set[str]:
    """Who votes, by the newest configuration that a member tells; the declared members before there is one."""
    known = newest(probes.values())
    if known is None or known.config is None:
        return set(spec.members)
    return {member.host for member in members_of(known.config) if member.votes}


def _others(spec: MoveSpec, probes: dict[str, Probe]) -> bool:
    """Have the others a majority of the voters, by their own word?"""
    voters = _voters(spec, probes)
    healthy = sum(_state(probes, host) in (_PRIMARY, _SECONDARY) for host in voters - {spec.member})
    return healthy >= len(voters) // 2 + 1


def _obstacle(spec: MoveSpec, probes: dict[str, Probe]) -> str:
    """Why the member must not be stopped now; "" when it may."""
    if not _others(spec, probes):
        states = ", ".join(
            f"{host} {probes[host].why or _state(probes, host)}" for host in spec.members if host != spec.member
        )
        return f"the others have no majority without it ({states})"
    if not any(_state(probes, host) == _PRIMARY for host in probes if host != spec.member):
        return "none of the others is the primary"
    return ""
