"""Staying in office: renew the lease, write the checkpoint. A node that is fenced ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from controlplane.errors import StoreUnavailableError
from controlplane.store.leases import Checkpoint, Lease, Terms
from controlplane.tasks import going_on

__all__ = ["FencedError", "Tenure"]

_log = structlog.get_logger()


class FencedError(Exception):
    """Another node has taken this term over. The process must end and begin a new term; it may submit nothing more."""


class Tenure:
    """One per node and epoch."""

    def __init__(self, terms: Terms, lease: Lease, checkpoint: Callable[[], Checkpoint], renew_seconds: float) -> None:
        self._terms = terms
        self._lease = lease
        self._checkpoint = checkpoint
        self._renew_seconds = renew_seconds
        self._released = False

    async def run(self) -> None:
        """Renew until cancelled or released. Raises FencedError."""
        while going_on() and not self._released:
            try:
                await self._terms.renew(self._lease, self._checkpoint())
            except StoreUnavailableError as error:
                _log.warning("lease_not_renewed", reason=str(error)[:200], still_valid=self._lease.valid)
            if self._lease.fenced and not self._released:  # one that was under way meets what we gave back ourselves
                raise FencedError(f"term {self._lease.id} was taken over by another node; start this node again")
            await asyncio.sleep(self._renew_seconds)

    async def release(self) -> None:
        """End the term: everything in memory is settled or in the checkpoint."""
        self._released = True
        await self._terms.release(self._lease, self._checkpoint())
