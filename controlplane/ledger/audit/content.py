"""Tiles and bundles: every byte against the signed root."""

from __future__ import annotations

from controlplane.ledger.audit.case import Case
from controlplane.ledger.check import Fault, decode_some, differing, stretches
from controlplane.ledger.proven import Place, width_of
from controlplane.ledger.tiles import HASH_BYTES, TILE_BYTES, WIDTH, tile_hashes
from controlplane.store.ledger_scrub import Blob

__all__ = ["Content"]


class Content:
    """Of one log."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._tree = case.tree
        self._seen: set[Place] = set()

    async def check(self, indices: range) -> list[tuple[int, bytes]]:
        """Bundles with these indices, and the tiles above them; (index, entry) of all entries that are proven."""
        await self._above(indices)
        origin = self._case.log.origin
        bundles = await self._case.store.bundle_blobs(origin, indices)
        tiles = await self._case.store.tile_blobs(origin, [(0, index) for index in indices])
        good: list[tuple[int, bytes]] = []
        for index in indices:
            proven = await self._tile((0, index), tiles.get((0, index)))
            good += self._bundle(index, bundles.get(index), proven)
        return good

    async def _above(self, indices: range) -> None:
        wanted = [
            (level, index)
            for level in range(7, 0, -1)
            for index in range(indices[0] >> 8 * level, (indices[-1] >> 8 * level) + 1)
            if width_of(self._tree.size, level, index) > 0 and (level, index) not in self._seen
        ]
        stored = await self._case.store.tile_blobs(self._case.log.origin, wanted) if wanted else {}
        for place in wanted:
            self._seen.add(place)
            await self._tile(place, stored.get(place))

    async def _tile(self, place: Place, stored: Blob | None) -> bytes | None:
        """Compare a stored tile with the proven one; the latter."""
        level, index = place
        width = width_of(self._tree.size, level, index)
        cut = stored.data[: width * HASH_BYTES] if stored else b""
        proven = cut if await self._tree.proves(level, index, cut) else await self._tree.tile(level, index)
        detail = ""
        if proven is None:
            detail = "neither what is stored nor what is below it leads to the signed root"
        elif stored is None:
            detail = "it is missing"
        elif len(cut) < len(proven):
            detail = f"it has {len(cut) // HASH_BYTES} whole hashes, not {width}"
        elif cut != proven:
            places = ", ".join(map(str, differing(cut, proven)[:8]))
            detail = f"hashes {places} are not those that the signed root proves"
        elif len(stored.data) > TILE_BYTES or len(stored.data) % HASH_BYTES:
            detail = "what stands behind its hashes is none"
        if detail:
            first = index << 8 * (level + 1)
            last = min(self._tree.size, first + (width << 8 * level)) - 1
            self._case.fault(Fault.TILE, first, last, f"{level}/{index}", detail)
        if stored is not None:
            self._writer(f"tile {level}/{index}", stored, len(stored.data) // HASH_BYTES, place)
        return proven

    def _bundle(self, index: int, stored: Blob | None, proven: bytes | None) -> list[tuple[int, bytes]]:
        width, base = width_of(self._tree.size, 0, index), index * WIDTH
        every, problem = decode_some(stored.data) if stored else ([], "it is missing")
        entries = every[:width]
        if stored is not None and entries:
            self._writer(f"bundle {index}", stored, len(every), (0, index))
        hashes = tile_hashes(entries)
        if hashes == proven:
            if problem or (width == WIDTH and len(every) > WIDTH):
                end = base + width - 1
                self._case.fault(
                    Fault.BUNDLE, end, end, str(index), f"what stands behind its entries is none: {problem}"
                )
            return list(enumerate(entries, base))
        if proven is None:
            detail = problem or "neither it nor its tile leads to the signed root"
            self._case.fault(Fault.BUNDLE, base, base + width - 1, str(index), detail)
            return []
        bad = differing(hashes, proven)
        for low, high in stretches(bad):
            detail = "not the entries that the signed root proves"
            if low >= len(entries):
                detail = problem or f"it ends after {len(entries)} of {width} entries"
            self._case.fault(Fault.BUNDLE, base + low, base + high, str(index), detail)
        wrong = set(bad)
        return [(base + at, entry) for at, entry in enumerate(entries) if at not in wrong]

    def _writer(self, subject: str, stored: Blob, width: int, place: Place) -> None:
        """A document at the right edge must not be marked as written by somebody who is yet to come: he would be refused."""
        level, index = place
        if width_of(self._tree.size, level, index) >= WIDTH or (width >= WIDTH and not self._case.log.own):
            return  # nobody writes it again
        if self._case.log.own:
            wrong = not 0 <= stored.ver >> 32 <= self._case.holdings.term
        else:  # a mirror's writer is the size that the log has with it
            most = max(width, width_of(self._tree.size, level, index))
            wrong = stored.ver < 0 or (stored.ver >> 8 * level) - index * WIDTH > most
        if wrong:
            detail = f"it is marked as written by {stored.ver}, which is yet to come"
            first = index << 8 * (level + 1)
            self._case.fault(Fault.WRITER, first, first, subject, detail)
