"""More than a thousand damaged ledgers: all are found, at the right place, and mended, ended or refused as designed; and what is merely odd is no alarm."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest
from bson import BSON
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteOne, ReplaceOne

from controlplane.domain.events import Kind
from controlplane.ledger import mirror as mirror_module
from controlplane.ledger.repair import Action
from controlplane.ledger.tiles import decode_bundle, encode_bundle
from controlplane.settings import Settings
from controlplane.store.ledger import Finding
from tests.integration.ledger.damage import Traffic, damaged_pair, everything, lead, prepare, repairing, rounds
from tests.integration.ledger.mutations import EVENTS, MENDED, REFUSED, SEALED, Change, Generator, Mutation, every
from tests.simulators.ledgers import Site, peer_of, site

OUTCOMES = (MENDED, SEALED, REFUSED)
WATCHED = (
    "events", "terms", "ledger_logs", "ledger_bundles", "ledger_tiles", "ledger_runs", "ledger_cosignatures", "ledger_witnessed",
    "ledger_findings", "ledger_lease",
)  # fmt: skip


class Bench:
    """A site whose documents are known, and are put back after each mutation."""

    def __init__(self, site: Site, documents: dict[str, dict[Any, Any]]) -> None:
        self.site = site
        self.documents = documents
        self.raw: dict[str, dict[Any, bytes]] = {}

    async def remember(self) -> None:
        self.raw = await self.read()

    async def read(self) -> dict[str, dict[Any, bytes]]:
        found: dict[str, dict[Any, bytes]] = {}
        for name in WATCHED:
            collection = self.site.database[name].with_options(
                codec_options=self.site.database.codec_options.with_options(document_class=RawBSONDocument)
            )
            found[name] = {d["_id"]: bytes(d.raw) async for d in collection.find().batch_size(5_000)}
        return found

    async def apply(self, change: Change) -> None:
        operations: dict[str, list[Any]] = {}
        for (name, identity), document in change.items():
            operations.setdefault(name, []).append(
                DeleteOne({"_id": identity})
                if document is None
                else ReplaceOne({"_id": identity}, document, upsert=True)
            )
        for name, each in operations.items():
            await self.site.database[name].bulk_write(each)

    async def differences(self) -> tuple[Change, Change]:
        """What is not as it was: as it was, and as it is."""
        now = await self.read()
        places = [
            (name, identity)
            for name, before in self.raw.items()
            for identity in before.keys() | now[name].keys()
            if before.get(identity) != now[name].get(identity)
        ]
        return {each: _decoded(self.raw, *each) for each in places}, {each: _decoded(now, *each) for each in places}


def _decoded(raw: dict[str, dict[Any, bytes]], name: str, identity: Any) -> dict[str, Any] | None:
    return BSON(raw[name][identity]).decode() if identity in raw[name] else None


def same(was: Change, now: Change) -> bool:
    """Whether what is left differs only in what repair may leave: its own records, who was at a document last, a new time in a cosignature."""
    for (name, identity), before in was.items():
        after = now[name, identity]
        if name == "ledger_findings" or (name == EVENTS and str(identity).startswith("ledger.")):
            continue
        if before is None or after is None:
            return False
        one, two = dict(before), dict(after)
        if name in ("ledger_bundles", "ledger_tiles", "ledger_runs"):
            one.pop("ver"), two.pop("ver")
        if name == EVENTS and one["salt"] is None:
            one.pop("cids", None), two.pop("cids", None)
        if one != two:
            return False
    return True


async def trial(
    mutation: Mutation, bench: Bench, other: Site, matrix: Counter[tuple[str, str]], problems: list[str]
) -> None:
    site = bench.site

    def count(name: str) -> None:
        matrix[mutation.family, name] += 1
        matrix["all", name] += 1

    def problem(what: str, findings: Iterable[Finding], actions: Iterable[Action] = ()) -> None:
        found = "; ".join(f"{e.kind} {e.origin} {e.first}-{e.last} {e.subject}: {e.detail[:90]}" for e in findings)
        did = "; ".join(f"{a.kind} {a.subject} {a.outcome} {a.what[:160]}" for a in actions)
        problems.append(f"{mutation.site} {mutation.family}, {mutation.name}: {what}: {found[:700]} -- {did[:700]}")

    count("damaged")
    await bench.apply(mutation.change)
    origins = {where.origin for where in mutation.must}
    if mutation.between or mutation.family in WIDE or len(origins) > 1 or None in origins:
        found = await site.scrub.verify_all()
    else:
        found = await site.scrub.verify(origins.pop())
    if found:
        count("detected")
    if not all(any(where.fits(each) for each in found) for where in mutation.must):
        problem("not found there", found)
    elif not all(any(where.fits(each) for where in (*mutation.must, *mutation.may)) for each in found):
        problem("found elsewhere too", found)
    else:
        count("located")
    async with repairing(site, other) as repair:
        report = await repair.mend(found, dry_run=False)
        if mutation.outcome == SEALED:
            await rounds(site, repair.sequencer)
    was, now = await bench.differences()
    if mutation.outcome == REFUSED:
        good = any(action.outcome == "refused" for action in report.actions)
    else:
        good = report.clean and (same(was, now) or not await site.scrub.verify_all())
    if good:
        count(mutation.outcome)
    else:
        problem(f"not {mutation.outcome}", await site.scrub.verify_all(), report.actions)
    await bench.apply(was)


WIDE = ("log", "rollback", "fork", "run", "consistent rewriting")
"""Whose findings may be in another log."""


async def test_all_damage_is_found_where_it_is_and_mended(settings: Settings) -> None:
    async with damaged_pair(settings) as (fra, iad):
        benches = {}
        for site in (fra, iad):
            assert await site.scrub.verify_all() == []
            benches[site.dc] = Bench(site, await everything(site))
            await benches[site.dc].remember()
        extra = {"before_erasure": fra.before_erasure, "snapshots": fra.snapshots}
        own = Generator("fra", benches["fra"].documents, 1, **extra)
        copied = Generator("iad", benches["iad"].documents, 1, **extra)
        corpus = every(own, copied, fra.settings.ledger_seed)
        matrix: Counter[tuple[str, str]] = Counter()
        problems: list[str] = []
        others = {"fra": iad, "iad": fra}
        for mutation in corpus:
            await trial(mutation, benches[mutation.site], others[mutation.site], matrix, problems)
            assert len(problems) < 20, problems
    print(f"\n{'family':22} {'damaged':>8} {'detected':>8} {'located':>8} {'mended':>8} {'ended':>8} {'refused':>8}")
    for family in [*dict.fromkeys(each.family for each in corpus), "all"]:
        print(f"{family:22}", *(f"{matrix[family, name]:8}" for name in ("damaged", "detected", "located", *OUTCOMES)))
    assert not problems
    assert matrix["all", "damaged"] == matrix["all", "detected"] == matrix["all", "located"] > 1_000
    assert sum(matrix["all", outcome] for outcome in OUTCOMES) == matrix["all", "damaged"]


class KilledError(Exception):
    """Where a process ends."""


class Healthy:
    """Counts states that are odd and right, and what was said against them."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.alarms: list[str] = []

    async def look(self, site: Site, state: str) -> None:
        self.states[state.partition(":")[0]] += 1
        self.alarms += [
            f"{state}: {each.kind} {each.origin} {each.first}-{each.last} {each.subject}: {each.detail[:200]}"
            for each in await site.scrub.verify_all()
        ]


