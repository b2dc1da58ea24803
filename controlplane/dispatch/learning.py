"""What happens to messages, told to the learner; and what it learns, shared with the other nodes.

Every event that this node records about a message with a route is a fact about the route: taken, refused, delivered, not delivered, converted. A receipt
that another node's bind brings is told to that node's learner: successes are counted there and tries here, and the counts of nodes add.
"""

from __future__ import annotations

import asyncio

import structlog

from controlplane.clock import Clock
from controlplane.dispatch.owner import request_of
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, Status
from controlplane.errors import StoreUnavailableError
from controlplane.routing.learner import Arm, Learner
from controlplane.store.routing_states import RoutingState, RoutingStates
from controlplane.tasks import going_on

__all__ = ["Learning"]

_log = structlog.get_logger()
_TICK_SECONDS = 0.5
_SHARE_TICKS = 4
_FOLLOWED = 100
"""Messages a second of one route whose receipts are waited for. More would teach nothing new, and cost as much again."""
_ABOUT_THE_MESSAGE = frozenset({0x01, 0x0A, 0x0B, 0x33, 0x48, 0x49, 0x50, 0x51, 0x61, 0x62})
"""command_status that blame this message's length, addresses or times (SMPP 3.4 table 5-2): they say nothing of the route."""


class Learning:
    """One per node."""

    def __init__(
        self,
        learner: Learner,
        states: RoutingStates,
        clock: Clock,
        *,
        dc: str,
        node: str,
    ) -> None:
        self._learner = learner
        self._states = states
        self._clock = clock
        self._dc = dc
        self._node = node
        self._known: dict[str, int] = {f"{dc}/{node}": 2**63}
        self._changed = False
        self._second = 0
        self._followed: dict[str, int] = {}
        """Route → messages of this second that are followed."""

    def on_event(self, message: Message, event: Event, *, own: bool) -> None:
        """Book listener."""
        if own and message.route:
            self._changed = True
            self._observe(message, event)

    def _observe(self, message: Message, event: Event) -> None:
        learner, data = self._learner, event.data or {}
        match event.kind:
            case Kind.SUBMITTED if not message.pending:
                self._submitted(message, event.at)
            case Kind.ADOPTED if not message.final and not message.pending:
                self._submitted(message, message.updated_at)  # what its former owner knew of it has gone with it
            case Kind.DEFERRED | Kind.REROUTED | Kind.UNKNOWN | Kind.FAILED if event.route and event.reason != "resend":
                learner.refused(
                    event.route,
                    request_of(message, ()),
                    event.at,
                    permanent=data.get("command_status") in _ABOUT_THE_MESSAGE,
                    connector=data.get("connector", ""),
                )
            case Kind.DELIVERED | Kind.UNDELIVERED | Kind.EXPIRED if message.final or "tried" in data:
                if not self._owns(message) or learner.remembers(message.mid):
                    learner.receipt(message.mid, message.status is Status.DELIVERED, event.at)
            case Kind.FEEDBACK:
                delivered = message.status is Status.DELIVERED
                arm = Arm(message.route, message.connector, message.to, message.cls, delivered)
                about = message.mid if learner.remembers(message.mid) else arm
                learner.feedback(about, message.feedback == "converted", message.tenant, event.at)
            case _:
                pass

    def _owns(self, message: Message) -> bool:
        return message.owner is not None and message.owner[:2] == (self._dc, self._node)

    def _submitted(self, message: Message, at: int) -> None:
        second = at // 1000
        if second != self._second:
            self._second = second
            self._followed.clear()
        followed = self._followed.get(message.route, 0)
        if followed >= _FOLLOWED:
            return
        self._followed[message.route] = followed + 1
        request = request_of(message, ())
        self._learner.submitted(message.mid, message.route, request, at, connector=message.connector)

    async def open(self) -> None:
        """Go on from what this node knew before its restart. Raises StoreUnavailableError."""
        own = await self._states.of(self._dc, self._node)
        if own is not None:
            try:
                self._learner.restore(own.state)
            except ValueError as error:
                _log.warning("routing_state_unreadable", node=self._node, reason=str(error)[:200])
        await self._merge()

    async def run(self) -> None:
        """Keep the learner's time, write down what it knows, read what others know; until cancelled."""
        ticks = 0
        while going_on():
            await asyncio.sleep(_TICK_SECONDS)
            ticks += 1
            self._learner.tick(self._clock.now_ms())
            if ticks % _SHARE_TICKS == 0:
                try:
                    await self.share()
                except StoreUnavailableError as error:
                    _log.warning("routing_state_not_shared", reason=str(error)[:200])

    async def share(self) -> None:
        """Write what is new here, read what is new elsewhere. Raises StoreUnavailableError."""
        if self._changed:
            self._changed = False
            now = self._clock.now_ms()
            await self._states.save(RoutingState(self._dc, self._node, now, self._learner.export(now)))
        await self._merge()

    async def _merge(self) -> None:
        for item in await self._states.newer(self._known):
            self._known[item.id] = item.at
            try:
                self._learner.merge(item.id, item.state, self._clock.now_ms())
            except ValueError as error:
                _log.warning("routing_state_unreadable", node=item.id, reason=str(error)[:200])
