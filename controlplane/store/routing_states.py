"""What each node has learned about routes, one document a node: written by its node, read by all of its datacenter, carried to the others by their ledgers.

`{_id: "<dc>/<node>", dc, at (ms, of the node's clock), state}`. The statistics of different nodes add, so nobody ever writes another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bson.binary import Binary
from pymongo.errors import DuplicateKeyError

from controlplane.store.client import Database, Document, border

__all__ = ["STATES", "RoutingState", "RoutingStates"]

STATES = "routing_states"


class RoutingState(NamedTuple):
    """What one node knew at `at`."""

    dc: str
    node: str
    at: int
    """ms since the epoch, of the node's clock: a later state of the same node replaces an earlier one."""
    state: bytes
    """controlplane.routing.learner's export."""

    @property
    def id(self) -> str:
        """`<dc>/<node>`."""
        return f"{self.dc}/{self.node}"


class RoutingStates:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database) -> None:
        self._states = database[STATES]

    async def save(self, state: RoutingState) -> None:
        """Keep it, unless a later one of that node is there."""
        document = {"dc": state.dc, "node": state.node, "at": state.at, "state": Binary(state.state)}
        with border():
            try:
                await self._states.replace_one({"_id": state.id, "at": {"$lt": state.at}}, document, upsert=True)
            except DuplicateKeyError:
                return

    async def known(self, dc: str | None = None) -> dict[str, int]:
        """id → at; of one datacenter, or of all."""
        query: Document = {} if dc is None else {"dc": dc}
        with border():
            heads = await self._states.find(query, {"at": 1}).to_list()
        return {head["_id"]: head["at"] for head in heads}

    async def newer(self, known: Mapping[str, int], dc: str | None = None) -> list[RoutingState]:
        """Those later than `known` (id → at) says; of one datacenter, or of all."""
        wanted = [identity for identity, at in (await self.known(dc)).items() if at > known.get(identity, -1)]
        if not wanted:
            return []
        with border():
            documents = await self._states.find({"_id": {"$in": wanted}}).to_list()
        return _states(documents)

    async def of(self, dc: str, node: str) -> RoutingState | None:
        """One node's."""
        with border():
            documents = await self._states.find({"_id": f"{dc}/{node}"}).to_list()
        return next(iter(_states(documents)), None)


def _states(documents: Sequence[Document]) -> list[RoutingState]:
    return [RoutingState(d["dc"], d["node"], d["at"], bytes(d["state"])) for d in documents]
