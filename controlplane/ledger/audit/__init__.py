"""The verification of one log: from what was signed down to each event in the store, and back.

1. `signed`: which size and root count, and whether everything that the log ever signed is of one history.
2. `neighbours`: the other fields of the log's document, the logs before and after it, the marks; of a copy, what the mirror and the witness remember.
3. `content`: tiles, from the signed root down; bundles, against the tiles of level 0.
4. `account`: canonical leaves of this datacenter, sequence numbers without holes, the index that leads to the entries, no document that is in no log.
5. `stories`: each leaf has its document, with the leaf's members and what it commits to; its predecessor in the message; erased where it was erased.

A range of a log is verified by the same code as the whole. What is found is returned, never mended here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from controlplane.clock import Clock
from controlplane.ledger.audit.account import Account
from controlplane.ledger.audit.case import Case, Holdings
from controlplane.ledger.audit.content import Content
from controlplane.ledger.audit.neighbours import Neighbours
from controlplane.ledger.audit.signed import Signed
from controlplane.ledger.audit.stories import Stories
from controlplane.ledger.check import Fault
from controlplane.ledger.tiles import WIDTH
from controlplane.settings import Settings
from controlplane.store.copies import Copies
from controlplane.store.ledger import Finding
from controlplane.store.ledger_scrub import ScrubStore

__all__ = ["Audit", "Case", "Holdings", "Progress"]

Progress = Callable[[int, int], Awaitable[None] | None]
"""Told how many entries of how many are verified."""

_BUNDLES = 16
"""Read at once: 4,096 entries."""


class Audit:
    """Of one log. `document` first, then `entries` over any range. Raises StoreUnavailableError."""

    def __init__(
        self, store: ScrubStore, copies: Copies, settings: Settings, clock: Clock, holdings: Holdings, origin: str
    ) -> None:
        self.case = Case(store, copies, settings, holdings, holdings.logs[origin], clock.now_ms())

    @property
    def found(self) -> list[Finding]:
        """What is wrong. A predecessor whose own document is missing or damaged is reported as that, not as a break of the chain."""
        bad = {each.subject for each in self.case.found if each.kind in (Fault.EVENT_MISSING, Fault.EVENT_ALTERED)}
        return [each for each in self.case.found if each.kind != Fault.CHAIN or each.subject not in bad]

    async def document(self) -> None:
        """What is signed, the log's own document, and what it says of its neighbours."""
        await Signed(self.case).check()
        await Neighbours(self.case).check()

    async def entries(
        self, first: int = 0, last: int | None = None, progress: Progress | None = None, *, hashes_only: bool = False
    ) -> None:
        """Entries `first` to `last` (inclusive; None: the last one), whole bundles of them."""
        size = self.case.tree.size
        end = size if last is None else min(size, last + 1)
        start, stop = max(0, first) // WIDTH, -(-end // WIDTH)
        content, account, stories = Content(self.case), Account(self.case), Stories(self.case)
        for at in range(start, stop, _BUNDLES):
            indices = range(at, min(stop, at + _BUNDLES))
            entries = await content.check(indices)
            if not hashes_only:
                events = await account.leaves(entries)
                await stories.check(events)
            if progress is not None:
                base = start * WIDTH
                told = progress(min(size, indices[-1] * WIDTH + WIDTH) - base, min(size, stop * WIDTH) - base)
                if told is not None:
                    await told
        if not hashes_only:
            await account.close()
            await stories.close()
