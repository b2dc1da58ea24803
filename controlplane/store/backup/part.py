"""One file of a backup: a stretch of one collection's documents.

    part    = magic, frame …, last frame
    frame   = flag (1 byte: 0, or 1 in the last one), length of what follows (4 bytes, big-endian), sealed
    sealed  = AES-256-GCM(key, nonce, plain, flag), the tag at its end
    plain   = zlib(BSON documents, one after another); of the last frame JSON: how many documents and bytes there were

The key is the part's own: HKDF-SHA256 of the region's secret key, with the backup's random salt and the part's name. So a nonce is the frame's number; what is
cut, moved within a part, or put under another name or into another backup does not open.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["MAGIC", "Keys", "PartError", "Sealer", "read_part"]

MAGIC = b"HELIOGRAPH-BACKUP-1\n"
_FRAME = struct.Struct(">BI")
_MORE, _LAST = b"\0", b"\1"
_LEVEL = 1
_MOST = 64 * 2**20
"""No frame is larger: a chunk is a MiB and one document, which MongoDB keeps below 16 MiB."""


class PartError(Exception):
    """A part is not what was written; the message says in what."""


class _Trailer(msgspec.Struct, forbid_unknown_fields=True):
    documents: int
    bytes: int


class Keys:
    """All keys of one backup."""

    def __init__(self, secret: bytes, salt: bytes) -> None:
        self._secret = secret
        self._salt = salt

    def _derive(self, what: str) -> bytes:
        return HKDF(SHA256(), 32, self._salt, f"heliograph backup {what}".encode()).derive(self._secret)

    def part(self, name: str) -> AESGCM:
        """The cipher of a part."""
        return AESGCM(self._derive(f"part {name}"))

    def mac(self, text: bytes) -> str:
        """Of a manifest: 64 hexadecimal digits."""
        return hmac.digest(self._derive("manifest"), text, "sha256").hex()

    @property
    def check(self) -> str:
        """Tells whether a key is the right one, without saying anything of it."""
        return self._derive("check")[:8].hex()


class Sealer:
    """Makes the frames of one part, in order; `seal` itself may run in any thread."""

    def __init__(self, keys: Keys, name: str) -> None:
        self._cipher = keys.part(name)
        self._number = 0

    def take(self) -> int:
        """The number of the next frame."""
        self._number += 1
        return self._number - 1

    def seal(self, number: int, documents: Sequence[bytes]) -> bytes:
        """A frame of these documents."""
        return self._frame(number, _MORE, zlib.compress(b"".join(documents), _LEVEL))

    def end(self, documents: int, size: int) -> bytes:
        """The last frame."""
        return self._frame(self.take(), _LAST, msgspec.json.encode(_Trailer(documents, size)))

    def _frame(self, number: int, flag: bytes, plain: bytes) -> bytes:
        sealed = self._cipher.encrypt(_nonce(number), plain, flag)
        return _FRAME.pack(flag[0], len(sealed)) + sealed


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def read_part(path: Path, keys: Keys, name: str, sha256: str) -> Iterator[list[memoryview]]:
    """The documents of each frame. Raises PartError for anything that is not as it was written, OSError.

    Frames are authenticated one by one: what was yielded is right, and only the end of the iteration says that it is all.
    """
    cipher, whole = keys.part(name), hashlib.sha256()
    count = size = number = 0
    with path.open("rb") as file:

        def read(length: int, what: str) -> bytes:
            found = file.read(length)
            whole.update(found)
            if len(found) < length:
                raise PartError(f"{name} ends within {what}: it was cut, or is not copied whole")
            return found

        if read(len(MAGIC), "its header") != MAGIC:
            raise PartError(f"{name} is no part of a backup of this format")
        while True:
            flag, length = _FRAME.unpack(read(_FRAME.size, f"frame {number}"))
            if length > _MOST:
                raise PartError(f"{name} is damaged at frame {number}: a length of {length} bytes")
            sealed = read(length, f"frame {number}")
            try:
                plain = cipher.decrypt(_nonce(number), sealed, bytes((flag,)))
            except InvalidTag:
                raise PartError(
                    f"{name} is damaged at frame {number}: it was changed, moved, or is of another part or backup"
                ) from None
            if flag:
                break
            documents = _split(zlib.decompress(plain), name)
            count, size, number = count + len(documents), size + sum(map(len, documents)), number + 1
            yield documents
        if file.read(1):
            raise PartError(f"{name} goes on behind its end")
    if msgspec.json.decode(plain, type=_Trailer) != _Trailer(count, size):
        raise PartError(f"{name} has {count} documents, and its end speaks of others")
    if whole.hexdigest() != sha256:
        raise PartError(f"{name} is not the one that the manifest names")


def _split(blob: bytes, name: str) -> list[memoryview]:
    """Documents that stand one after another, each with its length in front (bsonspec.org)."""
    view, found, at = memoryview(blob), [], 0
    while at < len(blob):
        length = int.from_bytes(view[at : at + 4], "little")
        if length < 5 or at + length > len(blob):
            raise PartError(f"{name} holds what is no BSON")
        found.append(view[at : at + length])
        at += length
    return found
