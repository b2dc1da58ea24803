"""A stack's file and secrets, for edits: in one step each, so that whoever is cut leaves the old file or the new one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.changes.phase import Config
from infra.config import ConfigError
from infra.engine import pulumi_cli, stack_file

__all__ = ["StackFile"]


class _Dumper(yaml.SafeDumper):
    """With certificates as people read them."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


@dataclass(frozen=True, slots=True)
class StackFile:
    """The file of a stack, or a draft of it."""

    stack: str
    path: Path

    @classmethod
    def of(cls, stack: str) -> StackFile:
        """ConfigError where there is none."""
        path = stack_file(stack)
        if not path.exists():
            raise ConfigError(f"{path} is not there; {stack} is no stack of this folder")
        return cls(stack, path)

    def draft(self) -> StackFile:
        """A copy beside it, to try an edit on. The caller removes it."""
        found = StackFile(self.stack, self.path.with_name(f".draft-{self.path.name}"))
        found._put(self.path.read_text(encoding="utf-8"))
        return found

    def _document(self) -> dict[str, Any]:
        return dict(yaml.safe_load(self.path.read_text(encoding="utf-8")) or {})

    def read(self) -> Config:
        """Its `config`, secrets as ciphertexts."""
        found: Config = self._document().get("config") or {}
        if "heliograph:region" not in found:
            raise ConfigError(
                f"{self.path} has no heliograph:region; `python -m infra.new {self.stack}` writes a first one"
            )
        return found

    def write(self, config: Config) -> None:
        """Another `config`, the rest as it is."""
        self._put(yaml.dump(self._document() | {"config": config}, Dumper=_Dumper, sort_keys=False, width=140))

    def _put(self, text: str) -> None:
        after = self.path.with_name(f".{self.path.name}.new")
        handle = os.open(after, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            if self.path.exists():
                os.fchmod(handle, self.path.stat().st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(handle)
        after.replace(self.path)

    def keep_secret(self, name: str, text: str) -> None:
        """Encrypted by Pulumi; by a pipe, never in an argument."""
        pulumi_cli(
            "config", "set", "--stack", self.stack, "--config-file", str(self.path), "--secret", name, stdin=text
        )
