"""The composition root: builds a node from its settings, starts it in order, stops it in order. Tests use it too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Self

import structlog

from controlplane import __version__
from controlplane.api.app import create_app
from controlplane.api.auth import act_for
from controlplane.api.grants import Grants
from controlplane.api.peers import Peers
from controlplane.api.server import Server
from controlplane.api.services import Health, Services
from controlplane.batches.runner import BatchRunner
from controlplane.callbacks.deliver import Deliverer
from controlplane.callbacks.guard import ForbiddenTargetError, check_url
from controlplane.callbacks.sign import new_secret
from controlplane.clock import Clock, SystemClock
from controlplane.console.app import create_console
from controlplane.console.backend import Backend, Visitor
from controlplane.console.services import ConsoleServices
from controlplane.dispatch.adopt import Adopter
from controlplane.dispatch.binds import Binds
from controlplane.dispatch.comeback import Comeback
from controlplane.dispatch.gate import Gate
from controlplane.dispatch.hold import Hold
from controlplane.dispatch.learning import Learning
from controlplane.dispatch.outbox import Outbox
from controlplane.dispatch.outcome import Judge
from controlplane.dispatch.owner import Owner
from controlplane.dispatch.region import RegionAdopter
from controlplane.dispatch.tallies import Tallies
from controlplane.dispatch.tenure import Tenure
from controlplane.dispatch.trial import BindTrial
from controlplane.domain.catalog import Connector, RoutingMode, Snapshot
from controlplane.domain.node_state import ConnectorState, HeldBack, NodeState
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.published import Published
from controlplane.ledger.standing import Standing
from controlplane.ledger.watermark import Watermark
from controlplane.receipts.correlate import Correlator
from controlplane.receipts.inbound import Inbound
from controlplane.receipts.ingest import Ingest
from controlplane.receipts.keywords import Keywords
from controlplane.routing import LearnedRouter, Learner, StaticRouter
from controlplane.routing import Terms as RoutingTerms
from controlplane.serving import listen, serve
from controlplane.settings import Settings
from controlplane.smpp.pdu import DataSm, DeliverSm
from controlplane.store.audit import AuditStore
from controlplane.store.batch_jobs import BatchJobs
from controlplane.store.book import Book, Listener
from controlplane.store.callback_log import CallbackLog
from controlplane.store.catalog import Catalog
from controlplane.store.client import Database, connect
from controlplane.store.comebacks import Comebacks
from controlplane.store.committer import Committer
from controlplane.store.erasure import Retention
from controlplane.store.events import EventReader
from controlplane.store.inbound_parts import InboundParts
from controlplane.store.intents import IntentLog
from controlplane.store.invitations import Invitations
from controlplane.store.leases import Checkpoint, HostLock, Lease, Terms
from controlplane.store.ledger_scrub import ScrubStore
from controlplane.store.login_delays import LoginDelays
from controlplane.store.operations import Operations
from controlplane.store.orphans import OrphanStore
from controlplane.store.people import People
from controlplane.store.preferences import PreferenceStore
from controlplane.store.recipients import Recipients
from controlplane.store.regions import RegionStore
from controlplane.store.routing_states import RoutingStates
from controlplane.store.schema import wait_for_indexes
from controlplane.store.seal import Seal
from controlplane.store.search_read import Search
from controlplane.store.sessions import Sessions
from controlplane.store.slots import Slots
from controlplane.telemetry.logs import configure
from controlplane.telemetry.metrics import Metrics
from controlplane.telemetry.watch import Watch

__all__ = ["Node", "run_node"]

_log = structlog.get_logger()


class Node:
    """One node: everything that `heliograph node` runs, wired. `open` reads what it needs of MongoDB; `run` runs until cancelled or fenced."""

    def __init__(self, settings: Settings, clock: Clock, database: Database, lock: HostLock, lease: Lease) -> None:
        self.settings = settings
        self.database = database
        self.lease = lease
        self._clock = clock
        self._lock = lock
        self.metrics = Metrics()
        self.seal = Seal(settings.secret)
        self.reader = EventReader(database, settings.datacenter)
        self.search = Search(database, self.reader, settings.secret, clock)
        self.catalog = Catalog(database, self.seal)
        self.recipients = Recipients(PreferenceStore(database, settings.secret, clock, settings.datacenter), clock)
        self.terms = Terms(database, settings, clock)
        self.committer = Committer(
            database,
            datacenter=settings.datacenter,
            node=settings.node,
            epoch=lease.epoch,
            clock=clock,
            unsafe=settings.commit_unsafe,
            observe=self.metrics.on_commit,
        )
        self.book = Book(
            self.committer,
            self.reader,
            lease,
            clock,
            max_open=settings.max_open_messages,
            max_queue=settings.max_commit_queue,
            accept_timeout=settings.accept_timeout_seconds,
        )
        self.intents = IntentLog(database, settings.node, lease.epoch, clock)
        self.callback_log = CallbackLog(database, clock)
        self.deliverer = Deliverer(self.catalog, self.reader, self.callback_log, settings, clock)
        self.ledger = ScrubStore(database)
        self.published = Published(self.ledger, clock)
        self.standing = Standing(self.ledger, self.published, self.reader, settings, clock)
        self.regions = RegionStore(database)
        self.operations = Operations(database, clock, settings.datacenter)
        self._wire_dispatch()
        self._started_at = clock.now_ms()
        self.watch = Watch(
            database,
            settings,
            lease,
            clock,
            state=self.state,
            catalog=lambda: self.catalog.snapshot,
            standing=self.standing,
            callbacks=self.callback_log,
            deadlines_ms={cls: own.deadline_ms for cls, own in self.learner.tuning.classes.items()},
        )
        self._wire_receipts()
        self.tenure = Tenure(self.terms, lease, self.checkpoint, settings.lease_renew_seconds)
        self.comeback = Comeback(Comebacks(database), self.regions, self.ledger, settings, lease, clock)
        self.adopter = Adopter(
            database, self.terms, lease, self.book, self.reader, self.deliverer.recover, clock, self.comeback.clear
        )
        self.region_adopter = RegionAdopter(
            self.regions,
            self.reader,
            self.book,
            lease,
            clock,
            max_open=settings.max_open_messages,
            receipt_grace_seconds=settings.receipt_grace_seconds,
        )
        self.retention = Retention(
            database, self.book, self.reader, self.regions, lambda: self.catalog.snapshot, lease, clock
        )
        listeners: tuple[Listener, ...] = (
            self.metrics.on_event,
            self.correlator.on_event,
            self.owner.on_event,
            self.learning.on_event,
            self.deliverer.on_event,
            self.tallies.on_event,
            self.watch.recorder.on_event,
        )
        for listener in listeners:
            self.book.subscribe(listener)
        self.metrics.watch(self._gauges, self._connector_gauges)
        self.metrics.watch_ledger(lambda: self.standing.last)
        self.people = People(database, self.seal, clock)
        self.links = Invitations(database, clock)
        self.sessions = Sessions(database, self.seal, clock)
        self.delays = LoginDelays(database, clock)
        self.audit = AuditStore(database, clock, node=settings.node, keep_days=settings.audit_days)
        self.batch_jobs = BatchJobs(database, clock)
        self.app = create_app(self._services())
        self.batch_runner = BatchRunner(
            self.batch_jobs,
            self.app.state.rows,
            lease,
            clock,
            renew_seconds=settings.lease_renew_seconds,
            keep_days=settings.batch_job_days,
        )
        self._wire_console()

    def _wire_dispatch(self) -> None:
        settings = self.settings
        self.learner = Learner(node=f"{settings.datacenter}/{settings.node}")
        self.router = LearnedRouter(
            StaticRouter(lambda: self.catalog.snapshot, lambda: self.binds.live),
            self.learner,
            mode=self._routing_mode,
            terms=self._routing_terms,
            now_ms=self._clock.now_ms,
        )
        self.learning = Learning(
            self.learner, RoutingStates(self.database), self._clock, dc=settings.datacenter, node=settings.node
        )
        self.hold = Hold(
            self.book,
            Watermark(self.ledger, self.published),
            self.lease,
            self._clock,
            patience_seconds=self.settings.accept_timeout_seconds,
        )
        self.owner = Owner(
            self.book,
            self.router,
            lambda: self.binds.outboxes,
            self.hold,
            self._clock,
            receipt_grace_seconds=self.settings.receipt_grace_seconds,
            sends_on=lambda tenant: self._routing_mode(tenant) == RoutingMode.LEARNED,
        )
        self.owner.gate = Gate(self.recipients, lambda: self.catalog.snapshot, self.owner.look)
        self._judge = Judge(self.book, self.intents, self._clock, self.owner.next_route, self.owner.landed)
        slots = Slots(self.database, self.lease, self._clock)
        self.tallies = Tallies(self._clock)
        self.binds = Binds(
            self._make_outbox,
            self._judge,
            self._on_deliver,
            slots,
            self._clock,
            self.owner.evacuate,
            self.tallies,
        )
        self.trial = BindTrial(slots, self._clock)

    def _on_deliver(self, connector: Connector, pdu: DeliverSm | DataSm, answer: Callable[[int], None]) -> None:
        self.ingest.on_deliver(connector, pdu, answer)

    def _make_outbox(self, connector: Connector) -> Outbox:
        outbox = Outbox(connector, self.book, self.intents, self.lease, self._clock)
        outbox.admits = self.owner.admits
        outbox.forget = self.owner.unqueued
        outbox.unsendable = self._judge.unsendable
        return outbox

    def _wire_console(self) -> None:
        services = self.app.state.services

        def grant(visitor: Visitor, tenant: str) -> AbstractContextManager[str]:
            return act_for(services, visitor.person, tenant=tenant, own=visitor.tenant, scopes=visitor.scopes)

        console = ConsoleServices(
            settings=self.settings,
            clock=self._clock,
            people=self.people,
            links=self.links,
            sessions=self.sessions,
            delays=self.delays,
            audit=self.audit,
            stopping=lambda: self.book.closing,
        )
        self.app.mount("/console", create_console(console, Backend(self.app, grant)))

    def _wire_receipts(self) -> None:
        settings = self.settings
        orphans = OrphanStore(self.database, self._clock, keep_days=settings.orphan_days)
        self.correlator = Correlator(self.book, self.reader, orphans, self.owner.onward)
        inbound = Inbound(
            self.book,
            InboundParts(self.database, self._clock),
            settings.secret,
            self._clock,
            self._tenant_of,
            Keywords(self.recipients, lambda: self.catalog.snapshot),
        )
        self.ingest = Ingest(self.correlator, inbound, orphans, self._clock)

    def _routing_mode(self, tenant: str) -> str:
        found = self.catalog.snapshot.tenants.get(tenant)
        return found.routing if found else RoutingMode.STATIC

    def _routing_terms(self, tenant: str, cls: str) -> RoutingTerms | None:
        found = self.catalog.snapshot.tenants.get(tenant)
        given = found.routing_terms.get(cls) if found else None
        return RoutingTerms(**given) if given else None

    def _tenant_of(self, connector: str) -> str:
        found = self.catalog.snapshot.connectors.get(connector)
        return found.tenant if found else ""

    def _services(self) -> Services:
        return Services(
            settings=self.settings,
            clock=self._clock,
            seal=self.seal,
            grants=Grants(),
            book=self.book,
            events=self.reader,
            search=self.search,
            catalog=self.catalog,
            recipients=self.recipients,
            batch_jobs=self.batch_jobs,
            router=self.router,
            learner=self.learner,
            peers=Peers(self.settings.node, self.terms.url_of),
            callbacks=self.deliverer,
            callback_log=self.callback_log,
            check_callback_url=self._check_callback_url,
            people=self.people,
            links=self.links,
            sessions=self.sessions,
            audit=self.audit,
            wait_for_mirror=self.hold.wait,
            ledger=self.ledger,
            published=self.published,
            standing=self.standing,
            regions=self.regions,
            operations=self.operations,
            adoption=self.region_adopter,
            new_callback_secret=new_secret,
            watch=self.watch,
            try_bind=self.trial.run,
            health=self.health,
            registry=self.metrics.registry,
        )

    def _check_callback_url(self, url: str) -> str | None:
        try:
            check_url(url, allow_private=self.settings.callback_allow_private)
        except ForbiddenTargetError as error:
            return str(error)
        return None

    # -- what it says of itself ----------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """From where a successor would have to read now."""
        q, stragglers = self.book.watermark()
        return Checkpoint(
            q=q,
            stragglers=stragglers,
            callbacks_q=self.deliverer.settled_q(self.committer.settled_q),
            intent=self.intents.settled,
        )

    def connector_states(self) -> list[ConnectorState]:
        """Each connector as this node sees it."""
        return [self.tallies.state(outbox, binds, outbox.oldest_due()) for outbox, binds in self.binds.states()]

    def state(self) -> NodeState:
        """What this node says of itself to whoever asks about the datacenter."""
        health = self.health()
        return NodeState(
            node=self.settings.node,
            datacenter=self.settings.datacenter,
            epoch=self.lease.epoch,
            version=__version__,
            started_at=self._started_at,
            url=self.settings.peer_url,
            ready=health.ready,
            checks=health.checks,
            stopping=self.book.closing,
            gauges={name.removeprefix("heliograph_"): value for name, value in self._gauges().items()},
            connectors=self.connector_states(),
            held_back=[HeldBack(*place) for place in self.learner.open_breakers()],
        )

    def health(self) -> Health:
        """Ready means: the lease is valid, MongoDB confirms, and the node is not stopping. Former messages that wait for the peers stop no new ones."""
        failing = self.committer.failing_since
        checks = {
            "lease": "ok" if self.lease.valid else "no valid lease",
            "store": "ok" if failing is None else f"no commit for {self._clock.monotonic() - failing:.0f} s",
            "running": "stopping" if self.book.closing else "ok",
        }
        ready = all(value == "ok" for value in checks.values())
        return Health(ready, checks | {"former_messages": self.comeback.problem or "ok"})

    def _gauges(self) -> dict[str, float]:
        return {
            "heliograph_open_messages": len(self.book.open),
            "heliograph_queued_messages": self.owner.queued,
            "heliograph_held_messages": len(self.hold),
            "heliograph_commit_queue": self.committer.queued,
            "heliograph_lease_valid": float(self.lease.valid),
            "heliograph_former_messages_wait": float(bool(self.comeback.problem)),
            "heliograph_receipts_waiting": self.ingest.waiting,
            "heliograph_receipts_refused": self.ingest.refused,
            "heliograph_receipts_orphaned": self.ingest.orphaned,
            "heliograph_callbacks_waiting": self.deliverer.waiting,
            "heliograph_callbacks_sent": self.deliverer.sent,
            "heliograph_callbacks_failed": self.deliverer.failed,
            "heliograph_erased_messages": self.retention.erased,
        }

    def _connector_gauges(self) -> dict[str, dict[str, float]]:
        return {
            state.name: {
                "heliograph_connector_queued": state.queued,
                "heliograph_connector_rate": state.rate,
                "heliograph_connector_bound": sum(bind.bound for bind in state.binds),
                "heliograph_connector_in_flight": sum(bind.in_flight for bind in state.binds),
            }
            for state in self.connector_states()
        }

    # -- life ----------------------------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, settings: Settings, clock: Clock | None = None) -> Self:
        """Lock the node's name, wait for MongoDB, begin a term. Raises ConfigError, StoreUnavailableError."""
        clock = clock or SystemClock()
        lock = HostLock(settings.state_dir, settings.node)
        database = connect(settings)
        try:
            await wait_for_indexes(database, clock)
            lease = await Terms(database, settings, clock).open(lock.host)
            node = cls(settings, clock, database, lock, lease)
            for keeper in (
                *(node.callback_log, node.batch_jobs, node.watch, node.recipients.store),
                *(node.links, node.sessions, node.delays, node.audit),
            ):
                await keeper.ensure_indexes()
            await node.catalog.refresh()
            await node.learning.open()
            await node.recipients.refresh()
        except BaseException:
            await database.client.close()
            lock.release()
            raise
        return node

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set; then stop in order. Raises an ExceptionGroup when a part fails (FencedError: start anew)."""
        core = [self.committer.run(), self.intents.run(), self.book.run(), self.tenure.run()]
        work = [
            self.owner.run(),
            self.hold.run(),
            self.binds.run(),
            self.ingest.run(),
            self.deliverer.run(),
            self.catalog.run(),
            self.recipients.run(),
            self.comeback.run(),
            self.adopter.run(),
            self.region_adopter.run(),
            self.retention.run(),
            self.batch_runner.run(),
            self.standing.run(),
            self.learning.run(),
            *self.watch.runs(),
        ]
        self.catalog.subscribe(self._on_catalog)
        async with asyncio.TaskGroup() as group:
            core_tasks = [group.create_task(part) for part in core]
            work_tasks = [group.create_task(part) for part in work]
            await stop.wait()
            await self._stop()
            for task in (*work_tasks, *core_tasks):
                task.cancel()

    def _on_catalog(self, snapshot: Snapshot) -> None:
        self.binds.on_catalog(snapshot)
        self.owner.reroute()

    async def _stop(self) -> None:
        """No new messages, no new submits, answers awaited, everything committed, the term given back."""
        self.book.closing = True
        await self.binds.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.accept_timeout_seconds):
                await self.committer.drain()
                await self.learning.share()
                await self.watch.stop()
                await self.intents.flush()
        self.committer.close()
        try:
            await self.tenure.release()
        except StoreUnavailableError as error:
            _log.warning("term_not_released", reason=str(error)[:200])

    async def close(self) -> None:
        """Let go of MongoDB and of the node's name."""
        await self.watch.close()
        await self.database.client.close()
        self._lock.release()


async def run_node(settings: Settings) -> None:
    """`heliograph node`: serve until SIGTERM or SIGINT, then stop in order."""
    configure(settings.log_level, as_json=settings.log_json)
    listener = listen(settings, backlog=2048)
    node = await Node.open(settings)
    _log.info("node_starting", node=settings.node, epoch=node.lease.epoch, address=f"{settings.host}:{settings.port}")
    try:
        await serve(node.run, Server(node.app, settings), listener)
    finally:
        await node.close()
        _log.info("node_stopped", node=settings.node, epoch=node.lease.epoch)
