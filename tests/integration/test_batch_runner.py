"""The background work at batch jobs: nobody's job keeps another's back, and nothing that is being sent, or personal, is forgotten or left."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace

import pytest

from controlplane.batches.report import Report
from controlplane.batches.runner import BatchRunner
from controlplane.clock import SystemClock
from controlplane.domain.batch_job import BatchJob, JobState, Judged, Result
from controlplane.domain.catalog import Key
from controlplane.domain.events import Kind
from controlplane.domain.merge import Mapping
from controlplane.domain.sheet import Row
from controlplane.store.batch_jobs import BatchJobs
from controlplane.store.leases import Lease
from controlplane.store.seal import new_key

CLOCK = SystemClock()
CSV = {"content-type": "text/csv"}


class Desk:
    """Accepts every row, and keeps what it was asked."""

    def __init__(self) -> None:
        self.keys_gone: set[str] = set()
        self.sent: list[tuple[str, int]] = []
        self.accepted: dict[tuple[str, int], Result] = {}
        self.spin = 0.0
        self.checking = self.most_checking = 0

    async def halted(self, job):
        return "its API key is gone" if job.key in self.keys_gone else ""

    async def room(self, job, count):
        return (0.2, "its API key is gone") if job.key in self.keys_gone else (0, "")

    def slice(self, job):
        return 200

    async def send(self, job, rows):
        self.sent += [(job.id, row.line) for row in rows]
        return [self.accept(job, row) for row in rows]

    def accept(self, job, row) -> Judged:
        result = self.accepted[job.id, row.line] = Result(f"m{row.line}", "accepted")
        return Judged(result)

    async def recall(self, job, rows):
        return [self.accepted.get((job.id, row.line), Result()) for row in rows]

    async def check(self, job, rows):
        self.checking += 1
        self.most_checking = max(self.most_checking, self.checking)
        await asyncio.sleep(0)
        until = time.perf_counter() + self.spin
        while time.perf_counter() < until:
            pass
        self.checking -= 1
        return [Judged(Result(status="accepted"), to=row.cells[0]) for row in rows]


@pytest.fixture
async def store(database) -> BatchJobs:
    store = BatchJobs(database, CLOCK)
    await store.ensure_indexes()
    return store


@pytest.fixture
def desk() -> Desk:
    return Desk()


def runner_of(store, desk, node="node-1") -> BatchRunner:
    lease = Lease("dc", node, 1, CLOCK, 3.0, 0.5, confirmed=float("inf"))
    return BatchRunner(store, desk, lease, CLOCK, renew_seconds=0.1, keep_days=7)


@asynccontextmanager
async def working(runner):
    async with asyncio.TaskGroup() as group:
        task = group.create_task(runner.run())
        yield task
        task.cancel()


def a_job(name: str, state: JobState = JobState.RUNNING, **fields) -> BatchJob:
    values = {"tenant": "sample", "key": "good", "at": 1, "changed": 1, "rows": 1, "chunks": 1, "mapping": Mapping()}
    return BatchJob(id=name, state=state, **(values | fields))


async def put(store, *jobs: BatchJob, rows: int = 1) -> None:
    chunks = [
        {"_id": f"{job.id}:{n}", "job": job.id, "n": n, "rows": [list(Row(line, [f"+49{line}"])) for line in range(n * rows + 2, (n + 1) * rows + 2)], "results": None}
        for job in jobs for n in range(job.chunks)
    ]  # fmt: skip
    await store._jobs.insert_many([job.document() for job in jobs])
    await store._rows.insert_many(chunks)


async def reaches(store, job: str, state: JobState, tenant: str = "sample") -> BatchJob:
    async with asyncio.timeout(15):
        while (found := await store.find(tenant, job)) is None or found.state is not state:
            await asyncio.sleep(0.02)
    return found


class TestHalted:
    """Jobs for which nobody may send keep no slot, no tenant and no place among those that are looked at."""

    async def test_others_go_on(self, store, desk):
        desk.keys_gone.add("gone")
        halted = [a_job(f"h{n}", tenant=f"t{n % 60}", key="gone", changed=n) for n in range(240)]
        await put(store, *halted, a_job("same", tenant="t0", changed=900), a_job("other", changed=901))
        async with working(runner_of(store, desk)):
            await reaches(store, "same", JobState.DONE, "t0")
            await reaches(store, "other", JobState.DONE)
            assert {job for job, _ in desk.sent} == {"same", "other"}
            assert await store._rows.distinct("job", {"by": {"$exists": True}}) == ["other", "same"]
            waiting = await store.find("t7", "h7")
            assert (waiting.state, waiting.waiting, waiting.by) == (JobState.RUNNING, "its API key is gone", "")
            assert waiting.changed > 901
            desk.keys_gone.clear()
            done = await reaches(store, "h7", JobState.DONE, "t7")
            assert (done.accepted, done.waiting) == (1, "")

    async def test_what_is_to_end_ends(self, store, desk):
        desk.keys_gone.add("gone")
        await put(store, a_job("job", key="gone"))
        async with working(runner_of(store, desk)):
            async with asyncio.timeout(5):
                while not (await store.find("sample", "job")).waiting:
                    await asyncio.sleep(0.02)
            assert (await store.cancel(await store.find("sample", "job"))).cancel
            await reaches(store, "job", JobState.CANCELLED)
        assert desk.sent == []

    async def test_a_key_that_goes_in_the_middle(self, node, carriers):
        """The tenant's next job goes on; and of the halted one, each message that was accepted is in the results when it is cancelled."""
        await node.connect(await carriers())
        catalog, database = node.node.catalog, node.node.database
        await catalog.put(replace(catalog.snapshot.tenants["sample"], rate=100))
        own = catalog.snapshot.keys[node.node.seal.digest_key(node.key)]
        spare = new_key()
        digest = node.node.seal.digest_key(spare)
        await catalog.put(
            Key(id="spare", tenant="sample", name="spare", scopes=own.scopes, digest=digest, hint=spare[:12])
        )

        async def ready(count: int, key: str) -> str:
            lines = "".join(f"+49151{number:08d},x\n" for number in range(count))
            status, job = await node.call(
                "POST", "/v1/batch-jobs", data=f"to,body\n{lines}".encode(), headers=CSV, key=key
            )
            assert status == 201, job
            await reaches(node.node.batch_jobs, job["id"], JobState.READY)
            return job["id"]

        first, second = await ready(400, node.key), await ready(3, spare)
        for job in (first, second):
            assert (await node.call("POST", f"/v1/batch-jobs/{job}/start", key=spare))[0] == 202
        accepted = {"kind": Kind.ACCEPTED.value}
        async with asyncio.timeout(20):
            while await database["events"].count_documents(accepted) < 60:
                await asyncio.sleep(0.02)
        await catalog.put(replace(own, enabled=False))
        await reaches(node.node.batch_jobs, second, JobState.DONE)
        halted = await node.node.batch_jobs.find("sample", first)
        assert (halted.state, halted.waiting) == (JobState.RUNNING, "its API key is disabled or gone")
        assert (await node.call("POST", f"/v1/batch-jobs/{first}/cancel", key=spare))[0] == 202
        ended = await reaches(node.node.batch_jobs, first, JobState.CANCELLED)
        sent = await database["events"].count_documents(accepted) - 3
        assert 60 - 3 <= sent < 400
        assert (ended.accepted, ended.settled) == (sent, sent)
        results = [result async for _, result in node.node.batch_jobs.results(first)]
        mids = await database["events"].distinct("mid", accepted)
        assert {result.id for result in results if result.status == "accepted"} < set(mids)
        assert sum(result.status == "accepted" for result in results) == sent


