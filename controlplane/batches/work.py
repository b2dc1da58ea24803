"""The work at one job: its check, and its sending."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from controlplane.batches.desk import Desk
from controlplane.batches.report import Report
from controlplane.clock import Clock
from controlplane.domain.batch_job import BatchJob, JobState, Result
from controlplane.domain.sheet import Row
from controlplane.store.batch_jobs import BatchJobs
from controlplane.store.leases import Lease
from controlplane.tasks import going_on

__all__ = ["LostError", "Work"]

_log = structlog.get_logger()
_CHECKED_AT_ONCE = 100
_MOST_SPARED_SECONDS = 0.02
_PATIENCE_SECONDS = 1.0
_ERASED = "Its rows have been erased."
_IN_DOUBT = "accept-unconfirmed"


class LostError(Exception):
    """Another node has the job, or it was mapped anew, or nobody may send for it; nothing more is to be done here."""


class Work:
    """One job, as long as this node holds it."""

    def __init__(
        self,
        job: BatchJob,
        store: BatchJobs,
        desk: Desk,
        lease: Lease,
        clock: Clock,
        every: float,
        turn: asyncio.Lock,
    ) -> None:
        self._job = job
        self._store = store
        self._desk = desk
        self._lease = lease
        self._clock = clock
        self._every = every
        """Seconds between heartbeats."""
        self._turn = turn
        """Whoever checks rows holds it: all the checks of a node together leave half of its time."""
        self._kept = clock.monotonic()

    async def run(self) -> None:
        """Until it is done, or asked to end. Raises LostError, StoreUnavailableError; ValueError for a mapping that does not fit."""
        if self._job.state is JobState.CHECKING:
            await self._check()
        else:
            await self._send()

    async def _check(self) -> None:
        job, report = self._job, Report()
        for n in range(job.chunks):
            rows = await self._store.chunk(job.id, n)
            if not rows:
                await self._finish(JobState.FAILED, error=_ERASED)
                return
            for start in range(0, len(rows), _CHECKED_AT_ONCE):
                some = rows[start : start + _CHECKED_AT_ONCE]
                async with self._turn:
                    began = self._clock.monotonic()
                    for row, judged in zip(some, await self._desk.check(job, some), strict=True):
                        report.add(row.line, judged)
                    # about half of the node's time is for others
                    await asyncio.sleep(min(self._clock.monotonic() - began, _MOST_SPARED_SECONDS))
                await self._keep(report.rows)
        document = await asyncio.to_thread(report.document)  # it sorts the recipients of all rows
        await self._finish(JobState.READY, report=document, next=0)

    async def _send(self) -> None:
        while self._job.next < self._job.chunks and not self._job.cancel:
            opened = await self._store.open_chunk(self._job, self._lease)
            if opened is None:
                await self._finish(JobState.FAILED, error=_ERASED)
                return
            rows, results = opened
            if results is None:  # else who had the job before came no further
                results = await self._send_chunk(rows)
                if not await self._store.close_chunk(self._job, self._lease, results):
                    raise LostError
            await self._advance(results)
        if self._job.cancel:
            await self._recall()
        await self._finish(JobState.CANCELLED if self._job.cancel else JobState.DONE)

    async def _recall(self) -> None:
        """Who had the job before may have sent rows of the next chunk and not have said so."""
        opened = await self._store.open_chunk(self._job, self._lease)
        if opened is None:
            return
        rows, results = opened
        if results is None:
            results = await self._desk.recall(self._job, rows)
            if not any(result.status for result in results):
                return
            if not await self._store.close_chunk(self._job, self._lease, results):
                raise LostError
        await self._advance(results)

    async def _advance(self, results: Sequence[Result]) -> None:
        rejected = sum(result.status == "rejected" for result in results)
        settled = sum(bool(result.status) for result in results)
        advanced = await self._store.advance(
            self._job, self._lease, settled=settled, accepted=settled - rejected, rejected=rejected
        )
        self._held(advanced)

    async def _send_chunk(self, rows: Sequence[Row]) -> list[Result]:
        """What became of each; rows that were not sent because the job is to end have none."""
        results = [Result()] * len(rows)
        waiting = list(range(len(rows)))
        in_doubt: set[int] = set()
        """They may be accepted: asked again until that is known, whatever else is to end."""
        while waiting and going_on():
            if self._job.cancel and not (waiting := sorted(in_doubt)):
                return results
            some = waiting[: self._desk.slice(self._job)]
            seconds, why = await self._room(len(some))
            if not seconds:
                undecided = []
                for index, judged in zip(some, await self._desk.send(self._job, [rows[i] for i in some]), strict=True):
                    if judged.again:
                        undecided.append(index)
                        seconds, why = max(seconds, judged.again), judged.result.error
                        if judged.result.error == _IN_DOUBT:
                            in_doubt.add(index)
                    else:
                        results[index] = judged.result
                        in_doubt.discard(index)
                waiting[: len(some)] = undecided
            await self._pause(len(rows) - len(waiting), seconds, why)
        if waiting:
            raise asyncio.CancelledError
        return results

    async def _room(self, count: int) -> tuple[float, str]:
        """As `Desk.room`; a job for which nobody may send is let go."""
        if not self._lease.valid:
            return _PATIENCE_SECONDS, "lease"
        seconds, why = await self._desk.room(self._job, count)
        if seconds and (halted := await self._desk.halted(self._job)):
            await self._store.let_go(self._job, halted)
            _log.info("batch_job_halted", job=self._job.id, reason=halted)
            raise LostError
        return seconds, why

    async def _pause(self, within: int, seconds: float, why: str) -> None:
        """So long, with heartbeats; at least one turn of the loop."""
        until = self._clock.monotonic() + seconds
        await asyncio.sleep(min(seconds, self._every))
        await self._keep(within, why)
        while (left := until - self._clock.monotonic()) > 0 and not self._job.cancel and going_on():
            await asyncio.sleep(min(left, self._every))
            await self._keep(within, why)

    async def _keep(self, within: int, waiting: str = "") -> None:
        now = self._clock.monotonic()
        if now - self._kept >= self._every:
            self._held(await self._store.keep(self._job, self._lease, within=within, waiting=waiting))
            self._kept = now

    def _held(self, job: BatchJob | None) -> None:
        if job is None:
            raise LostError
        self._job = job

    async def _finish(self, state: JobState, **fields: object) -> None:
        if not await self._store.finish(self._job, self._lease, state, **fields):
            raise LostError
        _log.info("batch_job", job=self._job.id, state=state.value, rows=self._job.rows, accepted=self._job.accepted)