async def mirroring(fra: Site, iad: Site, healthy: Healthy) -> None:
    """A copy that is killed after each step of each small pull, and looked at then and after it has gone on."""
    rng = random.Random(3)
    steps = ["events", "erased", "staged", "advanced"]

    def kill(wanted: str) -> Callable[[str], None]:
        def at(step: str) -> None:
            if step == wanted:
                raise KilledError(step)

        return at

    held: dict[str, int] = {}
    while held != {log.origin: log.size for log in await fra.store.logs(own=True)}:
        wanted = rng.choice(steps)
        async with iad.client(fra) as client:
            with suppress(KilledError):
                await iad.mirror(fra, client, at=kill(wanted)).step()
            await healthy.look(iad, f"a mirror killed after its {wanted}")
            await iad.mirror(fra, client).step()
        await healthy.look(iad, "a mirror that catches up")
        held = {log.origin: log.size for log in await iad.store.logs(own=False)}
        assert sum(healthy.states.values()) < 400


async def sequencing(fra: Site, healthy: Healthy) -> None:
    """A sequencer that is killed at each step of a round."""
    traffic = Traffic(fra, 9)
    traffic.number = 700_000
    for number, step in enumerate(["gathered", "staged", "checked", "signed", "committed"] * 5):
        await traffic.run(3, "fra-1", 2)
        await healthy.look(fra, "events that wait to be sequenced")

        def at(now: str, wanted: str = step) -> None:
            if now == wanted:
                raise KilledError(now)

        sequencer = await lead(fra)
        sequencer._at = at
        with suppress(KilledError, ExceptionGroup):
            await rounds(fra, sequencer)
        await healthy.look(fra, f"a round killed when {step}")
        if number % 2:
            await rounds(fra, await lead(fra))
            await healthy.look(fra, "a round after one that was killed")


