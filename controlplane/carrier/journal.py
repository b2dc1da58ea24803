"""What the carrier took, written before it answers: a line of JSON each, which a kill -9 cannot take back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Journal", "digest", "read_journal"]


def digest(message: bytes) -> str:
    """What the journal keeps of a text: 16 hex digits of SHA-256."""
    return hashlib.sha256(message).hexdigest()[:16]


class Journal:
    """Appends with one write(2) a line. Without a path it does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if path is not None else None

    def write(self, **line: Any) -> None:
        """One line."""
        if self._file is not None:
            os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The lines; a last one that a kill cut short is left out."""
    if path.exists():
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield json.loads(line)
