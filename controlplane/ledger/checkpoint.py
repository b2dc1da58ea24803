"""Checkpoints: what a log signs, its size and root (c2sp.org/tlog-checkpoint)."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import NamedTuple

from controlplane.ledger.note import check_name
from controlplane.ledger.tiles import HASH_BYTES, MAX_SIZE

__all__ = ["Checkpoint", "CheckpointError", "origin_of", "parse", "parse_hash", "parse_size", "quarter_of"]

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


class CheckpointError(ValueError):
    """A text is no checkpoint; the message says which line."""


class Checkpoint(NamedTuple):
    """A log's `size` (entries) and `root` (32 bytes); `origin` is the log's name. `extension` lines mean nothing here."""

    origin: str
    size: int
    root: bytes
    extension: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is signed."""
        root = base64.b64encode(self.root).decode()
        return "".join(f"{line}\n" for line in (self.origin, self.size, root, *self.extension))

    @property
    def ref(self) -> str:
        """`origin size base64(root)`, as the first entry of the next log commits to it."""
        return f"{self.origin} {self.size} {base64.b64encode(self.root).decode()}"

    @classmethod
    def of_ref(cls, ref: str) -> Checkpoint:
        """What `ref` says. ValueError for any other text."""
        origin, size, root = ref.split(" ")
        return cls(origin, parse_size(size), parse_hash(root))

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a note's text. CheckpointError for anything but what `text` writes."""
        if not text.endswith("\n"):
            raise CheckpointError("the checkpoint does not end in a newline")
        origin, *lines = text[:-1].split("\n")
        if len(lines) < 2:
            raise CheckpointError("a checkpoint has at least three lines: origin, size, root")
        if not origin or not all(lines):
            raise CheckpointError("a checkpoint has no empty line")
        return cls(origin, parse_size(lines[0]), parse_hash(lines[1]), tuple(lines[2:]))


parse = Checkpoint.parse


def parse_size(text: str) -> int:
    """A decimal number from 0 to 2^63 - 1, as logs write sizes and indices. CheckpointError for any other spelling."""
    if not _SIZE.fullmatch(text) or int(text) > MAX_SIZE:
        raise CheckpointError(f"not a decimal size below 2^63: {text[:100]!r}")
    return int(text)


def parse_hash(text: str) -> bytes:
    """32 bytes in canonical base64. CheckpointError for anything else."""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) != HASH_BYTES or base64.b64encode(value).decode() != text:
        raise CheckpointError(f"not the base64 of {HASH_BYTES} bytes: {text[:100]!r}")
    return value


def origin_of(domain: str, dc: str, quarter: str) -> str:
    """The name of a datacenter's log for a quarter, and of its key: `example.com/ledger/fra/2026q4`."""
    origin = f"{domain}/ledger/{dc}/{quarter}"
    check_name(origin)
    return origin


def quarter_of(ms: int) -> str:
    """The quarter (UTC) of a time in ms since the Unix epoch: `2026q4`."""
    day = datetime.fromtimestamp(ms // 1000, UTC)
    return f"{day.year}q{(day.month + 2) // 3}"
