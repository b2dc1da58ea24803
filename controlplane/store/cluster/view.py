"""A replica set as its members tell it at one moment. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.store.client import Document
from controlplane.store.cluster.identity import members_of
from controlplane.store.cluster.members import Probe
from controlplane.store.cluster.plan import Members

__all__ = ["View"]

_HEALTHY = (1, 2)  # PRIMARY, SECONDARY: MongoDB manual, reference/replica-states


@dataclass(frozen=True, slots=True)
class View:
    """The set as its members tell it at one moment."""

    probes: dict[str, Probe]
    known: Probe | None
    """Who has the newest configuration."""

    def probe(self, host: str) -> Probe:
        """What the member said; a member that came in between has not been asked."""
        return self.probes.get(host) or Probe(host, why="was not asked yet")

    @property
    def primary(self) -> Probe | None:
        """Who says that it is the primary; of two, the one with the newer configuration (a term apart at most, for seconds)."""
        return self.known if self.known is not None and self.known.writable else None

    @property
    def config(self) -> Document | None:
        """The newest configuration."""
        return self.known.config if self.known is not None else None

    @property
    def members(self) -> Members:
        """Its members; empty before the set is initiated."""
        return members_of(self.config) if self.config is not None else ()

    @property
    def states(self) -> dict[int, str]:
        """id → state, as `known` sees it; DOWN for those that it does not reach."""
        status = self.known.status if self.known is not None else None
        return {
            int(each["_id"]): str(each["stateStr"]) if each.get("health") else "DOWN"
            for each in (status or {}).get("members", ())
        }

    @property
    def healthy(self) -> frozenset[int]:
        """Ids of PRIMARY and SECONDARY members, as the primary sees them; none without a primary."""
        status = self.primary.status if self.primary is not None else None
        return frozenset(
            int(each["_id"])
            for each in (status or {}).get("members", ())
            if each.get("health") and each.get("state") in _HEALTHY
        )

    @property
    def sure(self) -> frozenset[int]:
        """Those of `healthy` that answer us too: the primary may take ten seconds to miss one."""
        return self.healthy & {member.id for member in self.members if self.probe(member.host).hello is not None}

    def says(self, host: str) -> str:
        """The state of a member, or why it does not answer."""
        known = {member.host: member.id for member in self.members}
        return self.probe(host).why or self.states.get(known.get(host, -1), "unknown")

    @property
    def primary_id(self) -> int | None:
        """The primary's id by the status."""
        status = self.primary.status if self.primary is not None else None
        return next((int(each["_id"]) for each in (status or {}).get("members", ()) if each.get("state") == 1), None)
