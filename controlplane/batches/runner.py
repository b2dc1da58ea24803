"""Takes the jobs that nobody works at, and erases those that have been at rest for long enough."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import structlog

from controlplane.batches.desk import Desk
from controlplane.batches.work import LostError, Work
from controlplane.clock import Clock
from controlplane.domain.batch_job import BatchJob, JobState
from controlplane.errors import StoreUnavailableError
from controlplane.store.batch_jobs import BatchJobs
from controlplane.store.leases import Lease
from controlplane.tasks import going_on

__all__ = ["BatchRunner"]

_log = structlog.get_logger()
_POLL_SECONDS = 0.5
_SWEEP_SECONDS = 60.0
_UPLOAD_MS = 3_600_000
"""An upload of which nothing came for so long has broken off."""
_DAY_MS = 86_400_000
_AT_ONCE = 16
_LOOKED_AT = 200
_HALTED_SECONDS = 5.0
"""After so long it is looked again whether a halted job may go on."""


class BatchRunner:
    """One per node and epoch. Jobs of one tenant are sent one after the other on a node: they share its rate anyway."""

    def __init__(
        self, store: BatchJobs, desk: Desk, lease: Lease, clock: Clock, *, renew_seconds: float, keep_days: int
    ) -> None:
        self._store = store
        self._desk = desk
        self._lease = lease
        self._clock = clock
        self._renew_seconds = renew_seconds
        self._keep_ms = keep_days * _DAY_MS
        self._at: dict[str, BatchJob] = {}
        """Jobs that this node works at."""
        self._halted: dict[str, float] = {}
        """Job for which nobody may send → when that was found, on the monotonic clock."""
        self._turn = asyncio.Lock()
        self._swept = clock.monotonic()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while going_on():
                try:
                    if self._lease.valid:
                        await self._take(group)
                    await self._sweep()
                except StoreUnavailableError as error:
                    _log.warning("batch_jobs_not_read", reason=str(error)[:200])
                except Exception:  # noqa: BLE001 - batch jobs stand still, the node goes on
                    _log.exception("batch_jobs_failed")
                await asyncio.sleep(_POLL_SECONDS)

    async def _take(self, group: asyncio.TaskGroup) -> None:
        if len(self._at) >= _AT_ONCE:
            return
        now = self._clock.monotonic()
        self._halted = {job: since for job, since in self._halted.items() if now - since < _HALTED_SECONDS}
        for job in self._next(await self._store.free(self._lease, _LOOKED_AT)):
            # what is only checked sends nothing, and what is to end can end
            if job.state is JobState.RUNNING and not job.cancel and (why := await self._desk.halted(job)):
                self._halted[job.id] = now
                await self._store.let_go(job, why)
                continue
            claimed = await self._store.claim(job, self._lease)
            if claimed is not None:
                self._at[job.id] = claimed
                group.create_task(self._work(claimed))

    def _next(self, jobs: Iterable[BatchJob]) -> list[BatchJob]:
        busy = {(job.tenant, job.state) for job in self._at.values()}
        chosen: list[BatchJob] = []
        for job in jobs:
            if (
                (job.tenant, job.state) not in busy
                and job.id not in self._at
                and (job.cancel or job.id not in self._halted)
                and len(chosen) < _AT_ONCE - len(self._at)
            ):
                busy.add((job.tenant, job.state))
                chosen.append(job)
        return chosen

    async def _work(self, job: BatchJob) -> None:
        """One job; whatever goes wrong with it, the others go on. What was cut short is claimed again."""
        try:
            await Work(job, self._store, self._desk, self._lease, self._clock, self._renew_seconds, self._turn).run()
        except LostError:
            _log.info("batch_job_lost", job=job.id)
        except StoreUnavailableError as error:
            _log.warning("batch_job_interrupted", job=job.id, reason=str(error)[:200])
        except Exception:  # noqa: BLE001 - one job's fault is no other's
            _log.exception("batch_job_failed", job=job.id)
            with suppress(StoreUnavailableError):
                await self._store.finish(job, self._lease, JobState.FAILED, error="A fault of ours; the log has it.")
        finally:
            self._at.pop(job.id, None)

    async def _sweep(self) -> None:
        now = self._clock.monotonic()
        if now - self._swept < _SWEEP_SECONDS:
            return
        self._swept = now
        await self.sweep()

    async def sweep(self) -> int:
        """Erase what is due; how many jobs. Raises StoreUnavailableError."""
        now = self._clock.now_ms()
        due = await self._store.at_rest(now - self._keep_ms, now - _UPLOAD_MS)
        erased = [await self._store.erase(job, changed) for job, changed in due.items()]
        await self._store.erase_strays()
        return sum(erased)
