"""What a node knows of the deployment beside its messages: all nodes' states, statistics, MongoDB's topology, alerts. One place that wires and runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from controlplane.clock import Clock
from controlplane.domain.catalog import Snapshot
from controlplane.domain.node_state import NodeState, SeenNode
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.standing import Standing
from controlplane.settings import Settings
from controlplane.store.alerts import Alerts
from controlplane.store.callback_log import CallbackLog
from controlplane.store.client import Database
from controlplane.store.leases import Lease
from controlplane.store.node_states import NodeStates
from controlplane.store.statistics import Statistics
from controlplane.store.topology import Topology
from controlplane.tasks import going_on
from controlplane.telemetry.evaluator import Evaluator
from controlplane.telemetry.report import Report
from controlplane.telemetry.statistics import Recorder

__all__ = ["Watch"]

_log = structlog.get_logger()
_PAUSE_SECONDS = 5.0


class Watch:
    """One per node."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        lease: Lease,
        clock: Clock,
        *,
        state: Callable[[], NodeState],
        catalog: Callable[[], Snapshot],
        standing: Standing,
        callbacks: CallbackLog,
        deadlines_ms: Mapping[str, int],
    ) -> None:
        self._own = state
        self.states = NodeStates(database, gone_seconds=settings.lease_seconds + settings.lease_margin_seconds)
        self.statistics = Statistics(database, datacenter=settings.datacenter)
        self.alerts = Alerts(database)
        self.topology = Topology(database, settings)
        self.report = Report(self.states, state)
        self.recorder = Recorder(
            self.statistics, clock, term=lease.id, routes=lambda: catalog().routes, deadlines_ms=deadlines_ms
        )
        self.evaluator = Evaluator(
            node=settings.node,
            datacenter=settings.datacenter,
            alerts=self.alerts,
            states=self.states,
            statistics=self.statistics,
            standing=standing,
            topology=self.topology,
            callbacks=callbacks,
            catalog=catalog,
            clock=clock,
        )

    async def ensure_indexes(self) -> None:
        """Create what is missing. Raises StoreUnavailableError."""
        for keeper in (self.states, self.statistics, self.alerts):
            await keeper.ensure_indexes()

    def runs(self) -> list[Coroutine[Any, Any, None]]:
        """What runs beside the node, and never ends it."""
        return [_kept_up(part.run) for part in (self.report, self.recorder, self.evaluator)]

    async def nodes(self) -> list[SeenNode]:
        """All nodes of this datacenter, by name, this one as it is at this moment. Raises StoreUnavailableError."""
        own = self._own()
        others = [seen for seen in await self.states.all() if seen.state.node != own.node]
        return sorted([*others, self._seen(own)], key=lambda seen: seen.state.node)

    async def nodes_or_self(self) -> list[SeenNode]:
        """`nodes`; this one alone while MongoDB is away."""
        try:
            return await self.nodes()
        except StoreUnavailableError:
            return [self._seen(self._own())]

    def _seen(self, own: NodeState) -> SeenNode:
        return SeenNode(state=own, age_seconds=0.0, gone=False)

    async def stop(self) -> None:
        """The last counts, and the last word, if MongoDB takes them. Raises nothing: the node gives its term back after it."""
        for last in (self.recorder.flush, self.report.write):
            try:
                await last()
            except StoreUnavailableError as error:
                _log.warning("last_word_not_written", reason=str(error)[:200])
                return
            except Exception:  # noqa: BLE001 - logged whole, as in _kept_up
                _log.exception("watch_failed")

    async def close(self) -> None:
        """Let go of MongoDB's members."""
        await self.topology.close()


async def _kept_up(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run until cancelled, again after a fault: who only watches must not stop those who send."""
    while going_on():
        try:
            await run()
        except Exception:  # noqa: BLE001 - logged whole; whatever it is, messages go on
            _log.exception("watch_failed")
            await asyncio.sleep(_PAUSE_SECONDS)
