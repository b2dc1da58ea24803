"""This node's word about itself, written every 2 s for whoever is asked about the datacenter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from controlplane.domain.node_state import NodeState
from controlplane.errors import StoreUnavailableError
from controlplane.store.node_states import NodeStates
from controlplane.tasks import going_on

__all__ = ["Report"]

_log = structlog.get_logger()
_SECONDS = 2.0


class Report:
    """One per node."""

    def __init__(self, states: NodeStates, read: Callable[[], NodeState]) -> None:
        self._states = states
        self._read = read

    async def run(self) -> None:
        """Write until cancelled."""
        said = False
        while going_on():
            try:
                await self.write()
                said = False
            except StoreUnavailableError as error:
                if not said:
                    _log.warning("node_state_not_written", reason=str(error)[:200])
                said = True
            await asyncio.sleep(_SECONDS)

    async def write(self) -> None:
        """Write now; when the node stops, for the last time. Raises StoreUnavailableError."""
        await self._states.save(self._read())
