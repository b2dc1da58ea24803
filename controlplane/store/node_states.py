"""What each node of this datacenter last said of itself: one document a node, `{_id: "<node>", at, state}`, written every 2 s by that node alone.

`at` is set and compared by the database's clock ($$NOW), so that nobody has to trust a node's. A day after its last word a node is forgotten.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from pymongo import ASCENDING, IndexModel

from controlplane.domain.node_state import NodeState, SeenNode
from controlplane.store.client import Database, border

__all__ = ["NODE_STATES", "NodeStates"]

NODE_STATES = "node_states"
_KEPT_SECONDS = 86_400


class NodeStates:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database, *, gone_seconds: float) -> None:
        self._states = database[NODE_STATES]
        self._gone = gone_seconds
        """A node that has said nothing for so long is gone: its lease is over."""

    async def ensure_indexes(self) -> None:
        """Create what is missing."""
        with border():
            await self._states.create_indexes(
                [IndexModel([("at", ASCENDING)], name="ttl", expireAfterSeconds=_KEPT_SECONDS)]
            )

    async def save(self, state: NodeState) -> None:
        """Replace the node's document. One of a later term is left alone: the former self of a restarted node says nothing any more."""
        document = {"_id": state.node, "epoch": state.epoch, "state": msgspec.to_builtins(state)}
        newer = {"$gt": [{"$ifNull": ["$epoch", 0]}, state.epoch]}
        present = {"$mergeObjects": [{"$literal": document}, {"at": "$$NOW"}]}
        with border():
            await self._states.update_one(
                {"_id": state.node}, [{"$replaceWith": {"$cond": [newer, "$$ROOT", present]}}], upsert=True
            )

    async def forget(self, node: str) -> bool:
        """Remove a node that is gone; whether there was one."""
        with border():
            return bool((await self._states.delete_one({"_id": node})).deleted_count)

    async def all(self) -> list[SeenNode]:
        """Every node's last word, by name. Those of a version whose words cannot be read are left out."""
        projection = {"state": 1, "now": "$$NOW", "at": 1}
        with border():
            documents = await self._states.find({}, projection).sort("_id", ASCENDING).to_list()
        found = []
        for document in documents:
            try:
                state = msgspec.convert(document["state"], NodeState)
            except msgspec.ValidationError:
                continue
            age = _seconds(document["at"], document["now"])
            found.append(SeenNode(state=state, age_seconds=age, gone=age > self._gone))
        return found


def _seconds(earlier: datetime, later: datetime) -> float:
    return max(0.0, (later - earlier).total_seconds())
