"""Repair as it is asked for: dry first, twice no more than once, by peers over real sockets; and what it refuses says what to do."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from controlplane.domain.events import Kind
from controlplane.domain.message import fold
from controlplane.ledger.check import Fault
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.entries import place_of
from controlplane.ledger.merkle import Frontier, grow
from controlplane.ledger.note import Note, Signer, derive, parse_note
from controlplane.ledger.scrub import Scrub
from controlplane.ledger.tiles import WIDTH, decode_bundle, encode_bundle, tile_hashes
from controlplane.ledger.trust import cosigner
from controlplane.settings import Settings
from controlplane.store.ledger import Finding, Log
from controlplane.store.ledger_scrub import Blob
from tests.integration.ledger.damage import damaged_pair, everything, lead, repairing, rounds
from tests.simulators.ledgers import Site

LEDGER = ("ledger_logs", "ledger_bundles", "ledger_tiles", "ledger_runs", "ledger_cosignatures", "events")


async def entries_of(site: Site, log: Log) -> list[bytes]:
    found: list[bytes] = []
    for index in range(-(-log.size // WIDTH)):
        found += decode_bundle(await site.store.bundle(log.origin, index))
    return found[: log.size]


async def wreck(fra: Site) -> None:
    """A little of everything."""
    old, new = await fra.store.logs(own=True)
    events = fra.database["events"]
    await fra.database["ledger_bundles"].delete_one({"_id": f"{old.origin}|0"})
    await fra.database["ledger_tiles"].update_one({"_id": f"{new.origin}|1|0"}, {"$set": {"data": bytes(32)}})
    await events.delete_one({"dc": "fra", "n": "fra-1", "e": 2, "q": 7})
    await events.update_one({"dc": "fra", "n": "fra-1", "e": 2, "q": 5}, {"$set": {"t": "somebody else"}})
    await events.update_one({"dc": "fra", "n": "fra-1", "e": 2, "q": 6}, {"$set": {"salt": None, "data": None}})
    await fra.database["ledger_runs"].delete_one({"log": new.origin, "n": "fra-1"})
    await fra.database["ledger_logs"].update_one({"_id": new.origin}, {"$set": {"frontier": [], "checkpoint": ""}})
    await fra.database["ledger_cosignatures"].update_one(
        {"_id": f"{new.origin}|sms.example/ledger/iad/mirror"}, {"$set": {"size": 7}}
    )


class TestCourse:
    """Dry unless told otherwise; twice does no more than once; what was touched is verified, and recorded."""

    async def test_scrub_finds_and_repair_mends(self, settings: Settings) -> None:
        """The public flow: findings, a request, its report."""
        async with damaged_pair(settings) as (fra, iad), asyncio.TaskGroup() as group:
            await wreck(fra)
            hurried = fra.settings.model_copy(update={"ledger_scrub_days": 1 / 1_440})  # everything each minute
            await Scrub(fra.store, fra.copies, hurried, fra.clock).tick()
            found = {each.kind for each in await fra.store.findings("open")}
            assert found == {each.kind for each in await fra.scrub.verify_all()}
            async with repairing(fra, iad) as repair:
                running = group.create_task(repair.run())
                try:
                    await fra.store.ask_repair("one", {"at": 1, "dry_run": True, "by": "test"})
                    await fra.store.ask_repair("two", {"at": 2, "dry_run": False, "by": "test"})
                    await fra.store.ask_repair("three", {"at": 3, "dry_run": False, "by": "test"})
                    async with asyncio.timeout(30):
                        while (await fra.store.repair("three"))["state"] != "done":
                            await asyncio.sleep(0.05)
                finally:
                    running.cancel()
            dry, done, again = [(await fra.store.repair(name))["report"] for name in ("one", "two", "three")]
            assert {each["outcome"] for each in dry["actions"]} == {"planned"}
            assert not dry["clean"]
            assert {each["kind"] for each in dry["actions"]} >= {
                "bundle", "tile", "event_missing", "event_altered", "run", "log", "checkpoint", "cosignature",
            }  # fmt: skip
            assert {each["outcome"] for each in done["actions"]} <= {"done", "nothing"}
            assert done["clean"]
            assert again["actions"] == []
            json.dumps([dry, done, again])
            assert await fra.scrub.verify_all() == []
            assert await fra.store.findings("open") == []
            await rounds(fra, await lead(fra))
            log = (await fra.store.logs(own=True))[-1]
            refs = [json.loads(entry)["ref"] for entry in await entries_of(fra, log) if b'"kind":"repaired"' in entry]
            assert any(ref.startswith("bundle ") for ref in refs)
            assert await fra.scrub.verify_all() == []

    async def test_a_dry_run_writes_nothing(self, settings: Settings) -> None:
        async with damaged_pair(settings) as (fra, iad):
            await wreck(fra)
            before = await everything(fra)
            async with repairing(fra, iad) as repair:
                report = await repair.mend()
            after = await everything(fra)
            for name in LEDGER:
                assert before[name] == after[name]
            assert {each.outcome for each in report.actions} == {"planned"}

    async def test_without_the_peer_what_can_be_is_mended(self, settings: Settings) -> None:
        """Tiles, runs, documents and bundles from what is here; a lost payload waits for the peer, and the refusal says so."""
        async with damaged_pair(settings) as (fra, iad):
            await wreck(fra)
            async with repairing(fra, iad, online=False) as repair:
                report = await repair.mend(dry_run=False)
            refused = {each.kind for each in report.actions if each.outcome == "refused"}
            assert refused == {"event_missing", "event_altered"}
            assert all("Bring their ledgers up" in each.what for each in report.actions if each.outcome == "refused")
            assert {each.kind for each in report.remaining} == refused
            async with repairing(fra, iad) as repair:
                assert (await repair.mend(dry_run=False)).clean

    async def test_it_takes_its_time(self, settings: Settings) -> None:
        async with damaged_pair(settings) as (fra, iad):
            log = (await fra.store.logs(own=True))[0]
            for q in range(20, 30):
                await fra.database["events"].update_one({"n": "fra-1", "e": 1, "q": q}, {"$set": {"at": 1}})
            async with repairing(fra, iad) as repair:
                repair._pause = 0.05
                found = await fra.scrub.verify(log)
                began = asyncio.get_running_loop().time()
                report = await repair.mend(found, dry_run=False)
            assert len(report.actions) == 10
            assert asyncio.get_running_loop().time() - began >= 0.5

    async def test_little_is_moved(self, settings: Settings) -> None:
        """One entry of which nothing is left costs one entry."""
        async with damaged_pair(settings) as (fra, iad):
            log = (await fra.store.logs(own=True))[0]
            await fra.database["events"].delete_one({"n": "fra-1", "e": 1, "q": 30})
            entries = await entries_of(fra, log)
            entries[30] = b"nothing of it is left"
            data = encode_bundle(entries[:WIDTH])
            await fra.database["ledger_bundles"].update_one({"_id": f"{log.origin}|0"}, {"$set": {"data": data}})
            async with repairing(fra, iad) as repair:
                report = await repair.mend(dry_run=False)
            assert report.clean
            assert (report.read.tiles, report.read.bundles) == (0, 0)
            assert report.read.rows == 2  # the leaf, then the event
            assert await fra.scrub.verify_all() == []

    async def test_one_that_fails_does_not_end_the_ledger(self, settings: Settings) -> None:
        async def broken(*_values: Any, **_named: Any) -> Any:
            raise KeyError("a mistake")

        async with (
            damaged_pair(settings) as (fra, iad),
            asyncio.TaskGroup() as group,
            repairing(fra, iad) as repair,
        ):
            repair.mend = broken
            running = group.create_task(repair.run())
            await fra.store.ask_repair("one", {"at": 1, "dry_run": True, "by": "test"})
            async with asyncio.timeout(10):
                while (await fra.store.repair("one"))["state"] != "failed":
                    await asyncio.sleep(0.05)
            assert "a mistake" in (await fra.store.repair("one"))["reason"]
            running.cancel()

    async def test_what_somebody_wrote_meanwhile_stays(self, settings: Settings) -> None:
        async with damaged_pair(settings) as (fra, _):
            log = (await fra.store.logs(own=True))[-1]
            [seen] = (await fra.store.bundle_blobs(log.origin, [1])).values()
            assert not await fra.store.mend_bundle(log.origin, 1, replace(seen, data=b"older"), b"mended", 0)
            assert not await fra.store.mend_bundle(log.origin, 1, None, b"mended", 0)
            assert not await fra.store.mend_tile(log.origin, (0, 1), Blob(b"", 0), b"mended", 0)
            assert (await fra.store.bundle_blobs(log.origin, [1]))[1] == seen
            assert not await fra.store.replace_log(replace(log, size=1), log)


class TestEvents:
    """What is in no log, and what is nowhere."""

    async def test_an_event_that_was_never_sequenced(self, settings: Settings) -> None:
        """It lands after its term was over and complete; the next round takes it, once."""
        async with damaged_pair(settings) as (fra, iad):
            sequencer = await lead(fra)
            for _ in range(4):
                fra.clock.ahead_ms += 100_000
                await rounds(fra, sequencer)
            assert ("fra-2", 1) in await fra.store.completed()
            fra.committers.pop(("fra-2", 1))
            [event] = await fra.append([fra.accepted()], "fra-2", 1)
            found = await fra.scrub.verify_all()
            assert [(each.kind, each.subject) for each in found] == [("unsequenced", f"fra-2:1 {event.q}")]
            async with repairing(fra, iad) as repair:
                report = await repair.mend(dry_run=False)
                assert report.clean
                assert [each.outcome for each in report.actions] == ["done"]
                assert (await repair.mend(found, dry_run=False)).actions[0].outcome == "nothing"
            await rounds(fra, sequencer)
            assert await fra.scrub.verify_all() == []
            log = (await fra.store.logs(own=True))[-1]
            leaves = [entry for entry in await entries_of(fra, log) if entry == event.leaf]
            assert len(leaves) == 1

    async def test_a_damaged_one_is_not_sequenced(self, settings: Settings) -> None:
        async with damaged_pair(settings) as (fra, iad):
            sequencer = await lead(fra)
            for _ in range(4):
                fra.clock.ahead_ms += 100_000
                await rounds(fra, sequencer)
            fra.committers.pop(("fra-2", 1))
            [event] = await fra.append([fra.accepted()], "fra-2", 1)
            await fra.database["events"].update_one({"_id": event.id}, {"$set": {"data.to": "+1"}})
            async with repairing(fra, iad) as repair:
                report = await repair.mend(dry_run=False)
            [action] = report.actions
            assert action.outcome == "refused"
            assert "no log has its leaf" in action.what

    async def test_a_lost_event_gets_a_gap(self, settings: Settings) -> None:
        """Nobody has `accepted`; the message can be read on from what follows."""
        async with damaged_pair(settings) as (fra, iad):
            sequencer = await lead(fra)
            [head] = await fra.append([fra.accepted()], "lost-1", 1)
            parts = {"connector": "sim", "attempt": 1, "part_ids": [[1, "a"]]}
            [sent] = await fra.append([fra.then(head, Kind.SUBMITTED, parts)], "fra-1", 3)
            [done] = await fra.append([fra.then(sent, Kind.DELIVERED, {"part": 1, "receipt": {}})], "fra-1", 3)
            assert done
            await fra.database["events"].delete_one({"_id": head.id})
            await rounds(fra, sequencer)
            [found] = await fra.scrub.verify_all()
            assert (found.kind, found.subject) == ("chain", head.id)
            async with repairing(fra, iad) as repair:
                assert (await repair.mend([found], dry_run=False)).clean
                assert (await repair.mend(dry_run=False)).actions == []
            story = await fra.reader.load(head.mid)
            assert [each.kind for each in story] == [Kind.GAP, Kind.SUBMITTED, Kind.DELIVERED]
            assert (story[0].reason, story[0].tenant) == ("lost", "sample")
            assert fold(story).status == "delivered"
            await rounds(fra, await lead(fra))
            assert await fra.scrub.verify_all() == []
            await iad.catch_up(fra)
            assert await iad.scrub.verify_all() == []

    async def test_a_predecessor_that_another_log_has(self, settings: Settings) -> None:
        """Its document is gone; the chain leads to the log that has the leaf."""
        async with damaged_pair(settings) as (fra, iad):
            sequencer = await lead(fra)
            [head] = await fra.append([fra.accepted()], "fra-1", 3)
            await rounds(fra, sequencer)
            await iad.catch_up(fra)
            [sent] = await fra.append([fra.then(head, Kind.CANCELLED, {})], "fra-1", 3)
            assert sent
            await rounds(fra, sequencer)
            await fra.database["events"].delete_one({"_id": head.id})
            log = (await fra.store.logs(own=True))[-1]
            chain = finding_of(fra, Fault.CHAIN, log, log.size - 1, head.id)
            async with repairing(fra, iad) as repair:
                report = await repair.mend([chain], dry_run=False)
            assert report.actions[0].outcome == "done"
            assert [each.kind for each in await fra.reader.load(head.mid)] == [Kind.ACCEPTED, Kind.CANCELLED]
            assert await fra.scrub.verify_all() == []

    async def test_numbers_that_are_lost(self, settings: Settings) -> None:
        """A hole that no event explains is explained, with the reason."""
        async with damaged_pair(settings) as (fra, iad):
            sequencer = await lead(fra)
            await fra.append([fra.accepted() for _ in range(5)], "fra-3", 1)
            await fra.database["events"].delete_one({"n": "fra-3", "q": 3})
            await rounds(fra, sequencer)
            fra.clock.ahead_ms += 100_000
            await rounds(fra, sequencer)
            await fra.database["events"].delete_many({"kind": "gap", "ref": "fra-3:1 3-3"})
            found = await fra.scrub.verify_all()
            assert {(each.kind, each.subject) for each in found} >= {("sequence", "fra-3:1 3-3")}
            async with repairing(fra, iad) as repair:
                report = await repair.mend([each for each in found if each.kind == Fault.SEQUENCE], dry_run=False)
                assert report.actions[0].outcome == "done"
            gap = await fra.database["events"].find_one({"kind": "gap", "ref": "fra-3:1 3-3"})
            assert gap["reason"] == "lost"

    async def test_a_stranger_with_the_number_of_another(self, settings: Settings) -> None:
        """It is not deleted: people read it."""
        async with damaged_pair(settings) as (fra, iad):
            document = await fra.database["events"].find_one({"n": "fra-1", "e": 1, "q": 9})
            stranger = {**document, "_id": "stranger:0", "mid": "stranger", "leaf": b"x"}
            await fra.database["events"].insert_one(stranger)
            [found] = await fra.scrub.verify_all()
            assert (found.kind, found.subject) == ("stray", "stranger:0")
            async with repairing(fra, iad) as repair:
                report = await repair.mend(dry_run=False)
            assert report.actions[0].outcome == "refused"
            assert await fra.database["events"].count_documents({"_id": "stranger:0"}) == 1


def finding_of(site: Site, kind: Fault, log: Log, index: int, subject: str) -> Any:
    return Finding(kind=kind, origin=log.origin, first=index, last=index, detail="", at=0, subject=subject)


class TestHistory:
    """What cannot be mended in place ends the log: nothing that was signed is changed, nothing is lost, and the next log commits to the one that ended."""

    async def test_a_signed_root_that_nothing_leads_to(self, settings: Settings) -> None:
        """A leaf hash was flipped before it was signed (Yeti 2022): no copy anywhere can lead to the root."""
        async with damaged_pair(settings) as (fra, iad):
            sequencer = await lead(fra)
            await fra.append([fra.accepted() for _ in range(40)], "fra-1", 3)
            log = (await fra.store.logs(own=True))[-1]
            before = log.size
            await rounds(fra, sequencer)
            log = (await fra.store.logs(own=True))[-1]
            assert log.size > before
            wrong = await self._signed_wrong(fra, log, before + 7)
            found = await fra.scrub.verify(wrong)
            assert [(each.kind, each.first, each.last) for each in found] == [("bundle", before + 7, before + 7)]
            async with repairing(fra, iad, online=False) as repair:
                report = await repair.mend(found, dry_run=False)
                assert report.actions[0].outcome == "refused"
            async with repairing(fra, iad) as repair:
                report = await repair.mend(found, dry_run=True)
                assert report.actions[0].outcome == "planned"
                report = await repair.mend(found, dry_run=False)
                assert report.clean, report.remaining
                await rounds(fra, repair.sequencer)
            await self._ended(fra, iad, log, before + 7, "root")

    async def _signed_wrong(self, fra: Site, log: Log, index: int) -> Log:
        leaves = await entries_of(fra, log)
        data = bytearray(tile_hashes(leaves))
        data[32 * index] ^= 1
        frontier = Frontier()
        frontier.extend([bytes(data[at : at + 32]) for at in range(0, len(data), 32)])
        key = Signer.log(log.origin, derive(fra.settings.ledger_seed, "log"))
        text = Checkpoint(log.origin, log.size, frontier.root()).text
        wrong = replace(
            log, root=frontier.root(), frontier=tuple(frontier.hashes), checkpoint=str(Note(text, (key.sign(text),)))
        )
        for (level, number), tile in grow(0, {}, leaves).tiles.items():
            if level == 0:
                tile = bytes(data[number * 8192 : number * 8192 + len(tile)])  # noqa: PLW2901
            await fra.database["ledger_tiles"].update_one(
                {"_id": f"{log.origin}|{level}|{number}"}, {"$set": {"data": tile}}
            )
        await fra.database["ledger_logs"].update_one({"_id": log.origin}, {"$set": wrong.document()})
        return wrong

    async def _ended(self, fra: Site, iad: Site, log: Log, size: int, reason: str) -> None:
        """The log ended at `size`; everything that stood behind is in the next one; both datacenters agree."""
        ended, after = (await fra.store.logs(own=True))[-2:]
        assert (ended.origin, ended.size, ended.state, ended.seal, ended.next) == (
            log.origin,
            size,
            "sealed",
            reason,
            after.origin,
        )
        entries = await entries_of(fra, after)
        assert json.loads(entries[0])["ref"].split(" ")[:2] == [log.origin, str(size)]
        assert any(b'"kind":"recovered"' in entry for entry in entries)

        def numbers(leaves: list[bytes]) -> set[tuple[str, int, int]]:
            places = [place for place in map(place_of, leaves) if place.n not in ("opened", "ledger")]
            return {(place.n, place.e, place.q) for place in places}

        given_up = (await entries_of(fra, replace(ended, size=log.size)))[size:]
        lost = numbers(given_up) - numbers(entries)
        assert not lost
        assert await fra.scrub.verify_all() == []
        await iad.catch_up(fra)
        assert await iad.scrub.verify_all() == []
        assert (await iad.store.log(after.origin)).size == after.size

    async def test_two_signed_histories(self, settings: Settings) -> None:
        """The log was rewritten and signed again; the peer has what it was. It ends where both part."""
        async with damaged_pair(settings) as (fra, iad):
            log = (await fra.store.logs(own=True))[-1]
            leaves = await entries_of(fra, log)
            at = 200
            event = json.loads(leaves[at])
            await fra.database["events"].delete_one({"_id": f"{event['mid']}:{event['k']}"})
            rewritten = [*leaves]
            rewritten[at] = leaves[at].replace(b'"kind"', b'"kind" ')
            growth = grow(0, {}, rewritten)
            key = Signer.log(log.origin, derive(fra.settings.ledger_seed, "log"))
            text = Checkpoint(log.origin, log.size, growth.root).text
            other = replace(
                log,
                root=growth.root,
                frontier=tuple(growth.frontier.hashes),
                checkpoint=str(Note(text, (key.sign(text),))),
            )
            for (level, number), tile in growth.tiles.items():
                await fra.database["ledger_tiles"].update_one(
                    {"_id": f"{log.origin}|{level}|{number}"}, {"$set": {"data": tile}}
                )
            for number in range(0, log.size, WIDTH):
                data = encode_bundle(rewritten[number : number + WIDTH])
                await fra.database["ledger_bundles"].update_one(
                    {"_id": f"{log.origin}|{number // WIDTH}"}, {"$set": {"data": data}}
                )
            await fra.database["ledger_logs"].update_one({"_id": log.origin}, {"$set": other.document()})
            found = await fra.scrub.verify_all()
            assert Fault.FORK in {each.kind for each in found}
            async with repairing(fra, iad) as repair:
                report = await repair.mend(found, dry_run=False)
                assert report.clean, report.remaining
                assert report.read.tiles <= 16
                await rounds(fra, repair.sequencer)
            assert (await fra.store.events([(event["mid"], event["k"])]))[
                f"{event['mid']}:{event['k']}"
            ].leaf == leaves[at]
            await self._ended(fra, iad, log, at, "fork")
            [evidence] = [each for each in await fra.store.findings() if each.kind == Fault.FORK]
            assert evidence.state == "sealed"
            assert log.checkpoint.splitlines()[2] in evidence.detail
            assert other.checkpoint.splitlines()[2] in evidence.detail
            after = (await fra.store.logs(own=True))[-1]
            assert any(b'"kind":"fork"' in entry for entry in await entries_of(fra, after))

    async def test_a_copy_of_a_forked_log_is_frozen(self, settings: Settings) -> None:
        async with damaged_pair(settings) as (fra, iad):
            sequencer = await lead(iad)
            log = (await iad.store.logs(own=False))[-1]
            key = Signer.log(log.origin, derive(fra.settings.ledger_seed, "log"))
            text = Checkpoint(log.origin, log.size, b"\7" * 32).text
            ours = cosigner(iad.settings, "mirror").cosign(text, 1)
            note = str(Note(text, (key.sign(text), ours)))
            await iad.database["ledger_logs"].update_one({"_id": log.origin}, {"$set": {"checkpoint": note}})
            found = await iad.scrub.verify(log)
            assert {each.kind for each in found} == {"root"}
            async with repairing(iad, fra) as repair:
                report = await repair.mend(found, dry_run=False)
            assert [each.outcome for each in report.actions] == ["done"]
            assert (await iad.store.log(log.origin)).state == "frozen"
            await rounds(iad, sequencer)
            own = (await iad.store.logs(own=True))[-1]
            assert any(b'"kind":"fork"' in entry for entry in await entries_of(iad, own))

    async def test_a_database_that_was_put_back(self, settings: Settings) -> None:
        """All of it, events too, is of yesterday: what was signed since comes from the peer's mirror."""
        async with damaged_pair(settings) as (fra, iad):
            log = (await fra.store.logs(own=True))[-1]
            sequencer = await lead(fra)
            yesterday = await everything(fra)
            await fra.append([fra.accepted() for _ in range(30)], "fra-1", 2)
            await rounds(fra, sequencer)
            await iad.catch_up(fra)
            newest = (await fra.store.logs(own=True))[-1]
            cosigned = await everything(fra)
            for name, documents in yesterday.items():
                await fra.database[name].delete_many({})
                if documents:
                    await fra.database[name].insert_many(documents.values())
            for document in cosigned["ledger_cosignatures"].values():
                await fra.database["ledger_cosignatures"].replace_one({"_id": document["_id"]}, document, upsert=True)
            found = await fra.scrub.verify_all()
            assert [(each.kind, each.origin) for each in found] == [("behind", log.origin)]
            await lead(fra)
            async with repairing(fra, iad) as repair:
                report = await repair.mend(dry_run=False)
            assert report.clean, report.remaining
            restored = (await fra.store.logs(own=True))[-1]
            assert (restored.size, restored.root) == (newest.size, newest.root)
            assert await fra.scrub.verify_all() == []

    @pytest.mark.parametrize("kept", [True, False])
    async def test_a_copy_that_was_put_back(self, settings: Settings, kept: bool) -> None:
        """Its document is of before the log ended. The rest is here still, or the mirror goes on from there."""
        async with damaged_pair(settings) as (fra, iad):
            origin = "sms.example/ledger/fra/2026q4"
            old = next(
                log for log in (each["ledger_logs"][origin] for each in reversed(fra.snapshots)) if log["size"] == 219
            )
            fields = {name: old[name] for name in ("size", "root", "frontier")}
            text, signatures = parse_note(old["checkpoint"])
            fields["checkpoint"] = str(Note(text, (*signatures, cosigner(iad.settings, "mirror").cosign(text, 1))))
            await iad.database["ledger_logs"].update_one({"_id": origin}, {"$set": fields, "$unset": {"ahead": ""}})
            if not kept:
                await iad.database["ledger_bundles"].delete_one({"_id": f"{origin}|1"})
                await iad.database["ledger_tiles"].update_many({"_id": {"$regex": origin}}, {"$set": {"ver": 9_999}})
            found = await iad.scrub.verify_all()
            assert ("behind", origin) in {(each.kind, each.origin) for each in found}
            async with repairing(iad, fra) as repair:
                report = await repair.mend(found, dry_run=False)
            assert report.actions[0].outcome == "done"
            assert report.clean is kept
            async with iad.client(fra) as client:
                mirror = iad.mirror(fra, client)
                for _ in range(3):
                    await mirror.step()
            assert await iad.scrub.verify_all() == []
