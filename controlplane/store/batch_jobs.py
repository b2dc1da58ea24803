"""Batch jobs and their rows.

| collection | one document is |
|---|---|
| batch_jobs | one job (`domain.batch_job.BatchJob`) |
| batch_rows | `<job>:<n>`: up to 500 rows of it, and what became of them |

A node that works at a job holds it: `by` is its term, `beat` moves. As with terms, nobody compares wall clocks: a job is free when nobody holds it, when its holder's
term is over, or when the beat has stood still for the lease and the margin on the looker's own clock. A chunk names who opened it last, and only that one may write
what became of its rows; so a node that comes back from a pause changes nothing any more.

Both hold personal data, and are erased when the job has been at rest for the retention.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

import structlog
from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument

from controlplane.clock import Clock
from controlplane.domain.batch_job import ENDED, BatchJob, JobState, Result
from controlplane.domain.merge import Mapping
from controlplane.domain.sheet import Row
from controlplane.store.client import Database, Document, border
from controlplane.store.leases import LIVE, Lease
from controlplane.store.schema import TERMS

__all__ = ["CHUNK_ROWS", "BatchJobs"]

_log = structlog.get_logger()
JOBS = "batch_jobs"
ROWS = "batch_rows"
CHUNK_ROWS = 500
_ACTIVE = [JobState.CHECKING.value, JobState.RUNNING.value]
_OPEN = [state.value for state in JobState if state not in ENDED]
_MAPPABLE = [JobState.MAPPING.value, JobState.CHECKING.value, JobState.READY.value]


class BatchJobs:
    """One per node. Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._jobs = database[JOBS]
        self._rows = database[ROWS]
        self._terms = database[TERMS]
        self._clock = clock
        self._seen: dict[str, tuple[str, int, float]] = {}
        """Job → (holder, beat, when this process first saw that beat)."""

    async def ensure_indexes(self) -> None:
        """Create what is missing."""
        with border():
            await self._jobs.create_indexes(
                [
                    IndexModel([("tenant", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING)], name="list"),
                    IndexModel([("state", ASCENDING), ("changed", ASCENDING)], name="state"),
                ]
            )
            await self._rows.create_indexes([IndexModel([("job", ASCENDING), ("n", ASCENDING)], name="job")])

    # -- receiving and reading -----------------------------------------------------------------------------------------

    async def create(self, job: BatchJob, *, open_jobs: int, octets: int) -> Literal["", "jobs", "octets"]:
        """What the tenant would have more of than it may: jobs that are not at their end, or octets in all jobs that are stored. "" when the job is there.

        `job.octets` says how many are to come. The job is put there first and then counted with the others: of many that come at once none is overlooked.
        """
        counted = {
            "_id": None,
            "open": {"$sum": {"$cond": [{"$in": ["$state", _OPEN]}, 1, 0]}},
            "octets": {"$sum": "$octets"},
        }
        with border():
            await self._jobs.insert_one(job.document())
            found = await self._jobs.aggregate([{"$match": {"tenant": job.tenant}}, {"$group": counted}])
            [sums] = await found.to_list()
            if sums["open"] <= open_jobs and sums["octets"] <= octets:
                return ""
            await self._jobs.delete_one({"_id": job.id})
        return "jobs" if sums["open"] > open_jobs else "octets"

    async def add_rows(self, job: str, n: int, rows: Sequence[Row]) -> bool:
        """One chunk of what is being received. False: the job is no longer received, and nothing is kept."""
        document = {"_id": f"{job}:{n}", "job": job, "n": n, "rows": [list(row) for row in rows], "results": None}
        with border():
            receiving = await self._jobs.update_one(
                {"_id": job, "state": JobState.RECEIVING.value}, {"$set": {"changed": self._clock.now_ms()}}
            )
            if receiving.matched_count:
                await self._rows.insert_one(document)
        return bool(receiving.matched_count)

    async def received(self, job: BatchJob) -> bool:
        """Everything is there. False: the job is no longer received; it was cancelled, or erased."""
        document = job.document() | {"changed": self._clock.now_ms()}
        with border():
            outcome = await self._jobs.replace_one(
                {"_id": document.pop("_id"), "state": JobState.RECEIVING.value}, document
            )
        return bool(outcome.matched_count)

    async def abandon(self, job: str) -> None:
        """Forget a table that does not come whole. A job that was cancelled meanwhile stays to be seen, without rows."""
        with border():
            await self._rows.delete_many({"job": job})
            await self._jobs.delete_one({"_id": job, "state": JobState.RECEIVING.value})
            await self._jobs.update_one({"_id": job, "state": JobState.CANCELLED.value}, {"$set": {"octets": 0}})

    async def find(self, tenant: str, job: str) -> BatchJob | None:
        """One of the tenant's."""
        with border():
            document = await self._jobs.find_one({"_id": job, "tenant": tenant})
        return BatchJob.of(document) if document else None

    async def page(self, tenant: str, before: tuple[int, str] | None, limit: int) -> list[BatchJob]:
        """The tenant's, newest first."""
        query: Document = {"tenant": tenant}
        if before is not None:
            query["$or"] = [{"at": {"$lt": before[0]}}, {"at": before[0], "_id": {"$lt": before[1]}}]
        order = [("at", DESCENDING), ("_id", DESCENDING)]
        with border():
            documents = await self._jobs.find(query).sort(order).limit(limit).to_list()
        return [BatchJob.of(document) for document in documents]

    async def chunk(self, job: str, n: int) -> list[Row]:
        """The rows of one chunk; none where it is not there."""
        with border():
            document = await self._rows.find_one({"_id": f"{job}:{n}"}, {"rows": 1})
        return [Row(*row) for row in document["rows"]] if document else []

    async def results(self, job: str) -> AsyncIterator[tuple[Row, Result]]:
        """Every row with what became of it, in order."""
        with border():
            async for document in self._rows.find({"job": job}).sort("n", ASCENDING).batch_size(2):
                rows = [Row(*row) for row in document["rows"]]
                results = [Result(*result) for result in document["results"] or [()] * len(rows)]
                for pair in zip(rows, results, strict=True):
                    yield pair

    # -- what people ask for -------------------------------------------------------------------------------------------

    async def map(self, job: BatchJob, mapping: Mapping) -> BatchJob | None:
        """Take this mapping, and check the rows (anew). None when the job is past that."""
        changes = {
            "state": JobState.CHECKING.value,
            "mapping": asdict(mapping),
            "report": None,
            "next": 0,
            "within": 0,
            "by": "",
            "error": "",
        }
        return await self._change(job, {"state": {"$in": _MAPPABLE}}, changes)

    async def start(self, job: BatchJob) -> BatchJob | None:
        """Send the rows. None when it is not ready."""
        changes = {
            "state": JobState.RUNNING.value,
            "next": 0,
            "within": 0,
            "by": "",
            "started": self._clock.now_ms(),
        }
        return await self._change(job, {"state": JobState.READY.value}, changes)

    async def cancel(self, job: BatchJob) -> BatchJob | None:
        """End it: at once where nobody sends, else after the chunk that is being sent. None when it is at its end."""
        now = self._clock.now_ms()
        idle = {"state": {"$in": [state for state in _OPEN if state != JobState.RUNNING.value]}}
        ended = {"state": JobState.CANCELLED.value, "by": "", "ended": now}
        return await self._change(job, idle, ended) or await self._change(
            job, {"state": JobState.RUNNING.value}, {"cancel": True}
        )

    async def _change(self, job: BatchJob, condition: Document, changes: Document) -> BatchJob | None:
        with border():
            document = await self._jobs.find_one_and_update(
                {"_id": job.id, "tenant": job.tenant, **condition},
                {"$set": {**changes, "changed": self._clock.now_ms()}, "$inc": {"beat": 1}},
                return_document=ReturnDocument.AFTER,
            )
        return BatchJob.of(document) if document else None

    async def erase(self, job: str, changed: int | None = None) -> bool:
        """Forget the job and its rows. False: its rows are being sent, or it has changed since `changed`, or it is gone.

        It is ended first, so that nobody begins to work at it, and due at once, so that what is cut short is found again.
        """
        condition: Document = {"_id": job, "state": {"$ne": JobState.RUNNING.value}}
        if changed is not None:
            condition["changed"] = changed
        ended = {"state": JobState.CANCELLED.value, "by": "", "changed": 0}
        with border():
            outcome = await self._jobs.update_one(condition, {"$set": ended, "$inc": {"beat": 1}})
            if outcome.matched_count:
                await self._rows.delete_many({"job": job})
                await self._jobs.delete_one({"_id": job})
        return bool(outcome.matched_count)

    async def erase_strays(self) -> None:
        """Forget rows without a job: what was still being written when it was erased."""
        with border():
            jobs = await self._rows.distinct("job")
            there = {document["_id"] async for document in self._jobs.find({"_id": {"$in": jobs}}, {"_id": 1})}
            if strays := [job for job in jobs if job not in there]:
                await self._rows.delete_many({"job": {"$in": strays}})

    async def at_rest(self, before: int, receiving_before: int) -> dict[str, int]:
        """Up to 100 jobs that nobody works at, unchanged since `before`, with when they changed; and uploads that broke off."""
        resting = [state.value for state in JobState if state.value not in (*_ACTIVE, JobState.RECEIVING.value)]
        query = {
            "$or": [
                {"state": {"$in": resting}, "changed": {"$lt": before}},
                {"state": JobState.RECEIVING.value, "changed": {"$lt": receiving_before}},
            ]
        }
        with border():
            found = self._jobs.find(query, {"changed": 1}).limit(100)
            return {document["_id"]: document["changed"] async for document in found}

    # -- working -------------------------------------------------------------------------------------------------------

    async def free(self, lease: Lease, limit: int) -> list[BatchJob]:
        """Jobs with work to do that nobody else does, those at rest for longest first."""
        now = self._clock.monotonic()
        with border():
            documents = (
                await self._jobs.find({"state": {"$in": _ACTIVE}}).sort("changed", ASCENDING).limit(limit).to_list()
            )
            holders = {document["by"] for document in documents} - {"", lease.id}
            live = {
                term["_id"]
                async for term in self._terms.find({"_id": {"$in": list(holders)}, "state": LIVE}, {"_id": 1})
            }
        seen, self._seen = self._seen, {}
        found = []
        for document in documents:
            job, by, beat = document["_id"], document["by"], document["beat"]
            before = seen.get(job)
            since = before[2] if before is not None and before[:2] == (by, beat) else now
            self._seen[job] = (by, beat, since)
            if by in ("", lease.id) or by not in live or now - since >= lease.seconds + lease.margin:
                try:
                    found.append(BatchJob.of(document))
                except (TypeError, ValueError) as error:  # a newer version wrote it, and may send it
                    if job not in seen:
                        _log.error("batch_job_not_read", job=job, reason=str(error)[:200])
        return found

    async def claim(self, job: BatchJob, lease: Lease) -> BatchJob | None:
        """Work at it, if nobody else has just begun to."""
        return await self._hold({"_id": job.id, "by": job.by, "beat": job.beat}, {"by": lease.id, "waiting": ""})

    async def let_go(self, job: BatchJob, why: str) -> None:
        """Nobody can work at it for now; it goes behind the others. Nothing where it is not as it was."""
        changes = {"by": "", "waiting": why, "changed": self._clock.now_ms()}
        await self._hold({"_id": job.id, "by": job.by, "beat": job.beat}, changes)

    async def keep(self, job: BatchJob, lease: Lease, *, within: int, waiting: str) -> BatchJob | None:
        """One heartbeat; None when the job is no longer ours."""
        return await self._hold({"_id": job.id, "by": lease.id}, {"within": within, "waiting": waiting})

    async def open_chunk(self, job: BatchJob, lease: Lease) -> tuple[list[Row], list[Result] | None] | None:
        """The rows of the next chunk, and what became of them where that is known already. None: they are erased."""
        with border():
            document = await self._rows.find_one_and_update(
                {"_id": f"{job.id}:{job.next}"}, {"$set": {"by": lease.id}}, return_document=ReturnDocument.AFTER
            )
        if document is None:
            return None
        results = document["results"]
        return [Row(*row) for row in document["rows"]], results and [Result(*result) for result in results]

    async def close_chunk(self, job: BatchJob, lease: Lease, results: Sequence[Result]) -> bool:
        """What became of the rows of the next chunk. False: another node has opened it since."""
        with border():
            outcome = await self._rows.update_one(
                {"_id": f"{job.id}:{job.next}", "by": lease.id, "results": None},
                {"$set": {"results": [list(result) for result in results]}},
            )
        return bool(outcome.matched_count)

    async def advance(
        self, job: BatchJob, lease: Lease, *, settled: int, accepted: int, rejected: int
    ) -> BatchJob | None:
        """The next chunk is done; None when the job is no longer ours."""
        return await self._hold(
            {"_id": job.id, "by": lease.id, "next": job.next},
            {"within": 0, "waiting": ""},
            {"next": 1, "settled": settled, "accepted": accepted, "rejected": rejected},
        )

    async def finish(self, job: BatchJob, lease: Lease, state: JobState, **fields: Any) -> bool:
        """It goes on to `state`. False: it is no longer ours."""
        now = self._clock.now_ms()
        ended = {"ended": now} if state in ENDED else {}
        changes = {"state": state.value, "by": "", "within": 0, "waiting": "", "changed": now, **ended, **fields}
        with border():
            outcome = await self._jobs.update_one(
                {"_id": job.id, "by": lease.id}, {"$set": changes, "$inc": {"beat": 1}}
            )
        return bool(outcome.matched_count)

    async def _hold(self, condition: Document, changes: Document, add: Document | None = None) -> BatchJob | None:
        with border():
            document = await self._jobs.find_one_and_update(
                condition, {"$set": changes, "$inc": {"beat": 1, **(add or {})}}, return_document=ReturnDocument.AFTER
            )
        return BatchJob.of(document) if document else None