class TestChecks:
    """All the checks of a node together leave half of its time."""

    async def test_one_after_the_other(self, store, desk):
        desk.spin = 0.015
        jobs = [a_job(f"j{n}", JobState.CHECKING, tenant=f"t{n}", chunks=4) for n in range(8)]
        await put(store, *jobs, rows=100)
        began = time.perf_counter()
        async with working(runner_of(store, desk)):
            for n in range(8):
                ready = await reaches(store, f"j{n}", JobState.READY, f"t{n}")
                assert ready.report["good"] == 400
        assert desk.most_checking == 1
        assert time.perf_counter() - began > 2 * 8 * 4 * desk.spin

    async def test_the_report_is_made_beside_the_loop(self, store, desk, monkeypatch):
        threads, document = [], Report.document

        def noted(report):
            threads.append(threading.current_thread())
            return document(report)

        monkeypatch.setattr(Report, "document", noted)
        await put(store, a_job("job", JobState.CHECKING))
        async with working(runner_of(store, desk)):
            await reaches(store, "job", JobState.READY)
        assert len(threads) == 1
        assert threads[0] is not threading.main_thread()


class TestReceiving:
    """A job that was ended while its table came stays ended, and no rows stay behind."""

    async def test_cancelled_meanwhile(self, store):
        job = a_job("job", JobState.RECEIVING)
        await store._jobs.insert_one(job.document())
        assert (await store.cancel(job)).state is JobState.CANCELLED
        job.state = JobState.CHECKING
        assert not await store.received(job)
        assert (await store.find("sample", "job")).state is JobState.CANCELLED

    @pytest.mark.parametrize("ends", ["cancel", "delete"])
    async def test_an_upload_ends_with_its_job(self, node, ends):
        database, came = node.node.database, asyncio.Event()

        async def pieces():
            yield b"to,body\n" + b"+4915100000001,hello\n" * 20_000
            await came.wait()
            yield b"+4915100000001,hello\n" * 20_000

        async with asyncio.TaskGroup() as group:
            uploading = group.create_task(node.call("POST", "/v1/batch-jobs", data=pieces(), headers=CSV))
            async with asyncio.timeout(15):
                while await database["batch_rows"].count_documents({}) < 2:
                    await asyncio.sleep(0.02)
            job = (await database["batch_jobs"].find_one({}))["_id"]
            if ends == "cancel":
                status, answer = await node.call("POST", f"/v1/batch-jobs/{job}/cancel")
                assert (status, answer["state"]) == (202, "cancelled")
            else:
                assert (await node.call("DELETE", f"/v1/batch-jobs/{job}"))[0] == 204
            came.set()
        status, problem = uploading.result()
        assert (status, problem["type"].rsplit("/", 1)[-1]) == (409, "not-in-this-state")
        assert await database["batch_rows"].count_documents({}) == 0
        left = [(found["state"], found["octets"]) async for found in database["batch_jobs"].find({})]
        assert left == ([("cancelled", 0)] if ends == "cancel" else [])

    async def test_no_rows_without_a_job(self, store, desk):
        rows = [Row(2, ["+491"])]
        await put(store, a_job("done", JobState.DONE, changed=CLOCK.now_ms()))
        await store._jobs.insert_one(a_job("slow", JobState.RECEIVING, changed=1).document())
        assert not await store.add_rows("erased", 0, rows)
        assert not await store.add_rows("done", 1, rows)
        assert await store.add_rows("slow", 0, rows)
        await store._rows.insert_one({"_id": "stray:0", "job": "stray", "n": 0, "rows": [], "results": None})
        assert await runner_of(store, desk).sweep() == 0  # what still comes is not erased
        assert sorted(await store._rows.distinct("_id")) == ["done:0", "slow:0"]


