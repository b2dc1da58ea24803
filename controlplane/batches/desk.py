"""Where rows become messages: what batch jobs need of the acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controlplane.domain.batch_job import BatchJob, Judged, Result
from controlplane.domain.sheet import Row

__all__ = ["Desk"]


class Desk(Protocol):
    """The API implements it."""

    async def halted(self, job: BatchJob) -> str:
        """Why nobody may send for the job, for as long as that lasts; "" when its sender may. Raises StoreUnavailableError."""
        ...

    async def room(self, job: BatchJob, count: int) -> tuple[float, str]:
        """(0, "") when so many messages of the job may be accepted now: they count against the tenant's rate. Else (seconds to wait, why)."""
        ...

    def slice(self, job: BatchJob) -> int:
        """How many rows to send at once."""
        ...

    async def send(self, job: BatchJob, rows: Sequence[Row]) -> list[Judged]:
        """Accept them as messages; one outcome a row, in order."""
        ...

    async def recall(self, job: BatchJob, rows: Sequence[Row]) -> list[Result]:
        """What was accepted of them before, in order; `Result()` for the others, and nothing is accepted now. Raises StoreUnavailableError."""
        ...

    async def check(self, job: BatchJob, rows: Sequence[Row]) -> list[Judged]:
        """What would become of them."""
        ...
