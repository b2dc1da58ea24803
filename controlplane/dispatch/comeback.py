"""Coming back: a datacenter that was away for so long that another may have taken its messages over touches none of them before it knows.

A node that finds no other node of its datacenter alive within the last minute asks all peers, by way of the ledger (`controlplane.store.comebacks`), and waits
until the mirror holds what they did: the messages that are theirs are then seen to be. Until then no term that is over is adopted, so nothing that was open
before is sent. New messages are taken and sent as ever. A node that is restarted within a minute, or beside others, asks nobody: a datacenter that answers is not
adopted. Wall clocks are compared here, those of this datacenter's own hosts, and to a minute; leases never do that.

The minute counts from when a node was last known to act *without* waiting here, so that one which waits is no witness for the next.
"""

from __future__ import annotations

import asyncio

import structlog

from controlplane.clock import Clock
from controlplane.errors import StoreUnavailableError
from controlplane.settings import Settings
from controlplane.store.comebacks import Answers, Comebacks
from controlplane.store.leases import Lease
from controlplane.store.ledger import LedgerStore
from controlplane.store.regions import RegionStore
from controlplane.tasks import going_on

__all__ = ["Comeback"]

_log = structlog.get_logger()
_ADOPTABLE_MS = 60_000
"""A peer adopts a datacenter that has been silent for a minute (api.regions)."""
_LOST_SECONDS = 20.0
"""For so long a peer is waited for whose messages were taken over here: it is lost itself, or has come back."""
_POLL_SECONDS = 0.5


class Comeback:
    """One per node and epoch."""

    def __init__(
        self,
        comebacks: Comebacks,
        regions: RegionStore,
        ledger: LedgerStore,
        settings: Settings,
        lease: Lease,
        clock: Clock,
    ) -> None:
        self._comebacks = comebacks
        self._regions = regions
        self._ledger = ledger
        self._settings = settings
        self._lease = lease
        self._clock = clock
        self._peers = frozenset(peer.dc for peer in settings.ledger_peers)
        asks = bool(self._peers) and lease.away_ms is not None and lease.away_ms >= _ADOPTABLE_MS
        lease.undoubted = not asks or settings.dispatch_without_peers
        self.problem = "" if lease.undoubted else "it has not asked the peers yet"
        """Why the messages that were open before are not touched; empty when they may be."""
        if asks and lease.undoubted:
            _log.warning(
                "comeback_not_asked", away_seconds=(lease.away_ms or 0) // 1000, setting="dispatch_without_peers"
            )

    def clear(self) -> bool:
        """Whether what was open before may be touched."""
        return self._lease.undoubted

    async def run(self) -> None:
        """Until it is known, or cancelled."""
        if self._lease.undoubted:
            return
        began = self._clock.monotonic()
        _log.warning("comeback", away_seconds=(self._lease.away_ms or 0) // 1000, peers=sorted(self._peers))
        asked = False
        while going_on():
            try:
                if not asked:
                    await self._comebacks.ask(self._lease.id)
                    asked = True
                problem = await self._look(self._clock.monotonic() - began)
                if not problem:
                    self.problem, self._lease.undoubted = "", True
                    await self._comebacks.done(self._lease.id)
                    _log.info("comeback_clear", seconds=round(self._clock.monotonic() - began, 1))
                    return
                self._explain(problem)
            except StoreUnavailableError as error:
                if self._lease.undoubted:
                    return  # a question that nobody needs any more stays behind
                self._explain(str(error)[:200])
            await asyncio.sleep(_POLL_SECONDS)

    def _explain(self, problem: str) -> None:
        if problem != self.problem:
            _log.warning("former_messages_wait", reason=problem)
        self.problem = problem

    async def _look(self, waited: float) -> str:
        """What is still missing; "" for nothing. Raises StoreUnavailableError."""
        answers = await self._comebacks.answers(self._lease.id)
        silent = self._peers - answers.keys()
        if silent and waited >= _LOST_SECONDS:
            silent -= await self._regions.adopted()
        if silent:
            return (
                f"{', '.join(sorted(silent))} has not said whether it took over what was open here; "
                "see to its ledger and to the one here, or set HELIOGRAPH_DISPATCH_WITHOUT_PEERS"
            )
        return await self._unmirrored(answers)

    async def _unmirrored(self, answers: Answers) -> str:
        for peer, terms in answers.items():
            if not terms:
                continue
            sizes = {log.origin: log.size for log in await self._ledger.logs(own=False, dc=peer)}
            for node, epoch, q in terms:
                if await self._ledger.covered(peer, node, epoch, sizes) < q:
                    return f"{peer} took messages over, and what it did is not mirrored here yet"
        return ""
