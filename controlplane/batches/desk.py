"""Where rows become messages: what batch jobs need of the acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controlplane.domain.batch_job import BatchJob, Judged
from controlplane.domain.sheet import Row

__all__ = ["Desk"]


class Desk(Protocol):
    """The API implements it."""

    def room(self, job: BatchJob, count: int) -> tuple[float, str]:
        """(0, "") when so many messages of the job may be accepted now: they count against the tenant's rate. Else (seconds to wait, why)."""
        ...

    def slice(self, job: BatchJob) -> int:
        """How many rows to send at once."""
        ...

    async def send(self, job: BatchJob, rows: Sequence[Row]) -> list[Judged]:
        """Accept them as messages; one outcome a row, in order."""
        ...

    async def check(self, job: BatchJob, rows: Sequence[Row]) -> list[Judged]:
        """What would become of them."""
        ...