class TestErasing:
    """What is started at that moment is sent, not erased."""

    async def test_the_sweep(self, database, desk):
        class Late(BatchJobs):
            async def at_rest(self, before, receiving_before):
                found = await super().at_rest(before, receiving_before)
                assert await self.start(a_job("started")) is not None
                assert await self.map(a_job("mapped"), Mapping()) is not None
                return found

        store = Late(database, CLOCK)
        await put(store, *(a_job(name, JobState.READY) for name in ("due", "started", "mapped")))
        assert await runner_of(store, desk).sweep() == 1
        assert {job.id: job.state for job in await store.page("sample", None, 10)} == {
            "started": JobState.RUNNING,
            "mapped": JobState.CHECKING,
        }
        assert sorted(await store._rows.distinct("job")) == ["mapped", "started"]

    async def test_at_once(self, store):
        await put(store, a_job("running"), a_job("checking", JobState.CHECKING))
        assert not await store.erase("running")
        assert await store.erase("checking")
        assert not await store.erase("checking")
        assert await store._rows.distinct("job") == ["running"]

    async def test_what_is_cut_short_is_found_again(self, store, desk, monkeypatch):
        await put(store, a_job("job", JobState.READY, changed=CLOCK.now_ms()))

        async def broken(*_):
            raise RuntimeError

        with monkeypatch.context() as patch:
            patch.setattr(store._rows, "delete_many", broken, raising=False)
            with suppress(RuntimeError):
                await store.erase("job")
        assert await store.start(a_job("job")) is None
        assert await runner_of(store, desk).sweep() == 1
        assert await store._rows.count_documents({}) == 0


