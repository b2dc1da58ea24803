"""Verification from outside finds every byte that is not as it was signed, whoever serves it."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.domain.events import Event, Kind, commitment, committed_payload, leaf_bytes
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.merkle import grow
from controlplane.ledger.note import Note, Signer, derive
from controlplane.ledger.published import combined
from controlplane.ledger.remote import RemoteLogError, open_note, verify_log
from controlplane.ledger.tiles import WIDTH, bundles, encode_bundle, tiles_of

ORIGIN = "example.com/ledger/fra/2026q4"
SIGNER = Signer.log(ORIGIN, derive(bytes(32), "log"))
COSIGNER = Signer.cosigner("example.com/ledger/iad/mirror", derive(bytes(32), "mirror"))


def leaf(number: int) -> bytes:
    event = Event(f"m{number}", 0, "t", Kind.ACCEPTED, number, {}, dc="fra", node="n", epoch=1, q=number + 1)
    return leaf_bytes(event, commitment(bytes(16), committed_payload(event)))


class Served:
    """A log of `size` entries as files, with what was asked for."""

    def __init__(self, size: int) -> None:
        entries = [leaf(number) for number in range(size)]
        growth = grow(0, {}, entries)
        self.files = {tile.path: growth.tiles[tile.level, tile.index][: 32 * tile.width] for tile in tiles_of(size)}
        for place in bundles(0, size):
            part = entries[place.index * WIDTH : place.index * WIDTH + place.width]
            self.files[place.path] = encode_bundle(part)
        text = Checkpoint(ORIGIN, size, growth.root).text
        self.note = str(Note(text, (SIGNER.sign(text),)))
        self.asked: set[str] = set()

    async def fetch(self, path: str) -> bytes:
        self.asked.add(path)
        try:
            return self.files[path]
        except KeyError:
            raise RemoteLogError(f"{path} is not served") from None

    def verify(self, start: int = 0) -> tuple[int, list[tuple[int, int]]]:
        told: list[tuple[int, int]] = []
        seen = open_note(self.note, ORIGIN, [SIGNER.verifier])
        done = asyncio.run(verify_log(self.fetch, seen, start, lambda *numbers: told.append(numbers)))
        return done, told


class TestWholeLogs:
    """Every file that makes up the log is read and compared."""

    @pytest.mark.parametrize("size", [1, 255, 256, 257, 2_048, 5_000])
    def test_good_ones(self, size):
        served = Served(size)
        done, told = served.verify()
        assert done == size
        assert told[-1] == (size, size)
        assert served.asked == served.files.keys()

    def test_from_a_later_entry(self):
        served = Served(5_000)
        assert served.verify(4_400)[0] == 5_000 - 4_400 // WIDTH * WIDTH
        assert "tile/entries/000" not in served.asked
        assert served.verify(5_000)[0] == 5_000 % WIDTH

    def test_from_a_later_entry_the_rest_is_bound_by_the_root(self):
        served = Served(5_000)
        path = next(path for path in served.files if path.startswith("tile/1/"))
        served.files[path] = bytes(len(served.files[path]))
        with pytest.raises(RemoteLogError):
            served.verify(4_400)

    def test_each_file_changed_or_gone(self):
        """One byte in the middle of each, and each missing."""
        for path in Served(1_100).files:
            served = Served(1_100)
            data = bytearray(served.files[path])
            data[len(data) // 2] ^= 1
            served.files[path] = bytes(data)
            with pytest.raises(RemoteLogError):
                served.verify()
            del served.files[path]
            with pytest.raises(RemoteLogError):
                served.verify()

    def test_another_log_of_the_same_size(self):
        served, other = Served(600), Served(600)
        other.note = served.note
        for path, data in Served(601).files.items():
            if path in other.files:
                other.files[path] = data[: len(other.files[path])]
        other.files["tile/entries/000"] = encode_bundle([leaf(n + 1) for n in range(WIDTH)])
        with pytest.raises(RemoteLogError):
            other.verify()


class TestCheckpoints:
    """Only the log's own key makes a checkpoint one."""

    def test_who_signed(self):
        text = Checkpoint(ORIGIN, 0, bytes(32)).text
        own, other = SIGNER.sign(text), COSIGNER.cosign(text, 5)
        keys = [SIGNER.verifier, COSIGNER.verifier]
        seen = open_note(str(Note(text, (own, other))), ORIGIN, keys)
        assert [name for name, _ in seen.signed_by] == [ORIGIN, COSIGNER.name]
        for signatures in ((other,), (own._replace(blob=bytes(64)),)):
            with pytest.raises(RemoteLogError):
                open_note(str(Note(text, signatures)), ORIGIN, keys)
        with pytest.raises(RemoteLogError, match="known key"):
            open_note(str(Note(text, (own,))), ORIGIN.replace("fra", "iad"), keys)

    def test_cosignatures_come_together_only_over_one_text(self):
        text, other = Checkpoint(ORIGIN, 7, bytes(32)).text, Checkpoint(ORIGIN, 7, bytes(31) + b"1").text
        own = str(Note(text, (SIGNER.sign(text),)))
        good = str(Note(text, (SIGNER.sign(text), COSIGNER.cosign(text, 5))))
        bad = str(Note(other, (SIGNER.sign(other), COSIGNER.cosign(other, 5))))
        assert combined(own, [good, good]) == good
        assert combined(own, [bad]) == own
