"""Batch jobs: a table becomes messages, each row once, whatever happens to the nodes."""

from __future__ import annotations

import asyncio
import csv
import io
import tracemalloc
from collections import Counter
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from controlplane.bootstrap import Node
from controlplane.clock import SystemClock
from controlplane.domain.audit import person_actor
from controlplane.domain.batch_job import JobState
from controlplane.domain.events import Kind
from controlplane.domain.people import Role
from tests.simulators.node import RunningNode, running_node

CSV = {"content-type": "text/csv"}


def table(count: int, *, start: int = 0, text: str = "Hello {n}") -> bytes:
    lines = [f"+49151{number:08d},{text.format(n=number)}" for number in range(start, start + count)]
    return ("to,body\n" + "\n".join(lines) + "\n").encode()


async def upload(node: RunningNode, data: bytes, **query: str) -> dict[str, Any]:
    status, job = await node.call("POST", "/v1/batch-jobs", data=data, headers=CSV, params=query)
    assert status == 201, job
    return job


async def reaches(node: RunningNode, job: str, *states: str, seconds: float = 30.0) -> dict[str, Any]:
    async with asyncio.timeout(seconds):
        while True:
            status, found = await node.call("GET", f"/v1/batch-jobs/{job}")
            assert status == 200, found
            if found["state"] in states:
                return found
            await asyncio.sleep(0.05)


async def start(node: RunningNode, job: str) -> None:
    status, answer = await node.call("POST", f"/v1/batch-jobs/{job}/start")
    assert status == 202, answer