class TestCancel:
    """What may have been accepted is in the results."""

    async def test_rows_in_doubt_are_settled_first(self, store):
        class Doubtful(Desk):
            tries = 0

            async def send(self, job, rows):
                self.sent += [(job.id, row.line) for row in rows]
                if self.tries == 0:
                    assert (await store.cancel(job)).cancel
                self.tries += 1
                doubt = Judged(Result(status="rejected", error="accept-unconfirmed"), again=0.15)
                busy = Judged(Result(status="rejected", error="overloaded"), again=0.15)
                return [
                    doubt if row.line == 2 and self.tries < 3 else busy if row.line == 3 else self.accept(job, row)
                    for row in rows
                ]

        desk = Doubtful()
        await put(store, a_job("job", chunks=2), rows=300)
        async with working(runner_of(store, desk)):
            ended = await reaches(store, "job", JobState.CANCELLED)
        results = {row.line: result.status async for row, result in store.results("job")}
        assert (results[2], results[3], results[4], results[301]) == ("accepted", "", "accepted", "")
        assert desk.sent[200:] == [("job", 2), ("job", 2)]
        assert (ended.accepted, ended.settled) == (199, 199)

    async def test_what_the_former_holder_sent_is_told(self, store, desk):
        job = a_job("job", chunks=2, next=1, cancel=True, by="dead:1", settled=5, accepted=5)
        await put(store, job, rows=5)
        for line in (7, 9):
            desk.accepted["job", line] = Result(f"m{line}", "accepted")
        async with working(runner_of(store, desk)):
            ended = await reaches(store, "job", JobState.CANCELLED)
        assert desk.sent == []
        assert (ended.accepted, ended.rejected, ended.settled) == (7, 0, 7)
        found = [result.id async for _, result in store.results("job")]
        assert found[5:] == ["m7", "", "m9", "", ""]


class TestOtherVersions:
    """What a newer version wrote, or any fault, ends no node."""

    def test_unknown_fields(self):
        job = a_job("job")
        document = job.document() | {"colour": "red", "dialect": asdict(job.dialect) | {"quote": "'"}}
        assert BatchJob.of(document) == job

    async def test_a_mapping_of_a_newer_version_is_left_to_it(self, store, desk):
        newer = a_job("newer", tenant="t1")
        await put(store, newer, a_job("job"))
        await store._jobs.update_one({"_id": "newer"}, {"$set": {"mapping.only_if": "x"}})
        async with working(runner_of(store, desk)):
            await reaches(store, "job", JobState.DONE)
        assert desk.sent == [("job", 2)]
        assert (await store._jobs.find_one({"_id": "newer"}))["state"] == "running"

    @pytest.mark.parametrize("name", ["free", "claim", "at_rest"])
    async def test_a_fault_is_survived(self, store, desk, monkeypatch, name):
        faults, real = [], getattr(store, name)

        async def faulty(*args):
            if not faults:
                faults.append(args)
                raise TypeError("a fault")
            return await real(*args)

        monkeypatch.setattr(store, name, faulty)
        monkeypatch.setattr("controlplane.batches.runner._SWEEP_SECONDS", 0.1)
        await put(store, a_job("job", JobState.RUNNING, changed=CLOCK.now_ms()))
        async with working(runner_of(store, desk)) as task:
            await reaches(store, "job", JobState.DONE)
            async with asyncio.timeout(5):
                while not faults:
                    await asyncio.sleep(0.02)
            assert not task.done()
