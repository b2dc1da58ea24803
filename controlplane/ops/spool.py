"""What happened during an operation, line by line in its folder, for whoever is told of it later."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from controlplane.clock import Clock
from controlplane.domain.operations import without_secrets
from controlplane.ops.runner import Event

__all__ = ["Spool"]

_LINES, _LINE = 50, 300
_WORDS = {"task": 500, "host": 200, "message": 2_000}
_BATCH = 100


class Spool:
    """Of one operation: `events.jsonl`. Lines are counted from 1; one that was cut is none."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._secrets: list[str] = []
        self._read: list[dict[str, Any]] = []
        self._at = 0
        self.task = ""
        """What was done last."""
        self.changed = 0
        """Tasks that changed something since this was made."""

    def hide(self, *secrets: str) -> None:
        """Leave them out of all that is kept from now on, whole and line by line."""
        self._secrets += [line for secret in secrets for line in (secret, *secret.splitlines()) if len(line) >= 16]

    def tell(self, event: Event) -> None:
        """Keep what is worth it: what changed something, failed, or said something. Called in the thread that Ansible runs in."""
        self.task = self.clean(event.task)[: _WORDS["task"]]
        self.changed += event.kind == "changed"
        if event.kind == "ok" and not event.message:
            return
        found = asdict(event)
        line = {"at": self._clock.now_ms(), "kind": event.kind}
        line |= {name: self.clean(found[name])[:most] for name, most in _WORDS.items()}
        line["diff"] = [self.clean(each)[:_LINE] for each in event.diff[:_LINES]]
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, b"\n" + json.dumps(line).encode() + b"\n")  # the first one ends a line that was cut
        finally:
            os.close(handle)

    def clean(self, text: str) -> str:
        """Without what is hidden, and without what looks like a secret."""
        return without_secrets(text, self._secrets)

    def after(self, known: int) -> list[dict[str, Any]]:
        """The next of those whose number is greater, as many as go into one report."""
        self._follow()
        return self._read[known : known + _BATCH]

    @property
    def count(self) -> int:
        """How many there are."""
        self._follow()
        return len(self._read)

    def _follow(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._at += len(line)
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                if isinstance(found, dict):
                    self._read.append(found)
