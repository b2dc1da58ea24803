"""Recipients' suppressions and preferences, fetched from another datacenter's ledger each second: an opt-out counts wherever it was written."""

from __future__ import annotations

import asyncio

import structlog

from controlplane.clock import Clock
from controlplane.ledger.exchange import told
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.store.preference_news import Mark, PreferenceNews
from controlplane.tasks import going_on

__all__ = ["PreferenceExchange"]

_log = structlog.get_logger()
_PAUSE_SECONDS = 1.0
_MORE_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0
"""How long a version of the peer may be without its entry before everything is read anew."""


class PreferenceExchange:
    """One per peer, of the ledger that leads."""

    def __init__(self, news: PreferenceNews, client: LedgerClient, clock: Clock) -> None:
        self._news = news
        self._client = client
        self._clock = clock
        self._unsure = True
        """A round before may have kept records and not told the nodes."""
        self._gap_since: float | None = None
        self.problem = ""
        """Why nothing comes; empty while it does."""

    async def run(self) -> None:
        """Until cancelled."""
        while going_on():
            more = False
            try:
                more = await self.step()
                self.problem = ""
            except Exception as error:  # noqa: BLE001 - nothing that a peer tells ends the ledger
                self.problem = told("preferences_not_fetched", self._client, error, self.problem)
            await asyncio.sleep(_MORE_SECONDS if more else _PAUSE_SECONDS)

    async def step(self) -> bool:
        """Take what the peer tells at once; whether there is more. Raises PeerError, StoreUnavailableError."""
        dc, tell_all = self._client.name, self._unsure
        self._unsure = True
        mark = await self._news.heard(dc)
        news = await self._client.preferences(self._news.key_id, mark)
        try:
            await self._news.take(news.told, tell_all=tell_all)
            await self._news.take(news.scanned, tell_all=True)
        except ValueError as error:
            raise PeerError(f"{dc}: {error}"[:300]) from None
        gap = news.mark.version == mark.version < news.head
        if not gap:
            self._gap_since = None
        elif self._gap_since is None:
            self._gap_since = self._clock.monotonic()
        lost = self._gap_since is not None and self._clock.monotonic() - self._gap_since > _PATIENCE_SECONDS
        if lost:
            _log.warning("preferences_read_anew", peer=dc, missing=mark.version + 1)
            self._gap_since = None
        after = Mark() if lost else news.mark
        if after != mark:
            await self._news.hear(dc, mark, after)
        self._unsure = False
        return lost or after.scan is not None or (not gap and after.version < news.head)