async def results(node: RunningNode, job: str) -> list[dict[str, str]]:
    headers = {"authorization": f"Bearer {node.key}"}
    async with node.http.get(f"{node.base_url}/v1/batch-jobs/{job}/results.csv", headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/csv"
        return list(csv.DictReader(io.StringIO(await response.text())))


async def accepted(node: RunningNode) -> Counter[str]:
    """Recipient → how many messages were accepted for it."""
    found = node.node.database["events"].find({"kind": Kind.ACCEPTED.value}, {"data.to": 1})
    return Counter([event["data"]["to"] async for event in found])


class TestATable:
    """From a file to delivered messages."""

    async def test_the_whole_way(self, node, carriers):
        await node.connect(await carriers(), price=7)
        await node.call("POST", "/v1/suppressions", json={"recipient": "+4915100000003"})
        data = (
            "Mobile;Name;Klasse\n+4915100000001;Jürgen;otp\n+49 151 00000002;Zoë €;\n+4915100000003;X;\nnobody;Y;\n+4915100000001;Ž;\n"
            '+4915100000004;"never ends\n'
        ).encode("utf-16")
        job = await upload(node, data, name="people.csv")
        assert job["state"] == "mapping"
        assert job["table"] == {
            "encoding": "utf-16-le", "delimiter": "semicolon", "header": True, "columns": ["Mobile", "Name", "Klasse"],
            "rows": 6, "octets": len(data),
        }  # fmt: skip
        assert job["mapping"]["columns"] == {"to": "Mobile"}
        mapping = {
            "columns": {"to": "Mobile", "class": "Klasse"}, "body": "Hi {name}!", "values": {"reference": "spring"},
        }  # fmt: skip
        status, shown = await node.call("POST", f"/v1/batch-jobs/{job['id']}/preview", json=mapping)
        assert status == 200, shown
        assert [(row["line"], row["message"].get("body"), row["parts"], row["encoding"], row["error"]) for row in shown["data"]] == [
            (2, "Hi Jürgen!", 1, "gsm7", None), (3, "Hi Zoë €!", 1, "ucs2", None),
            (4, "Hi X!", None, None, "recipient-suppressed"), (5, "Hi Y!", None, None, "invalid-request"), (6, "Hi Ž!", 1, "ucs2", None),
        ]  # fmt: skip
        status, _ = await node.call("PUT", f"/v1/batch-jobs/{job['id']}/mapping", json=mapping)
        assert status == 200
        ready = await reaches(node, job["id"], "ready")
        report = ready["report"]
        assert (report["rows"], report["good"], report["bad"], report["suppressed"]) == (6, 3, 3, 1)
        assert report["encodings"] == {"gsm7": 1, "ucs2": 2}
        assert report["prices"] == [{"currency": "EUR", "least": 7, "most": 7, "total": 21}]
        assert report["duplicates"] == {"recipients": 1, "rows": 1, "lines": [6]}
        found = {problem["error"]: problem["lines"] for problem in report["problems"]}
        assert found == {"recipient-suppressed": [4], "invalid-request": [5], "unreadable-row": [7]}
        assert await accepted(node) == {}

        await start(node, job["id"])
        done = await reaches(node, job["id"], "done")
        assert done["progress"] == {"checked": 6, "settled": 6, "accepted": 3, "rejected": 3, "waiting": None}
        rows = await results(node, job["id"])
        assert [(row["line"], row["status"], row["error"]) for row in rows] == [
            ("2", "accepted", ""), ("3", "accepted", ""), ("4", "rejected", "recipient-suppressed"),
            ("5", "rejected", "invalid-request"), ("6", "accepted", ""), ("7", "rejected", "unreadable-row"),
        ]  # fmt: skip
        first = await node.reaches(rows[0]["id"], "delivered")
        assert (first["to"], first["body"], first["class"], first["reference"]) == (
            "+4915100000001",
            "Hi Jürgen!",
            "otp",
            "spring",
        )
        await start(node, job["id"])  # a repetition changes nothing
        assert await accepted(node) == {"+4915100000001": 2, "+4915100000002": 1}

    async def test_a_form(self, node, carriers):
        await node.connect(await carriers())
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("delimiter", "pipe")
        form.add_field("header", "no")
        form.add_field("encoding", "")
        form.add_field("mapping", '{"columns": {"to": "1", "body": "2"}}')
        form.add_field(
            "file", "+4915100000001|Grüße\n".encode("latin-1"), filename="Grüße.csv", content_type="text/plain"
        )
        status, job = await node.call("POST", "/v1/batch-jobs", data=form)
        assert status == 201, job
        assert (job["name"], job["table"]["encoding"], job["table"]["columns"]) == (
            "Grüße.csv",
            "windows-1252",
            ["1", "2"],
        )
        await reaches(node, job["id"], "ready")
        await start(node, job["id"])
        await reaches(node, job["id"], "done")
        (row,) = await results(node, job["id"])
        assert (await node.get(row["id"]))["body"] == "Grüße"

    async def test_a_test_key_sends_nothing(self, node, carriers):
        await node.connect(await carriers())
        status, made = await node.call(
            "POST", "/v1/keys", key=node.admin_key,
            json={"tenant": "sample", "name": "t", "scopes": ["messages:write", "messages:read"], "test": True},
        )  # fmt: skip
        assert status == 201, made
        node.key = made["key"]
        job = await upload(node, table(3))
        await reaches(node, job["id"], "ready")
        await start(node, job["id"])
        await reaches(node, job["id"], "done")
        assert [row["status"] for row in await results(node, job["id"])] == ["test"] * 3
        assert await accepted(node) == {}

    @pytest.mark.parametrize(
        ("data", "query", "pointer"),
        [
            (b"", {}, "file"),
            (b"to,body\n", {}, "file"),
            (b"to,body\n+49151,\xfc\n", {"encoding": "utf-8"}, "file"),
            (b"to,body\n+49151,x\n", {"delimiter": "x"}, "delimiter"),
            (b"to,body\n+49151,x\n", {"colour": "red"}, "colour"),
            (b"to,body\n+49151,x\n", {"mapping": "{"}, "mapping"),
            (b"to,body\n+49151,x\n", {"mapping": '{"columns": {"to": "Phone"}, "body": "x"}'}, "/columns/to"),
            (b"to,body\n+49151,x\n", {"mapping": '{"columns": {"to": "to"}, "body": "{nobody}"}'}, "/body"),
        ],
    )
    async def test_what_is_no_table(self, node, data, query, pointer):
        status, problem = await node.call("POST", "/v1/batch-jobs", data=data, headers=CSV, params=query)
        assert (status, problem["errors"][0]["pointer"]) == (422, pointer)
        assert await node.node.database["batch_jobs"].count_documents({}) == 0
        assert await node.node.database["batch_rows"].count_documents({}) == 0

    async def test_other_bodies(self, node):
        status, _ = await node.call("POST", "/v1/batch-jobs", json={})
        assert status == 415
        status, problem = await node.call(
            "POST", "/v1/batch-jobs", data=b"x", headers={"content-type": "multipart/form-data; boundary=b"}
        )
        assert (status, problem["type"].rsplit("/", 1)[-1]) == (400, "malformed-form")

    async def test_too_large(self, settings, database):
        async with running_node(settings.model_copy(update={"max_upload_bytes": 2048, "max_upload_rows": 20})) as small:
            await small.seed()

            async def pieces():
                for _ in range(200):
                    yield b"+4915100000001,hello\n"

            status, _ = await small.call("POST", "/v1/batch-jobs", data=pieces(), headers=CSV)
            assert status == 413
            status, problem = await small.call("POST", "/v1/batch-jobs", data=table(21), headers=CSV)
            assert status == 422
            assert "more than 20 rows" in problem["detail"]
            assert await database["batch_rows"].count_documents({}) == 0

    async def test_a_tenant_cannot_fill_the_disk(self, settings, database):
        """Cancelled tables count as long as they are stored; uploads that come at once, by what they may become."""
        most = 20 * 2048
        async with running_node(settings.model_copy(update={"max_upload_bytes": 2048})) as small:
            await small.seed()
            line, end = b"+4915100000001,hello\n", b"+4915100000002,bye\n"

            async def pieces():
                for _ in range(90):
                    yield line

            async def stored() -> int:
                return sum([job["octets"] async for job in small.node.database["batch_jobs"].find({})])

            calls = [small.call("POST", "/v1/batch-jobs", data=pieces(), headers=CSV) for _ in range(30)]
            answers = await asyncio.gather(*calls)
            assert {status for status, _ in answers} == {201, 429}
            assert await stored() <= most
            while (answer := await small.call("POST", "/v1/batch-jobs", data=line * 90 + end, headers=CSV))[0] == 201:
                status, _ = await small.call("POST", f"/v1/batch-jobs/{answer[1]['id']}/cancel")
                assert status == 202
                assert await stored() <= most
            status, problem = answer
            assert (status, problem["type"].rsplit("/", 1)[-1]) == (429, "too-much-stored")
            assert "DELETE /v1/batch-jobs/{id}" in problem["next_step"]
            assert await stored() > most - 2048
            other = await small.call("POST", "/v1/batch-jobs", data=line, headers=CSV, key=small.other_key)
            assert other[0] == 201
            job = next(job for status, job in answers if status == 201)
            await small.call("DELETE", f"/v1/batch-jobs/{job['id']}")
            assert (await small.call("POST", "/v1/batch-jobs", data=line * 90, headers=CSV))[0] == 201

    async def test_results_are_safe_in_a_spreadsheet(self, node, carriers):
        await node.connect(await carriers())
        job = await upload(
            node,
            b'to,body\n+4915100000001,x\n"=HYPERLINK(1)",x\n',
            mapping='{"columns": {"to": "to", "class": "to"}, "body": "x"}',
        )
        await reaches(node, job["id"], "ready")
        await start(node, job["id"])
        await reaches(node, job["id"], "done")
        for row in await results(node, job["id"]):
            assert not any(value.startswith(("=", "+", "-", "@")) for value in row.values())

    async def test_other_tenants_see_nothing(self, node, carriers):
        await node.connect(await carriers())
        job = (await upload(node, table(2)))["id"]
        for method, path in (
            ("GET", ""), ("DELETE", ""), ("POST", "/start"), ("POST", "/cancel"), ("GET", "/results.csv"), ("POST", "/preview"),
        ):  # fmt: skip
            status, _ = await node.call(method, f"/v1/batch-jobs/{job}{path}", key=node.other_key)
            assert status == 404
        status, listed = await node.call("GET", "/v1/batch-jobs", key=node.other_key)
        assert (status, listed["data"]) == (200, [])


class TestStates:
    """What is asked for at the wrong time is refused in words, and nothing is sent that was not started."""

    async def test_not_in_this_state(self, node, carriers):
        await node.connect(await carriers())
        job = (await upload(node, b"a,b\nc,d\n"))["id"]
        status, problem = await node.call("POST", f"/v1/batch-jobs/{job}/start")
        assert (status, problem["detail"]) == (409, "The batch job is mapping.")
        status, cancelled = await node.call("POST", f"/v1/batch-jobs/{job}/cancel")
        assert (status, cancelled["state"]) == (202, "cancelled")
        status, _ = await node.call("PUT", f"/v1/batch-jobs/{job}/mapping", json={"columns": {"to": "a"}, "body": "x"})
        assert status == 409
        status, _ = await node.call("DELETE", f"/v1/batch-jobs/{job}")
        assert status == 204
        assert await node.node.database["batch_rows"].count_documents({}) == 0

    async def test_cancel_in_the_middle(self, node, carriers):
        await node.connect(await carriers())
        await node.node.catalog.put(replace(node.node.catalog.snapshot.tenants["sample"], rate=100))
        job = (await upload(node, table(700)))["id"]
        await reaches(node, job, "ready")
        await start(node, job)
        async with asyncio.timeout(20):
            while not await accepted(node):
                await asyncio.sleep(0.05)
        status, cancelling = await node.call("POST", f"/v1/batch-jobs/{job}/cancel")
        assert (status, cancelling["cancelling"]) == (202, True)
        ended = await reaches(node, job, "cancelled")
        sent = await accepted(node)
        assert 0 < len(sent) < 500
        assert ended["progress"]["accepted"] == ended["progress"]["settled"] == sent.total() == len(sent)
        rows = await results(node, job)
        assert Counter(row["status"] for row in rows) == {"accepted": len(sent), "": 700 - len(sent)}

    async def test_the_tenants_rate_is_kept_and_shared(self, node, carriers):
        await node.connect(await carriers())
        await node.node.catalog.put(replace(node.node.catalog.snapshot.tenants["sample"], rate=50))
        job = (await upload(node, table(150)))["id"]
        await reaches(node, job, "ready")
        await start(node, job)
        began = asyncio.get_running_loop().time()
        sent = 0
        while (await node.call("GET", f"/v1/batch-jobs/{job}"))[1]["state"] == "running":
            await node.send(to="+4917000000001")  # a direct message never waits for the job
            sent += 1
            await asyncio.sleep(0.1)
        took = asyncio.get_running_loop().time() - began
        assert sent > 5
        assert (150 + sent - 50) / 50 * 0.8 < took < 20

    @pytest.mark.parametrize("who", ["person", "key"])
    async def test_who_may_no_longer_send_sends_no_more(self, node, carriers, who):
        """In the middle it halts and says why; it goes on once they may again, and no row is lost by that."""
        await node.connect(await carriers())
        catalog, people = node.node.catalog, node.node.people
        await catalog.put(replace(catalog.snapshot.tenants["sample"], rate=100))
        job = (await upload(node, table(300)))["id"]
        await reaches(node, job, "ready")
        if who == "person":
            await people.create("sam", Role.SENDER, "sample")
            await node.node.database["batch_jobs"].update_one({"_id": job}, {"$set": {"key": person_actor("sam")}})
        key = catalog.snapshot.keys[node.node.seal.digest_key(node.key)]

        async def may(*, send: bool) -> None:
            if who == "person":
                await people.change("sam", role=Role.SENDER if send else Role.VIEWER, tenant="sample", enabled=True)
            else:
                await catalog.put(key if send else replace(key, scopes=frozenset({"messages:read"})))

        await start(node, job)
        async with asyncio.timeout(20):
            while not await accepted(node):
                await asyncio.sleep(0.05)
            await may(send=False)
            while "no longer" not in ((await reaches(node, job, "running"))["progress"]["waiting"] or ""):
                await asyncio.sleep(0.05)
        so_far = await accepted(node)
        assert len(so_far) < 300
        await asyncio.sleep(1)
        assert await accepted(node) == so_far
        await may(send=True)
        done = await reaches(node, job, "done")
        assert (done["progress"]["accepted"], done["progress"]["rejected"]) == (300, 0)
        assert (await accepted(node)).total() == 300

    async def test_who_may_send_a_job(self, node, carriers):
        await node.connect(await carriers())
        job_id = (await upload(node, table(1)))["id"]
        await reaches(node, job_id, "ready")
        job = await node.node.batch_jobs.find("sample", job_id)
        desk, people = node.node.app.state.rows, node.node.people

        async def why() -> str:
            refused = {
                judged.result.error for judged in await desk.check(job, await node.node.batch_jobs.chunk(job.id, 0))
            }
            seconds, said = await desk.room(job, 1)
            assert (refused == {"forbidden"}) == bool(seconds) == bool(said)
            return said

        assert await why() == ""
        job.key = person_actor("sam")
        assert await why() == "the person who began it is disabled or gone"
        await people.create("sam", Role.SENDER, "sample")
        for role, tenant, enabled, expected in (
            (Role.SENDER, "sample", True, ""),
            (Role.SENDER, "", True, ""),
            (Role.ADMIN, "", True, ""),
            (Role.ADMIN, "", False, "the person who began it is disabled or gone"),
            (Role.VIEWER, "sample", True, "the person who began it may no longer send for the tenant"),
            (Role.SENDER, "other", True, "the person who began it may no longer send for the tenant"),
        ):
            await people.change("sam", role=role, tenant=tenant, enabled=enabled)
            assert await why() == expected, (role, tenant, enabled)

    async def test_at_rest_it_is_erased(self, node, carriers, settings):
        await node.connect(await carriers())
        job = (await upload(node, table(3)))["id"]
        waiting = (await upload(node, table(3)))["id"]
        await reaches(node, job, "ready")
        await reaches(node, waiting, "ready")
        database, clock = node.node.database, SystemClock()
        assert await node.node.batch_runner.sweep() == 0
        old = clock.now_ms() - settings.batch_job_days * 86_400_000 - 1
        await database["batch_jobs"].update_one({"_id": job}, {"$set": {"changed": old}})
        assert await node.node.batch_runner.sweep() == 1
        assert await database["batch_rows"].distinct("job") == [waiting]
        status, _ = await node.call("GET", f"/v1/batch-jobs/{job}")
        assert status == 404


class TestTakeOver:
    """A node that dies in the middle is followed by another; every row becomes one message, and is counted once."""

    @pytest.mark.parametrize("clean", [False, True])
    async def test_killed_in_the_middle(self, node, carriers, settings, tmp_path, clean):
        await node.connect(await carriers(receipt_ms="1"))
        await node.node.catalog.put(replace(node.node.catalog.snapshot.tenants["sample"], rate=400))
        count = 1_700
        second = settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "two"})
        node.node.batch_runner._take = nothing  # the first node works at no job
        job = (await upload(node, table(count)))["id"]
        dead = await Node.open(second)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(dead.run(stop))
            await reaches(node, job, "ready")
            await start(node, job)
            async with asyncio.timeout(30):
                while sum((await accepted(node)).values()) < 700:
                    await asyncio.sleep(0.02)
            if clean:
                stop.set()
            else:
                running.cancel()
        await dead.close()
        status, broken = await node.call("GET", f"/v1/batch-jobs/{job}")
        assert (status, broken["state"]) == (200, "running")
        assert broken["progress"]["accepted"] < count
        del node.node.batch_runner._take
        done = await reaches(node, job, "done", seconds=60)
        assert (done["progress"]["settled"], done["progress"]["accepted"]) == (count, count)
        sent = await accepted(node)
        assert (len(sent), sent.total()) == (count, count)
        rows = await results(node, job)
        assert [int(row["line"]) for row in rows] == list(range(2, count + 2))
        assert len({row["id"] for row in rows}) == count
        events = node.node.database["events"]
        assert {event["n"] async for event in events.find({"kind": "accepted"}, {"n": 1})} == {"node-1", "node-2"}

    async def test_who_comes_back_late_changes_nothing(self, node, carriers):
        """Two holders of one job: what the former one says of its chunk is not taken."""
        await node.connect(await carriers())
        store, lease = node.node.batch_jobs, node.node.lease
        node.node.batch_runner._take = nothing
        job_id = (await upload(node, table(2)))["id"]
        job = await store.find("sample", job_id)
        old, new = replace(lease, node="old"), replace(lease, node="new")
        held = await store.claim(job, old)
        assert await store.claim(job, new) is None
        rows, known = await store.open_chunk(held, old)
        assert (len(rows), known) == (2, None)
        again = await store.claim(held, new)
        await store.open_chunk(again, new)
        desk = node.node.app.state.rows
        outcome = [judged.result for judged in await desk.check(held, rows)]
        assert not await store.close_chunk(held, old, outcome)
        assert await store.keep(held, old, within=0, waiting="") is None
        assert not await store.finish(held, old, JobState.DONE)
        assert await store.close_chunk(again, new, outcome)
        assert (await store.open_chunk(again, old))[1] == outcome


