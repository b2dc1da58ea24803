"""Whether another datacenter durably holds an event, as far as this node has heard: from the mirrors' cosignatures, which the ledger keeps."""

from __future__ import annotations

from controlplane.ledger.published import Published
from controlplane.store.ledger import LedgerStore

__all__ = ["Watermark"]


class Watermark:
    """One per node. `refresh`, then ask. Both raise StoreUnavailableError."""

    def __init__(self, store: LedgerStore, published: Published) -> None:
        self._store = store
        self._published = published
        self._sizes: dict[str, int] = {}
        """Log → how many of its entries a mirror holds."""

    async def refresh(self) -> bool:
        """Read the cosignatures; whether a mirror holds more than when they were last read."""
        sizes: dict[str, int] = {}
        for item in await self._store.cosignatures():
            if item.role == "mirror":
                sizes[item.origin] = max(item.size, sizes.get(item.origin, 0))
        before, self._sizes = self._sizes, sizes
        return sizes != before

    async def upto(self, dc: str, node: str, epoch: int, q: int) -> int:
        """0 while no mirror holds that event; else the number up to which what follows it in its log is held as well."""
        found = await self._published.locate(dc, node, epoch, q, self._sizes) if self._sizes else None
        return q + found[2] if found else 0
