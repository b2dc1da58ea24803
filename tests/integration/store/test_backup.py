"""Backup and restore over a real mongod: one instant while writers go on, everything there afterwards, cuts gone on with, damage seen."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from controlplane.bootstrap import Node
from controlplane.clock import SystemClock
from controlplane.domain.message import fold
from controlplane.embedded.drill import drill
from controlplane.embedded.mongod import Mongod
from controlplane.errors import ConfigError
from controlplane.ledger.scrub import Scrub
from controlplane.settings import Settings, child_environment
from controlplane.store.backup import LEFT_OUT, ArchiveError, clear, create, open_archive, restore, verify
from controlplane.store.backup.archive import MANIFEST
from controlplane.store.backup.snapshot import Snapshot
from controlplane.store.backup.stories import stories
from controlplane.store.client import Database, connect
from controlplane.store.copies import Copies
from controlplane.store.ledger_scrub import ScrubStore
from tests.conftest import SECRET
from tests.simulators.ledger import running_ledger, with_peer
from tests.simulators.node import running_carrier, running_node

CLOCK = SystemClock()
WINDOW = "minSnapshotHistoryWindowInSeconds"


@pytest.fixture(scope="module", autouse=True)
def usual_window(mongod: Mongod) -> Iterator[None]:
    """Old states are kept for as long as MongoDB keeps them by default."""
    with MongoClient[Any](mongod.uri) as client:
        was = client.admin.command({"getParameter": 1, WINDOW: 1})[WINDOW]
        client.admin.command({"setParameter": 1, WINDOW: 300})
        yield
        client.admin.command({"setParameter": 1, WINDOW: was})


def silent(_text: str) -> None:
    pass


@asynccontextmanager
async def another(settings: Settings) -> AsyncIterator[tuple[Settings, Database]]:
    """An empty database beside the first one."""
    settings = settings.model_copy(update={"database": f"{settings.database}_b"})
    database = connect(settings)
    try:
        yield settings, database
    finally:
        await database.client.drop_database(settings.database)
        await database.client.close()


async def contents(database: Database) -> dict[str, dict[Any, Any]]:
    """Collection → `_id` → document, of those that are kept and not empty."""
    found = {}
    for name in await database.list_collection_names():
        if name not in LEFT_OUT and (documents := {str(one["_id"]): one async for one in database[name].find()}):
            found[name] = documents
    return found


async def folded(database: Database) -> dict[str, tuple[int, str]]:
    """Message → (events, status)."""
    found = {}
    async for story in stories(database):
        assert not story.problem
        if story.accepted:
            message = fold(story.events)
            assert message is not None
            found[message.mid] = (len(story.events), str(message.status))
    return found


async def fill(database: Database, *, messages: int = 40) -> None:
    """A small database of several collections."""
    events = []
    for n in range(messages):
        for k, kind in enumerate(("accepted", "submitted", "delivered")):
            events.append(
                {"_id": f"m{n:05d}:{k}", "mid": f"m{n:05d}", "k": k, "kind": kind, "dc": "local", "text": "x" * n}
            )
    await database["events"].insert_many(events)
    await database["meta"].insert_one({"_id": "catalog", "version": 3})
    await database["tenants"].insert_many([{"_id": f"t{n}", "id": f"t{n}", "name": "N"} for n in range(5)])
    await database["sessions"].insert_one({"_id": "s"})
    await database["search_data"].insert_one({"_id": "d"})


@pytest.fixture
async def filled(database: Database) -> Database:
    await fill(database)
    return database


class TestOneInstant:
    """Nothing that was accepted before is missing, and all collections are of the same moment, however much is written meanwhile."""

    async def test_of_a_node_that_accepts_all_the_while(
        self, settings: Settings, database: Database, tmp_path: Path
    ) -> None:
        settings = with_peer(settings)
        before: list[str] = []
        during: list[str] = []
        async with (
            running_carrier() as carrier,
            running_node(settings) as node,
            running_ledger(settings, database) as ledger,
        ):
            await node.seed()
            await node.connect(carrier)
            enough, stop = asyncio.Event(), asyncio.Event()

            async def send(into: list[list[str]]) -> None:
                while not stop.is_set():
                    into[0].append((await node.send())["id"])
                    if len(before) > 400:
                        enough.set()

            into = [before]
            async with asyncio.TaskGroup() as group:
                for _each in range(20):
                    group.create_task(send(into))
                await enough.wait()
                into[0] = during
                manifest = await create(database, settings, tmp_path / "b1", CLOCK, silent)
                counted = len(during)
                stop.set()
            assert counted > 10, "nothing was accepted while the backup ran"
            sizes = {log.origin: log.size for log in await ledger.store.logs()}
        archive = open_archive(tmp_path / "b1", settings.secret)
        verify(archive, silent)
        source = await folded(database)
        async with another(settings) as (other, restored):
            assert await restore(restored, archive, silent)
            there = await folded(restored)
            assert set(before) <= there.keys()
            assert manifest.messages == len(there)
            assert there.keys() < source.keys() == {*before, *during}
            assert all(count <= source[mid][0] for mid, (count, _status) in there.items())
            old, new = await contents(database), await contents(restored)
            for name in ("events", "tenants", "keys"):  # inserted once, never changed
                assert all(old[name][key] == document for key, document in new[name].items())
            [log] = manifest.ledger.logs
            assert 0 < log.size <= sizes[log.origin]
            store = ScrubStore(restored)
            scrub = Scrub(store, Copies(restored, store), other, CLOCK)
            assert await scrub.verify_all() == []
            assert not set(LEFT_OUT) - {"restores"} & set(new)
            await self.goes_on(other, there)

    async def goes_on(self, settings: Settings, there: dict[str, tuple[int, str]]) -> None:
        """A node on the restored database takes over what was open, and everything ends."""
        async with running_carrier() as carrier, running_node(settings.model_copy(update={"ledger_peers": ()})) as node:
            await node.seed()
            await node.connect(carrier)
            async with asyncio.timeout(60):
                while (found := await folded(node.node.database)).keys() and any(
                    status in ("queued", "accepted") for _count, status in found.values()
                ):
                    await asyncio.sleep(0.2)
            assert found.keys() == there.keys()

    async def test_two_collections_never_disagree(self, database: Database, tmp_path: Path, settings: Settings) -> None:
        """A writer writes to one, then to the other: a backup that has the second write has the first one, and the other way round but for one."""
        names = ("zeta", "alpha", "midst")
        await database["alpha"].insert_many([{"_id": -1 - n, "pad": "x" * 1000} for n in range(20_000)])
        stop, written = asyncio.Event(), 0

        async def write() -> None:
            nonlocal written
            while not stop.is_set():
                for name in names:
                    await database[name].insert_one({"_id": written})
                written += 1

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            while written < 20:
                await asyncio.sleep(0.01)
            begun = written
            await create(database, settings, tmp_path / "b", CLOCK, silent)
            ended = written
            stop.set()
        assert ended > begun
        async with another(settings) as (_other, restored):
            await restore(restored, open_archive(tmp_path / "b", settings.secret), silent)
            zeta, alpha, midst = [await restored[name].count_documents({"_id": {"$gte": 0}}) for name in names]
            assert begun <= midst <= alpha <= zeta <= midst + 1
            assert zeta < ended

    async def test_old_states_are_kept_meanwhile_and_no_longer(
        self, database: Database, settings: Settings, tmp_path: Path
    ) -> None:
        await fill(database, messages=3)
        admin = database.client.admin
        seen = []

        def tell(_text: str) -> None:
            with MongoClient(settings.mongodb_uri.get_secret_value()) as client:
                seen.append(client.admin.command({"getParameter": 1, WINDOW: 1})[WINDOW])

        await create(database, settings, tmp_path / "b", CLOCK, tell)
        assert set(seen) == {14_400}
        assert (await admin.command({"getParameter": 1, WINDOW: 1}))[WINDOW] == 300

    async def test_an_instant_that_is_forgotten_is_an_error_that_says_what_to_do(self, filled: Database) -> None:
        admin = filled.client.admin
        await admin.command({"setParameter": 1, WINDOW: 1})
        async with Snapshot.take(filled, keep_seconds=1) as snapshot:
            for n in range(8):
                await filled["meta"].insert_one({"_id": n})
                await asyncio.sleep(0.5)
            with pytest.raises(ConfigError, match="Raise it on every member while the backup runs"):
                [_one async for _one in snapshot.documents("meta")]
        assert (await admin.command({"getParameter": 1, WINDOW: 1}))[WINDOW] == 300


class TestCut:
    """Whatever is cut counts for nothing, and is gone on with."""

    async def test_a_backup_at_every_step(self, filled: Database, settings: Settings, tmp_path: Path) -> None:
        steps = 0

        def end_at(step: int) -> Any:
            def tell(_text: str) -> None:
                nonlocal steps
                steps += 1
                if steps > step:
                    raise KeyboardInterrupt

            return tell

        for step in range(99):
            steps = 0
            try:
                await create(filled, settings, tmp_path / "b", CLOCK, end_at(step))
            except KeyboardInterrupt:
                assert list(tmp_path.iterdir()) == []
            else:
                break
        assert step == 3
        verify(open_archive(tmp_path / "b", settings.secret), silent)

    async def test_a_backup_that_is_killed(self, settings: Settings, database: Database, tmp_path: Path) -> None:
        """kill -9 in the middle of a part: what is left has not the name, is refused by the other one, and goes with the next run."""
        await database["events"].insert_many(
            [
                {"_id": f"{n}:0", "mid": str(n), "kind": "accepted", "dc": "local", "pad": os.urandom(2_000)}
                for n in range(20_000)
            ]
        )
        place, partial = tmp_path / "b", tmp_path / "b.partial"
        process = command(settings, "create", "--to", str(place))
        async with asyncio.timeout(60):
            while not any(one.stat().st_size > 2**20 for one in partial.glob("events.*")):
                await asyncio.sleep(0.005)
                assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert partial.exists()
        assert not place.exists()
        with pytest.raises(ArchiveError, match="was cut"):
            open_archive(partial, settings.secret)
        partial.rename(tmp_path / "c")
        with pytest.raises(ArchiveError, match="is no backup"):
            open_archive(tmp_path / "c", settings.secret)
        (tmp_path / "c").rename(partial)
        done = command(settings, "create", "--to", str(place))
        out, said = done.communicate(timeout=60)
        assert done.returncode == 0, said
        assert (json.loads(out)["messages"], list(tmp_path.iterdir())) == (20_000, [place])
        verify(open_archive(place, settings.secret), silent)
        assert (await database.client.admin.command({"getParameter": 1, WINDOW: 1}))[WINDOW] == 300

    async def test_a_restore_at_every_step(self, filled: Database, settings: Settings, tmp_path: Path) -> None:
        await create(filled, settings, tmp_path / "b", CLOCK, silent)
        archive = open_archive(tmp_path / "b", settings.secret)
        wanted = await contents(filled)
        async with another(settings) as (other, restored):
            told: list[str] = []

            def tell(text: str) -> None:
                if text not in told:  # the first time at each step: cut
                    told.append(text)
                    raise KeyboardInterrupt

            for _step in range(99):
                try:
                    assert await restore(restored, archive, tell)
                    break
                except KeyboardInterrupt:
                    with pytest.raises(ConfigError, match="that is not at its end"):
                        await Node.open(other)
            assert len(told) == 4
            assert await contents(restored) == wanted
            assert not await restore(restored, archive, tell)
            node = await Node.open(other)
            await node.close()

    async def test_a_restore_that_is_killed(self, settings: Settings, database: Database, tmp_path: Path) -> None:
        """kill -9 in the middle of a part: it goes on where it was, and what was inserted already is no error."""
        await database["events"].insert_many(
            [
                {"_id": f"{n}:0", "mid": str(n), "kind": "accepted", "dc": "local", "pad": os.urandom(500)}
                for n in range(30_000)
            ]
        )
        await create(database, settings, tmp_path / "b", CLOCK, silent)
        async with another(settings) as (other, restored):
            for _time in range(2):
                process = command(other, "restore", str(tmp_path / "b"))
                before = await restored["events"].count_documents({})
                async with asyncio.timeout(60):
                    while await restored["events"].count_documents({}) in (0, before):
                        assert process.poll() is None
                        await asyncio.sleep(0.005)
                process.send_signal(signal.SIGKILL)
                process.communicate()
                assert 0 < await restored["events"].count_documents({}) < 30_000
            done = command(other, "restore", str(tmp_path / "b"))
            out, said = done.communicate(timeout=60)
            assert done.returncode == 0, said
            assert json.loads(out)["change"] == "restored"
            assert await restored["events"].count_documents({}) == 30_000

    async def test_what_another_wrote_meanwhile_is_found(
        self, filled: Database, settings: Settings, tmp_path: Path
    ) -> None:
        await create(filled, settings, tmp_path / "b", CLOCK, silent)
        archive = open_archive(tmp_path / "b", settings.secret)

        async def spoilt(name: str, *documents: dict[str, Any]) -> None:
            async with another(settings) as (_other, restored):

                def tell(text: str) -> None:
                    if text.startswith("events"):
                        raise KeyboardInterrupt

                with suppress(KeyboardInterrupt):
                    await restore(restored, archive, tell)
                await restored[name].insert_many(documents)
                await restore(restored, archive, silent)

        with pytest.raises(ConfigError, match="events has another document 'm00001:0' than the backup"):
            await spoilt("events", {"_id": "m00001:0", "mid": "m00001"})
        with pytest.raises(ConfigError, match="tenants has 6 documents, not 5"):
            await spoilt("tenants", {"_id": "new"})


class TestRefused:
    """What is not as it must be is refused with a sentence, and nothing is changed."""

    async def test_a_database_that_is_not_empty(self, filled: Database, settings: Settings, tmp_path: Path) -> None:
        await create(filled, settings, tmp_path / "b", CLOCK, silent)
        await create(filled, settings, tmp_path / "c", CLOCK, silent)
        before = await contents(filled)
        with pytest.raises(ConfigError, match="is not empty: events has documents"):
            await restore(filled, open_archive(tmp_path / "b", settings.secret), silent)
        assert await contents(filled) == before
        assert await clear(filled) == 40 * 3 + 1 + 5 + 2
        assert await clear(filled) == 0
        await restore(filled, open_archive(tmp_path / "b", settings.secret), silent)
        assert await contents(filled) == before
        with pytest.raises(ConfigError, match="the backup b was put into it"):
            await restore(filled, open_archive(tmp_path / "c", settings.secret), silent)

    async def test_damage_of_every_class(self, filled: Database, settings: Settings, tmp_path: Path) -> None:
        """A bit of each file in turn: magic, a frame's flag, length, first and last byte, the tail; files cut, longer, swapped, left out, added."""
        await create(filled, settings, tmp_path / "b", CLOCK, silent)
        await create(filled, settings, tmp_path / "older", CLOCK, silent)
        good = tmp_path / "b"
        events = next(good.glob("events.*")).name
        tenants = next(good.glob("tenants.*")).name
        size = (good / events).stat().st_size

        def refused(match: str, change: Any, *, files: bool = True) -> None:
            bad = tmp_path / "bad"
            shutil.copytree(good, bad)
            change(bad)
            with pytest.raises(ArchiveError, match=match):
                verify(open_archive(bad, settings.secret), silent)
            shutil.rmtree(bad)

        def flip(name: str, at: int) -> Any:
            def change(bad: Path) -> None:
                content = bytearray((bad / name).read_bytes())
                content[at] ^= 1
                (bad / name).write_bytes(content)

            return change

        for at in (0, 19, 20, 21, 24, 25, size // 2, -40, -20, -1):
            refused("events.0000", flip(events, at))
        for at in range(2, (good / MANIFEST).stat().st_size - 3, 37):
            refused("manifest.json|key is not|format", flip(MANIFEST, at))
        refused("has .* bytes, written were", lambda bad: (bad / events).write_bytes((good / events).read_bytes()[:-1]))
        refused(
            "has .* bytes, written were", lambda bad: (bad / events).write_bytes((good / events).read_bytes() + b"x")
        )
        refused("lacks 1 of its 3 parts", lambda bad: (bad / events).unlink())
        refused("is none of its parts", lambda bad: (bad / "more.0000").write_bytes(b""))
        refused("is no backup", lambda bad: (bad / MANIFEST).unlink())

        def swapped(bad: Path) -> None:
            (bad / events).rename(bad / "x")
            (bad / tenants).rename(bad / events)
            (bad / "x").rename(bad / tenants)

        refused("bytes, written were", swapped)
        refused("of another part or backup", lambda bad: shutil.copy(tmp_path / "older" / events, bad / events))
        with pytest.raises(ArchiveError, match="the key is not the one of this backup"):
            open_archive(good, b"another key of at least thirty-two characters")
        verify(open_archive(good, settings.secret), silent)

    async def test_names_and_rights(self, filled: Database, settings: Settings, tmp_path: Path) -> None:
        await create(filled, settings, tmp_path / "b", CLOCK, silent)
        assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o700
        assert {stat.S_IMODE(one.stat().st_mode) for one in (tmp_path / "b").iterdir()} == {0o600}
        with pytest.raises(ConfigError, match="a backup is never written over"):
            await create(filled, settings, tmp_path / "b", CLOCK, silent)
        text = b"".join(one.read_bytes() for one in (tmp_path / "b").iterdir())
        assert b"m00001" not in text
        assert SECRET.encode() not in text

    async def test_another_region(self, filled: Database, settings: Settings, tmp_path: Path) -> None:
        await create(filled, settings, tmp_path / "b", CLOCK, silent)
        done = command(settings.model_copy(update={"datacenter": "iad"}), "restore", str(tmp_path / "b"))
        out, said = done.communicate(timeout=60)
        assert (done.returncode, out) == (2, b"")
        assert b"The backup is of local, and this is iad" in said


class TestDrill:
    """The drill passes for what is whole, and says what is not."""

    async def test_it(self, settings: Settings, database: Database, tmp_path: Path) -> None:
        settings = with_peer(settings)
        canaries = tmp_path / "canaries.jsonl"
        async with (
            running_carrier() as carrier,
            running_node(settings) as node,
            running_ledger(settings, database) as ledger,
        ):
            await node.seed()
            await node.connect(carrier)
            mids = [(await node.send())["id"] for _each in range(30)]
            canaries.write_text("\n" + "".join(json.dumps({"id": mid, "retried": 0}) + "\n" for mid in mids[:7]))
            for mid in mids:
                await node.reaches(mid, "delivered")
            await ledger.settle(database)
            await create(database, settings, tmp_path / "b", CLOCK, silent)
        found = await drill(
            open_archive(tmp_path / "b", settings.secret), settings.secret_key, canaries, tmp_path, CLOCK, silent
        )
        assert found.problems == []
        assert (found.messages, found.statuses, found.canaries, found.logs) == (30, {"delivered": 30}, 7, 1)
        assert found.entries >= 90
        assert not list(tmp_path.glob("heliograph-drill-*"))
        canaries.write_text(json.dumps({"id": "0" * 26, "retried": 0}))
        await database["events"].delete_one({"_id": f"{mids[3]}:1"})
        await create(database, settings, tmp_path / "c", CLOCK, silent)
        found = await drill(
            open_archive(tmp_path / "c", settings.secret), settings.secret_key, canaries, tmp_path, CLOCK, silent
        )
        assert not found.good
        broken, missing, ledgers = found.problems
        assert broken.startswith(f"1 messages have no status: {mids[3]}")
        assert missing == f"1 of 1 test messages are missing: {'0' * 26}"
        assert "event_missing" in ledgers


async def test_memory_is_bounded(settings: Settings, database: Database, tmp_path: Path) -> None:
    """250 MB of documents are backed up, verified and restored by processes that never hold 220 MB, of which the program itself is 90."""
    for start in range(0, 100_000, 5_000):
        await database["events"].insert_many(
            [
                {"_id": f"{n}:0", "mid": str(n), "kind": "accepted", "dc": "local", "pad": os.urandom(1_000).hex()}
                for n in range(start, start + 5_000)
            ]
        )
    for start in range(0, 600, 100):  # few, and large
        await database["ledger_bundles"].insert_many(
            [{"_id": f"l|{n}", "data": os.urandom(90_000), "ver": 1} for n in range(start, start + 100)]
        )
    async with another(settings) as (other, _restored):
        for used, *arguments in (
            (settings, "create", "--to", str(tmp_path / "b")),
            (settings, "verify", str(tmp_path / "b")),
            (other, "restore", str(tmp_path / "b")),
        ):
            done = command(used, *arguments, measured=True)
            _out, said = done.communicate(timeout=120)
            assert done.returncode == 0, said
            peak = int(said.splitlines()[-1]) * 1024
            assert peak < 220e6, (arguments, peak)


def command(settings: Settings, *arguments: str, measured: bool = False) -> subprocess.Popen[bytes]:
    """`heliograph backup …` as a process; `measured`: its peak memory in KiB is the last line on stderr."""
    environment = child_environment(
        mongodb_uri=settings.mongodb_uri.get_secret_value(),
        database=settings.database,
        secret_key=settings.secret_key.get_secret_value(),
        datacenter=settings.datacenter,
    )
    code = "from controlplane.cli import main; main()"
    if measured:  # not ru_maxrss, which begins with that of the process that forks
        peak = "next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))"
        code = f"import atexit, sys; atexit.register(lambda: print({peak}, file=sys.stderr)); {code}"
    argv = [sys.executable, "-c", code, "backup", *arguments]
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