async def erasing(fra: Site, iad: Site, healthy: Healthy) -> None:
    """Messages that are erased, before and after that is sequenced and mirrored."""
    async for head in fra.database[EVENTS].find({"kind": "accepted", "dc": "fra", "salt": {"$ne": None}}).limit(8):
        story = await fra.reader.load(head["mid"])
        data = {"status": "delivered", "class": "otp", "encoding": "gsm7", "parts": 1}
        await fra.append([fra.then(story[-1], Kind.ERASED, data)], "fra-1", 2)
        await healthy.look(fra, "an erasure that was cut short")
        await fra.reader.erase(head["mid"])
        await healthy.look(fra, "an erased message")
        await rounds(fra, await lead(fra))
        await iad.catch_up(fra)
        for each in (fra, iad):
            await healthy.look(each, "an erased message, sequenced and mirrored")


async def oddities(fra: Site, healthy: Healthy) -> None:
    """What may be missing, old or beside the point."""
    database = fra.database
    async for each in database["ledger_cosignatures"].find():
        await database["ledger_cosignatures"].delete_one({"_id": each["_id"]})
        await healthy.look(fra, "a cosignature that is not here")
        old = [
            s["ledger_cosignatures"][each["_id"]]
            for s in fra.snapshots
            if each["_id"] in s.get("ledger_cosignatures", {})
        ]
        for before in old[:2]:
            await database["ledger_cosignatures"].replace_one({"_id": each["_id"]}, before, upsert=True)
            await healthy.look(fra, "an older cosignature")
        await database["ledger_cosignatures"].replace_one({"_id": each["_id"]}, each, upsert=True)
    for log in await fra.store.logs(own=True):
        marks = [[node, epoch, q] for (node, epoch), q in log.marks.items()]
        for at in range(len(marks)):
            await database["ledger_logs"].update_one(
                {"_id": log.origin}, {"$set": {"marks": marks[:at] + marks[at + 1 :]}}
            )
            await healthy.look(fra, "a mark that is not here, and in the runs")
        await database["ledger_logs"].update_one({"_id": log.origin}, {"$set": {"marks": marks}})
    newest = (await fra.store.logs(own=True))[-1]
    index, width = divmod(newest.size, 256)
    bundle = await fra.store.bundle(newest.origin, index)
    tile = await fra.store.tile(newest.origin, 0, index)
    for collection, place, data in (
        ("ledger_bundles", index, encode_bundle([*decode_bundle(bundle)[:width], *([b"draft"] * 20)])),
        ("ledger_bundles", index + 1, encode_bundle([b"draft"] * 9)),
        ("ledger_tiles", f"0|{index}", tile[: 32 * width] + bytes(32 * 20)),
        ("ledger_tiles", f"0|{index + 1}", bytes(32 * 9)),
        ("ledger_tiles", "3|0", bytes(32)),
    ):
        fields = {"$set": {"data": data, "ver": 1 << 32}}
        await database[collection].update_one({"_id": f"{newest.origin}|{place}"}, fields, upsert=True)
        await healthy.look(fra, "drafts beyond the size")
    run = await database["ledger_runs"].find_one({"n": "fra-1", "e": 2})
    beyond = {**run, "_id": f"{run['log']}|fra-1:2|000000900000", "q": 900_000, "index": 900_000}
    await database["ledger_runs"].insert_one(beyond)
    await healthy.look(fra, "drafts beyond the size")


async def test_what_is_merely_odd_is_no_alarm(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "_LIMIT", 11)
    healthy = Healthy()
    async with damaged_pair(settings) as (fra, iad), site(settings, "nyc") as nyc:
        await healthy.look(fra, "untouched")
        await healthy.look(iad, "untouched")
        nyc.knows(peer_of("fra"), peer_of("iad"))
        prepare(nyc)
        nyc.clock.ahead_ms = fra.clock.ahead_ms
        await mirroring(fra, nyc, healthy)
        await sequencing(fra, healthy)
        monkeypatch.setattr(mirror_module, "_LIMIT", 4_096)
        await iad.catch_up(fra)
        await healthy.look(iad, "caught up")
        await erasing(fra, iad, healthy)
        await oddities(fra, healthy)
    print()
    for state, count in healthy.states.items():
        print(f"{state:45} {count:4}")
    print(f"{'all':45} {sum(healthy.states.values()):4}   false alarms: {len(healthy.alarms)}")
    assert not healthy.alarms, healthy.alarms[:10]
    assert sum(healthy.states.values()) >= 200
