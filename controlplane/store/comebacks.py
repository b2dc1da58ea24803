"""A datacenter that comes back asks its peers whether they have taken its messages over while it was away.

Only its ledger can speak to them, so a node leaves its question here, and the ledger that leads writes the answers beside it: `comebacks` has one document for
each node that waits, `{_id: "<node>:<epoch>", answers: {peer: [[node, epoch, q], …]}}`. An answer names the peer's terms that took messages over, each with the
number of its last event: once the mirror has these, it has every `adopted` among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controlplane.store.client import Database, Document, border

__all__ = ["Answers", "Comebacks", "TakenBy"]

COMEBACKS = "comebacks"

TakenBy = tuple[str, int, int]
"""(node, epoch, q of its last event) of another datacenter's term that took messages over."""
Answers = Mapping[str, Sequence[TakenBy]]
"""By peer; those that have not answered are absent."""


class Comebacks:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database) -> None:
        self._collection = database[COMEBACKS]

    async def ask(self, identity: str) -> None:
        """Let every peer be asked for this node's term."""
        with border():
            await self._collection.replace_one({"_id": identity}, {"answers": {}}, upsert=True)

    async def answers(self, identity: str) -> Answers:
        """What is known so far."""
        with border():
            document = await self._collection.find_one({"_id": identity})
        found: Document = document["answers"] if document else {}
        return {peer: [(node, epoch, q) for node, epoch, q in terms] for peer, terms in found.items()}

    async def done(self, identity: str) -> None:
        """Nobody waits for it any more."""
        with border():
            await self._collection.delete_one({"_id": identity})

    async def waiting(self, peer: str) -> list[str]:
        """For which terms this peer is to be asked."""
        with border():
            documents = await self._collection.find({f"answers.{peer}": {"$exists": False}}, {"_id": 1}).to_list()
        return [document["_id"] for document in documents]

    async def answer(self, identities: Sequence[str], peer: str, terms: Sequence[TakenBy]) -> None:
        """What a peer says, to all that waited when it was asked."""
        with border():
            await self._collection.update_many(
                {"_id": {"$in": list(identities)}}, {"$set": {f"answers.{peer}": [list(term) for term in terms]}}
            )