async def nothing(group) -> None:
    """In the place of taking jobs."""


class TestSize:
    """A large table is never whole in memory."""

    async def test_a_hundred_thousand_rows(self, node, carriers):
        await node.connect(await carriers())
        few, small = await self.peak(node, 20_000)
        await node.call("DELETE", f"/v1/batch-jobs/{small['id']}")
        many, job = await self.peak(node, 100_000)
        assert many < few * 1.3, f"{few} octets for 20,000 rows, {many} for 100,000"
        ready = await reaches(node, job["id"], "ready", seconds=120)
        assert (ready["report"]["good"], ready["report"]["duplicates"]["rows"]) == (100_000, 0)

    @staticmethod
    async def peak(node: RunningNode, count: int) -> tuple[int, dict[str, Any]]:
        """Octets that the process needed beside what it had, while it received so many rows."""
        data = table(count, text="Hello number {n}, this is a longer text for you, with a comma less")

        async def pieces():
            for at in range(0, len(data), 30_000):
                yield data[at : at + 30_000]

        node.node.batch_runner._take = nothing
        tracemalloc.start()
        try:
            status, job = await node.call("POST", "/v1/batch-jobs", data=pieces(), headers=CSV)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            del node.node.batch_runner._take
        assert (status, job["table"]["rows"]) == (201, count), job
        return peak, job
