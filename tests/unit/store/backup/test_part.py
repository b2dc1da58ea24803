"""A part opens as it was written, and in no other way."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import bson
import pytest

from controlplane.store.backup.part import MAGIC, Keys, PartError, Sealer, read_part

SECRET = b"a secret of at least thirty-two characters"
KEYS = Keys(SECRET, b"s" * 32)
CHUNKS = [[bson.encode({"_id": n, "text": "x" * n}) for n in range(start, start + 5)] for start in (0, 5, 10)]


def written(keys: Keys = KEYS, name: str = "events.0000", chunks: list[list[bytes]] = CHUNKS) -> bytes:
    sealer = Sealer(keys, name)
    frames = [sealer.seal(sealer.take(), chunk) for chunk in chunks]
    documents = [document for chunk in chunks for document in chunk]
    return b"".join([MAGIC, *frames, sealer.end(len(documents), sum(map(len, documents)))])


def frames(content: bytes) -> list[bytes]:
    found, at = [], len(MAGIC)
    while at < len(content):
        _, length = struct.unpack_from(">BI", content, at)
        found.append(content[at : at + 5 + length])
        at += 5 + length
    return found


def read(
    path: Path, content: bytes, keys: Keys = KEYS, name: str = "events.0000", sha256: str = ""
) -> list[list[bytes]]:
    path.write_bytes(content)
    sha256 = sha256 or hashlib.sha256(content).hexdigest()
    return [[bytes(one) for one in chunk] for chunk in read_part(path, keys, name, sha256)]


def test_as_it_was_written(tmp_path: Path) -> None:
    assert read(tmp_path / "p", written()) == CHUNKS
    assert read(tmp_path / "p", written(chunks=[])) == []
    assert b"xxxxxxxx" not in written()


def test_any_changed_byte_is_seen(tmp_path: Path) -> None:
    """Also by somebody who makes the manifest's SHA-256 anew."""
    good = written()
    for at in range(len(good)):
        bad = good[:at] + bytes((good[at] ^ 0x40,)) + good[at + 1 :]
        with pytest.raises(PartError):
            read(tmp_path / "p", bad)


def test_any_cut_is_seen(tmp_path: Path) -> None:
    good = written()
    for end in range(len(good)):
        with pytest.raises(PartError, match="cut"):
            read(tmp_path / "p", good[:end])
    with pytest.raises(PartError, match="goes on behind its end"):
        read(tmp_path / "p", good + b"\0")


def test_frames_that_were_moved_left_out_or_repeated(tmp_path: Path) -> None:
    one, two, three, end = frames(written())
    for order in ([two, one, three, end], [one, three, end], [one, one, two, three, end], [one, two, end], [end]):
        with pytest.raises(PartError, match="damaged at frame"):
            read(tmp_path / "p", b"".join([MAGIC, *order]))


def test_another_part_backup_or_key(tmp_path: Path) -> None:
    for keys, name in (
        (KEYS, "events.0001"),
        (Keys(SECRET, b"t" * 32), "events.0000"),
        (Keys(SECRET + b"!", b"s" * 32), "events.0000"),
    ):
        with pytest.raises(PartError, match="of another part or backup"):
            read(tmp_path / "p", written(), keys, name)


def test_another_file_than_the_manifest_names(tmp_path: Path) -> None:
    with pytest.raises(PartError, match="not the one that the manifest names"):
        read(tmp_path / "p", written(), sha256=hashlib.sha256(b"").hexdigest())


def test_no_two_parts_share_a_key() -> None:
    assert KEYS.check == Keys(SECRET, b"s" * 32).check != Keys(SECRET + b"!", b"s" * 32).check
    assert len({KEYS.mac(b""), KEYS.mac(b"x"), Keys(SECRET, b"t" * 32).mac(b"")}) == 3
    assert len(written(name="a")) == len(written(name="b"))
    assert not set(frames(written(name="a"))) & set(frames(written(name="b")))
