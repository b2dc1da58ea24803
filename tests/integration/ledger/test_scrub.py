"""Scrubbing: everything is read again and again, at its pace, wherever a restart interrupts it; and finding one bad bundle among millions is cheap."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from controlplane.ledger.audit import Audit
from controlplane.ledger.check import Fault, Ranges, decode_some
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.merkle import Frontier, grow, node_hash
from controlplane.ledger.note import Note, Signer, derive
from controlplane.ledger.proven import Place, locate
from controlplane.ledger.scrub import Scrub
from controlplane.ledger.tiles import HASH_BYTES, WIDTH, encode_bundle, tile_root
from controlplane.settings import Settings
from controlplane.store.ledger import Log
from tests.integration.ledger.damage import damaged_pair, lead, prepare, rounds
from tests.simulators.ledgers import Site, site

LARGE = 10_000_000


async def spoil(at: Site, collection: str, identity: str, place: int = 40) -> bytes:
    """Flip a bit; the bytes as they were."""
    before = (await at.database[collection].find_one({"_id": identity}))["data"]
    changed = bytearray(before)
    changed[place] ^= 1
    await at.database[collection].update_one({"_id": identity}, {"$set": {"data": bytes(changed)}})
    return before


async def filled(at: Site, entries: int) -> Log:
    """A log of small entries, without events."""
    origin = f"{at.settings.ledger_domain}/ledger/{at.dc}/2026q4"
    signer = Signer.log(origin, derive(at.settings.ledger_seed, "log"))
    leaves = [b"%064d" % number for number in range(entries)]
    growth = grow(0, {}, leaves)
    bundles = {start // WIDTH: encode_bundle(leaves[start : start + WIDTH]) for start in range(0, entries, WIDTH)}
    await at.store.stage(origin, 1, bundles, growth.tiles, ())
    text = Checkpoint(origin, entries, growth.root).text
    log = Log(
        origin=origin,
        dc=at.dc,
        own=True,
        vkey=signer.vkey,
        size=entries,
        root=growth.root,
        frontier=tuple(growth.frontier.hashes),
        checkpoint=str(Note(text, (signer.sign(text),))),
        opened_at=1,
    )
    await at.store.create_log(log)
    return log


class TestOnDemand:
    """A range is verified by the code that verifies the whole."""

    async def test_ranges_and_progress(self, settings: Settings) -> None:
        async with damaged_pair(settings) as (fra, _):
            log = (await fra.store.logs(own=True))[-1]
            told: list[tuple[int, int]] = []
            assert await fra.scrub.verify(log, progress=lambda done, total: told.append((done, total))) == []
            assert told[-1] == (log.size, log.size)
            await spoil(fra, "ledger_bundles", f"{log.origin}|1")
            assert await fra.scrub.verify(log, 0, 255) == []
            [found] = await fra.scrub.verify(log.origin, 256)
            assert (found.kind, found.first, found.last) == ("bundle", 256, 256)
            assert await fra.scrub.verify(log, 0, -1) == []  # the document alone
            with pytest.raises(KeyError):
                await fra.scrub.verify("sms.example/ledger/fra/1999q1")

    async def test_hashes_alone_are_fast(self, settings: Settings) -> None:
        """100,000 leaves a second on a quiet machine; much less would be another algorithm."""
        async with site(settings, "fra") as fra:
            prepare(fra)
            log = await filled(fra, 60_000)
            began = time.process_time()
            assert await fra.scrub.verify(log, hashes_only=True) == []
            spent = time.process_time() - began
            print(f"\n{log.size / spent:,.0f} leaves a second, {1e6 * spent / log.size:.2f} µs a leaf")
            assert log.size / spent > 25_000

    async def test_a_former_key_is_vouched_for_by_the_next_log(self, settings: Settings) -> None:
        async with site(settings, "fra") as fra:
            prepare(fra)
            await fra.messages(20)
            await rounds(fra, await lead(fra))
            other = type(settings.ledger_key)(base64.b64encode(b"k" * 32).decode())
            fra.settings = fra.settings.model_copy(update={"ledger_key": other})
            prepare(fra)
            fra.committers.clear()
            await rounds(fra, await lead(fra))
            first, second = await fra.store.logs(own=True)
            assert first.vkey.rpartition("+")[2] != second.vkey.rpartition("+")[2]
            assert await fra.scrub.verify_all() == []
            await fra.database["ledger_logs"].update_one({"_id": first.origin}, {"$set": {"root": b"\1" * 32}})
            found = await fra.scrub.verify(first.origin)
            assert {each.subject for each in found} >= {"vkey"}

    async def test_nobody_else_may_sign(self, settings: Settings) -> None:
        """A log whose document names a key that is not in the settings is not believed, whatever it signs."""
        async with damaged_pair(settings) as (fra, _):
            log = (await fra.store.logs(own=True))[-1]
            stranger = Signer.log(log.origin, derive(b"s" * 32, "log"))
            text = Checkpoint(log.origin, log.size, log.root).text
            note = str(Note(text, (stranger.sign(text),)))
            fields = {"vkey": stranger.vkey, "checkpoint": note}
            await fra.database["ledger_logs"].update_one({"_id": log.origin}, {"$set": fields})
            found = {(each.kind, each.subject) for each in await fra.scrub.verify(log)}
            assert found == {("log", "vkey"), ("checkpoint", "")}


class TestInTheBackground:
    """Within `ledger_scrub_days` everything is read again, and nothing is taken for verified because it was."""

    async def test_the_cycle_goes_on_after_a_restart_and_begins_again(self, settings: Settings) -> None:
        async with damaged_pair(settings) as (fra, _):
            fra.settings = fra.settings.model_copy(update={"ledger_scrub_days": 4 / 1_440})  # four minutes
            seen: list[tuple[str, int]] = []
            for _ in range(9):
                scrub = Scrub(fra.store, fra.copies, fra.settings, fra.clock)
                spy(scrub, seen)
                await scrub.tick()
            wanted = {(log.origin, at) for log in await fra.store.logs() for at in range(0, log.size, WIDTH)}
            assert wanted <= set(seen)
            assert await fra.store.findings() == []

    async def test_what_is_found_is_written_down_until_it_is_gone(self, settings: Settings) -> None:
        async with damaged_pair(settings) as (fra, _):
            fra.settings = fra.settings.model_copy(update={"ledger_scrub_days": 1 / 1_440})
            scrub = Scrub(fra.store, fra.copies, fra.settings, fra.clock)
            for _ in range(3):
                await scrub.tick()
            assert scrub.cycles >= 1
            assert await fra.store.findings() == []
            log = (await fra.store.logs(own=True))[0]
            before = await spoil(fra, "ledger_bundles", f"{log.origin}|0")
            for _ in range(2):
                await scrub.tick()
            [found] = await fra.store.findings("open")
            assert (found.kind, found.origin, found.first) == ("bundle", log.origin, 0)
            await fra.database["ledger_bundles"].update_one({"_id": f"{log.origin}|0"}, {"$set": {"data": before}})
            for _ in range(2):
                await scrub.tick()
            assert await fra.store.findings("open") == []
            assert [each.state for each in await fra.store.findings()] == ["cured"]

    async def test_an_erasure_that_was_cut_short(self, settings: Settings) -> None:
        async with damaged_pair(settings) as (fra, _):
            identity, before = next(iter(fra.before_erasure.items()))
            await fra.database["events"].replace_one({"_id": identity}, before)
            found = [each for each in await fra.scrub.verify_all() if each.kind == Fault.UNERASED]
            assert [each.subject for each in found] == [identity]


def spy(scrub: Scrub, seen: list[tuple[str, int]]) -> None:
    """What `scrub` looks at in its cycle: bundles, by (origin, first entry)."""
    made = scrub._audit

    def audit(holdings: Any, origin: str) -> Audit:
        found = made(holdings, origin)
        entries = found.entries

        async def spied(first: int = 0, last: int | None = None, *values: Any, **named: Any) -> None:
            end = found.case.tree.size if last is None else last + 1
            seen.extend((origin, at) for at in range(first, end, WIDTH))
            await entries(first, last, *values, **named)

        found.entries = spied  # type: ignore[method-assign]
        return found

    scrub._audit = audit  # type: ignore[method-assign]


class Endless:
    """The tiles of a log of equal entries, but for one bundle; none is kept."""

    def __init__(self, size: int, odd: int | None) -> None:
        self.size = size
        self.odd = odd
        self.read = 0
        self._level = [[bytes(32), b"\1" * 32]]
        """Level → (hash of a usual subtree, hash of the one with the odd bundle)."""
        for level in range(4):
            usual = self._level[level][0]
            full = usual * WIDTH
            odd_at = ((odd or 0) >> 8 * max(level - 1, 0)) % WIDTH if level else 0
            mixed = self._level[level][1] * WIDTH if level == 0 else self._mixed(level, odd_at)
            self._level.append([tile_root(full), tile_root(mixed)])

    def _mixed(self, level: int, at: int) -> bytes:
        usual, odd = self._level[level]
        return usual * at + odd + usual * (WIDTH - 1 - at)

    async def tiles(self, origin: str, places: Iterable[Place]) -> dict[Place, bytes]:
        found = {}
        for level, index in places:
            self.read += 1
            width = min(WIDTH, (self.size >> 8 * level) - index * WIDTH)
            usual, odd = self._level[level]
            data = usual * width
            if self.odd is not None and self.odd >> 8 * level == index:
                at = (self.odd >> 8 * (level - 1)) % WIDTH if level else 0
                data = (
                    odd * width if level == 0 else (usual * at + odd + usual * (width - 1 - at) if at < width else data)
                )
            found[level, index] = data
        return found

    async def bundles(self, origin: str, indices: Sequence[int]) -> dict[int, bytes]:
        raise NotImplementedError


class TestLocate:
    """Two copies of a log are compared from the top down."""

    @pytest.mark.parametrize("odd", [0, 1, 20_000, 39_000, 39_061, 39_062])
    async def test_one_bundle_in_ten_million_entries(self, odd: int) -> None:
        own, other = Endless(LARGE, odd), Endless(LARGE, None)
        whole = await locate("x", LARGE, own, other)
        assert whole.bundles == [odd]
        root = await root_of(other)
        found = await locate("x", LARGE, own, other, root)
        assert found.bundles == [odd]
        assert found.tiles_read <= 3 <= whole.tiles_read <= 5

    async def test_equal_ones(self) -> None:
        found = await locate("x", LARGE, Endless(LARGE, None), Endless(LARGE, None))
        assert (found.bundles, found.tiles_read) == ([], 3)


async def root_of(copy: Endless) -> bytes:
    hashes: list[bytes] = []
    for level in range(3, -1, -1):
        width = (copy.size >> 8 * level) % WIDTH
        if width:
            place = (level, copy.size >> 8 * (level + 1))
            data = (await copy.tiles("x", [place]))[place][: width * HASH_BYTES]
            frontier = Frontier()
            frontier.extend([data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)])
            hashes += frontier.hashes
    value = hashes[-1]
    for left in hashes[-2::-1]:
        value = node_hash(left, value)
    return value


class TestPieces:
    """The pure parts."""

    def test_ranges(self) -> None:
        ranges = Ranges()
        assert [ranges.add(number) for number in (3, 1, 2, 2, 9, 7, 8, 5)] == [
            True,
            True,
            True,
            False,
            True,
            True,
            True,
            True,
        ]
        assert list(ranges) == [(1, 3), (5, 5), (7, 9)]
        assert (ranges.count, 5 in ranges, 4 in ranges, 10 in ranges) == (7, True, False, False)
        assert ranges.holes(0, 12) == [(0, 0), (4, 4), (6, 6), (10, 12)]
        ranges.cover(4, 20)
        assert list(ranges) == [(1, 20)]
        ranges.cover(25, 30)
        ranges.cover(21, 22)
        assert ranges.holes(1, 30) == [(23, 24)]

    def test_as_much_of_a_bundle_as_can_be_read(self) -> None:
        data = encode_bundle([b"one", b"two"])
        assert decode_some(data) == ([b"one", b"two"], "")
        entries, problem = decode_some(data[:-1])
        assert entries == [b"one"]
        assert "within entry 1" in problem
        assert decode_some(b"")[1] == "the bundle is empty"
