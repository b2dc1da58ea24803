"""The ledger role: every process serves the peers, one of them leads. Who leads sequences, mirrors, shows checkpoints to witnesses, scrubs and repairs.

It stands beside the message path and never in it: while no ledger runs, events wait in the store, and are sequenced later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Self

import structlog
from prometheus_client import CollectorRegistry

from controlplane.clock import Clock, SystemClock
from controlplane.domain.events import Kind
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.chunk import DamagedCopyError, RefusedReplyError
from controlplane.ledger.comeback import Inquiry
from controlplane.ledger.exchange import Exchange, StatisticsExchange
from controlplane.ledger.index import Indexer
from controlplane.ledger.index_gauges import IndexGauges
from controlplane.ledger.lead import Leadership
from controlplane.ledger.mirror import Mirror
from controlplane.ledger.news import News, look_again
from controlplane.ledger.note import Verifier
from controlplane.ledger.peer_api import PeerServer, PeerServices, create_app
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.ledger.preferences import PreferenceExchange
from controlplane.ledger.published import Published
from controlplane.ledger.publisher import Publisher
from controlplane.ledger.repair import Leader, Repair
from controlplane.ledger.scrub import Scrub
from controlplane.ledger.sequencer import DamagedLogError, Sequencer
from controlplane.ledger.start import RestoredError, StartRule
from controlplane.ledger.trust import Trust
from controlplane.ledger.witness import Forks, Witness
from controlplane.serving import listen, serve
from controlplane.settings import Settings
from controlplane.store.client import Database, connect
from controlplane.store.comebacks import Comebacks
from controlplane.store.committer import Committer
from controlplane.store.copies import Copies
from controlplane.store.events import EventReader
from controlplane.store.leases import HostLock
from controlplane.store.ledger import LEDGER_NODE, LedgerStore, Log, StaleWriterError
from controlplane.store.ledger_scrub import ScrubStore
from controlplane.store.preference_news import PreferenceNews
from controlplane.store.preferences import PreferenceStore
from controlplane.store.regions import RegionStore
from controlplane.store.routing_states import RoutingStates
from controlplane.store.schema import wait_for_indexes
from controlplane.store.search import SearchStore
from controlplane.store.search_tokens import Tokens
from controlplane.store.statistics import Statistics
from controlplane.tasks import going_on
from controlplane.telemetry.logs import configure

__all__ = ["Ledger", "run_ledger"]

_log = structlog.get_logger()
_PAUSE_SECONDS = 0.5
_DAMAGED_SECONDS = 5.0


class _TermOverError(Exception):
    """This term ends: another ledger leads, or a new one must begin."""


class Ledger:
    """One ledger process, wired."""

    def __init__(self, settings: Settings, clock: Clock, database: Database, lock: HostLock) -> None:
        self.settings = settings
        self.database = database
        self.clock = clock
        self._lock = lock
        self.store = LedgerStore(database)
        self.copies = Copies(database, self.store)
        self.routing = RoutingStates(database)
        self.statistics = Statistics(database, datacenter=settings.datacenter)
        recipients = PreferenceStore(database, settings.secret, clock, settings.datacenter)
        self.preferences = PreferenceNews(database, recipients)
        self.published = Published(self.store, clock)
        self.leadership = Leadership(self.store, settings, clock, lock.host)
        self.sequencer: Sequencer | None = None
        self.indexer: Indexer | None = None
        self.mirrors: list[Mirror] = []
        self.publishers: list[Publisher] = []
        self.exchanges: list[PreferenceExchange] = []
        self.news = News()
        self._round = asyncio.Lock()
        """Held by a round, and by repair while it ends a log."""
        self.problem = ""
        """Why a leader does not sequence; empty while it does."""
        forks = Forks(self.store, self.copies, clock, self.record)
        self._forks = forks
        self.registry = CollectorRegistry()
        self.registry.register(IndexGauges(lambda: self.indexer, clock))
        services = PeerServices(
            settings=settings,
            clock=clock,
            store=self.store,
            published=self.published,
            witness=Witness(self.copies, forks, settings, clock),
            forks=forks,
            health=self.health,
            registry=self.registry,
            routing=self.routing,
            preferences=self.preferences,
            regions=RegionStore(database),
            statistics=self.statistics,
            news=self._wait,
        )
        self.app = create_app(services)

    @classmethod
    async def open(cls, settings: Settings, clock: Clock | None = None) -> Self:
        """Lock the name, wait for MongoDB. Raises ConfigError, StoreUnavailableError."""
        clock = clock or SystemClock()
        settings.ledger_seed  # noqa: B018 - refuses settings without a key
        lock = HostLock(settings.state_dir, settings.node)
        database = connect(settings)
        try:
            await wait_for_indexes(database, clock)
            ledger = cls(settings, clock, database, lock)
            await ledger.store.ensure_indexes()
        except BaseException:
            await database.client.close()
            lock.release()
            raise
        return ledger

    def health(self) -> tuple[bool, Mapping[str, str]]:
        """Ready means: it leads and sequences, or waits for its turn."""
        checks = {
            "role": "leads" if self.leadership.term else "waits",
            "sequencing": self.problem or "ok",
            "preferences": next((one.problem for one in self.exchanges if one.problem), "ok"),
        }
        return not self.problem, checks

    async def record(self, kind: Kind, ref: str, reason: str | None = None) -> None:
        """Write an event of the ledger's own. Raises StoreUnavailableError where this process does not lead."""
        if self.sequencer is None:
            raise StoreUnavailableError("This ledger does not lead; the leader writes it when it finds the same.")
        await self.sequencer.record(kind, ref, reason)

    async def run(self, stop: asyncio.Event) -> None:
        """Lead whenever it is this process's turn, until `stop` is set."""
        async with asyncio.TaskGroup() as group:
            leading = group.create_task(self._take_turns())
            await stop.wait()
            leading.cancel()

    async def close(self) -> None:
        """Let go of MongoDB and of the name."""
        await self.database.client.close()
        self._lock.release()

    # -- leading -------------------------------------------------------------------------------------------------------

    async def _take_turns(self) -> None:
        while going_on():
            try:
                term = await self.leadership.acquire()
            except StoreUnavailableError as error:
                _log.warning("lease_not_read", reason=str(error)[:200])
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            # A group that fails leaves its task marked as cancelled (Python 3.11): each term has a task of its own.
            async with asyncio.TaskGroup() as group:
                group.create_task(self._lead(term))

    async def _lead(self, term: int) -> None:
        """One term, until it is over."""
        _log.info("leading", term=term)
        try:
            async with self._equipped(term) as parts, asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(part)
        except* _TermOverError as group:
            _log.warning("term_over", term=term, reason=str(group.exceptions[0])[:200])
        finally:
            await self._step_down()

    async def _step_down(self) -> None:
        self.sequencer, self.mirrors, self.publishers, self.exchanges = None, [], [], []
        self.indexer = None
        term, self.problem = self.leadership.term, ""
        try:
            async with asyncio.timeout(2.0):
                await self.leadership.release()
        except (StoreUnavailableError, TimeoutError) as error:
            _log.warning("lease_not_released", term=term, reason=str(error)[:200])

    @asynccontextmanager
    async def _equipped(self, term: int) -> AsyncIterator[list[Coroutine[Any, Any, None]]]:
        """All that a leader does, as coroutines that run until cancelled."""
        settings, store = self.settings, self.store
        await store.add_source(LEDGER_NODE, term)
        committer = Committer(
            self.database, datacenter=settings.datacenter, node=LEDGER_NODE, epoch=term, clock=self.clock
        )
        self.sequencer = Sequencer(store, committer, settings, self.clock, term=term, at=self._told)
        trust = Trust(settings)
        async with AsyncExitStack() as clients:
            peers = [
                await clients.enter_async_context(LedgerClient.of_peer(peer, settings))
                for peer in settings.ledger_peers
            ]
            witnesses = [
                await clients.enter_async_context(LedgerClient.of_witness(witness))
                for witness in settings.ledger_witnesses
            ]
            rule = StartRule(store, self.copies, settings, self.clock, self._forks, peers, witnesses)
            for peer, client in zip(settings.ledger_peers, peers, strict=True):
                self.mirrors.append(Mirror(store, self.copies, peer, settings, self.clock, client, self._forks))
                self._publish(client, trust.cosigner_of(peer, "witness"))
            for witness, client in zip(settings.ledger_witnesses, witnesses, strict=True):
                self._publish(client, Verifier.parse(witness.vkey))
            scrub_store = ScrubStore(self.database)
            scrub = Scrub(scrub_store, self.copies, settings, self.clock)
            leader = Leader(
                record=self.record,
                append=committer.append,
                seal=partial(self._seal, self.sequencer),
                catch_up=lambda: rule.catch_up(term),
            )
            repair = Repair(scrub_store, self.copies, scrub, settings, self.clock, peers, leader)
            parts: list[Coroutine[Any, Any, None]] = [self._renew(), committer.run(), scrub.run(), repair.run()]
            self.indexer = self._indexing(self.sequencer, term)
            parts += [self._sequence(self.sequencer, rule), self._index(self.indexer)]
            parts += [mirror.run() for mirror in self.mirrors]
            parts += [publisher.run() for publisher in self.publishers]
            parts += [Exchange(self.routing, client).run() for client in peers]
            parts += [StatisticsExchange(self.statistics, client).run() for client in peers]
            self.exchanges = [PreferenceExchange(self.preferences, client, self.clock) for client in peers]
            parts += [exchange.run() for exchange in self.exchanges]
            parts += [Inquiry(Comebacks(self.database), client, settings.datacenter).run() for client in peers]
            yield parts

    def _indexing(self, sequencer: Sequencer, term: int) -> Indexer:
        return Indexer(
            self.store,
            self.copies,
            SearchStore(self.database),
            EventReader(self.database, self.settings.datacenter),
            Tokens(self.settings.secret),
            self.clock,
            term=term,
            waiting=lambda: bool(self.problem or sequencer.backlog or sequencer.gaps),
        )

    async def _index(self, indexer: Indexer) -> None:
        """Raises _TermOverError."""
        try:
            await indexer.run()
        except StaleWriterError as error:
            raise _TermOverError(str(error)) from error

    def _publish(self, client: LedgerClient, verifier: Verifier) -> None:
        self.publishers.append(
            Publisher(self.store, self.published, client, verifier, self.clock, self._forks, self.news.wait)
        )

    async def _seal(self, sequencer: Sequencer, reason: str, ended: Log) -> Log:
        async with self._round:
            return await sequencer.seal(reason, ended)

    def _told(self, step: str) -> None:
        if step == "committed":
            self.news.tell()

    async def _wait(self) -> None:
        """The leader hears of its own rounds; the others look."""
        await (self.news.wait() if self.leadership.term else look_again())

    async def _renew(self) -> None:
        """Raises _TermOverError."""
        while going_on():
            await asyncio.sleep(self.settings.lease_renew_seconds)
            try:
                if not await self.leadership.renew():
                    raise _TermOverError("another ledger has the lease")
            except StoreUnavailableError as error:
                _log.warning("lease_not_renewed", reason=str(error)[:200])

    async def _sequence(self, sequencer: Sequencer, rule: StartRule) -> None:
        """Rounds at their times; at once where there is more. Raises _TermOverError."""
        opened = False
        self.problem = "it has not asked its peers yet what they know of its log"
        while going_on():
            began = self.clock.monotonic()
            pause = self.settings.ledger_round_ms / 1000
            try:
                if not opened:
                    await rule.allow()
                async with self._round:
                    if not opened:
                        await sequencer.open()
                        opened = True
                    await sequencer.round()
                self.problem = ""
            except StaleWriterError as error:
                raise _TermOverError(str(error)) from error
            except RestoredError as error:
                self._explain(str(error))
                await self._catch_up(rule)
            except (DamagedLogError, DamagedCopyError, StoreUnavailableError) as error:
                opened = False
                pause = _PAUSE_SECONDS if isinstance(error, StoreUnavailableError) else _DAMAGED_SECONDS
                self._explain(str(error))
            else:
                if sequencer.backlog:
                    continue
            await asyncio.sleep(max(0.0, began + pause - self.clock.monotonic()))

    def _explain(self, problem: str) -> None:
        if self.problem != problem[:300]:
            _log.error("not_sequencing", reason=problem[:300])
        self.problem = problem[:300]

    async def _catch_up(self, rule: StartRule) -> None:
        """This database was put back to an older state. Fetch what it lacks, then let a new term ask again. Raises _TermOverError."""
        try:
            fetched = await rule.catch_up(self.leadership.term)
        except (PeerError, RefusedReplyError, DamagedCopyError, StaleWriterError, StoreUnavailableError) as error:
            self._explain(f"{self.problem}; and catching up failed: {error}")
            await asyncio.sleep(_DAMAGED_SECONDS)
        else:
            raise _TermOverError(f"{fetched} entries were fetched from peers")


async def run_ledger(settings: Settings) -> None:
    """`heliograph ledger`: until SIGTERM or SIGINT."""
    configure(settings.log_level, as_json=settings.log_json)
    listener = listen(settings, backlog=256)
    ledger = await Ledger.open(settings)
    _log.info("ledger_starting", node=settings.node, address=f"{settings.host}:{settings.port}")
    try:
        await serve(ledger.run, PeerServer(ledger.app, settings), listener)
    finally:
        await ledger.close()
        _log.info("ledger_stopped", node=settings.node)
