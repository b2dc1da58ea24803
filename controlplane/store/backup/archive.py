"""A backup on the disk: a directory `<id>` of `manifest.json` and parts, for its owner alone.

It is written as `<id>.partial` and renamed once everything in it is on the disk: what has its name is whole, what a cut left behind has not.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from controlplane.errors import ConfigError
from controlplane.store.backup.manifest import Manifest, ManifestError, opened
from controlplane.store.backup.part import Keys

__all__ = ["MANIFEST", "Archive", "ArchiveError", "draft", "open_archive", "sync"]

MANIFEST = "manifest.json"
_PARTIAL = ".partial"


class ArchiveError(ConfigError):
    """It is no whole backup, or not one that this key opens."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A backup that has its name, and whose manifest holds."""

    folder: Path
    manifest: Manifest
    keys: Keys
    """Of its parts."""

    def path(self, name: str) -> Path:
        """A part."""
        return self.folder / name


def open_archive(folder: Path, secret: bytes) -> Archive:
    """Look at its manifest and its files, and read none of them. Raises ArchiveError."""
    manifest, keys = read_manifest(folder, secret)
    assert keys is not None  # noqa: S101 - there is a secret
    return Archive(folder, manifest, keys)


def read_manifest(folder: Path, secret: bytes | None) -> tuple[Manifest, Keys | None]:
    """The manifest, once all files are there with the sizes that it says. Not authenticated without a secret. Raises ArchiveError."""
    if folder.name.endswith(_PARTIAL):
        raise ArchiveError(f"{folder} is a backup that was cut: nothing in it counts. Delete it, and make another one.")
    try:
        manifest, keys = opened((folder / MANIFEST).read_bytes(), secret)
        present = {path.name: path.stat().st_size for path in folder.iterdir()}
    except OSError as error:
        raise ArchiveError(f"{folder} is no backup ({error.strerror}: {error.filename}).") from None
    except ManifestError as error:
        raise ArchiveError(f"{folder}: {error}.") from None
    del present[MANIFEST]
    wanted = {part.name: part.size for _, part in manifest.parts}
    if missing := sorted(wanted.keys() - present.keys()):
        raise ArchiveError(
            f"{folder} lacks {len(missing)} of its {len(wanted)} parts, {missing[0]} among them; copy it again."
        )
    if strange := sorted(present.keys() - wanted.keys()):
        raise ArchiveError(f"{folder} has {strange[0]}, which is none of its parts; what put it there?")
    if wrong := [name for name, size in wanted.items() if present[name] != size]:
        raise ArchiveError(
            f"{folder}: {wrong[0]} has {present[wrong[0]]} bytes, written were {wanted[wrong[0]]}; copy it again."
        )
    return manifest, keys


@contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """Where a backup is written that will be called `folder`: renamed at the end, removed when it fails. What a former one that was cut has left goes.

    Raises ConfigError where the name is taken, or another process writes it now.
    """
    partial = folder.with_name(folder.name + _PARTIAL)
    if folder.exists():
        raise ConfigError(f"{folder} is there already; a backup is never written over. Choose another name.")
    try:
        partial.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.chmod(0o700)
        handle = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{partial}: cannot be made ({error.strerror}). Choose another --to.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"Another process writes {partial}. Wait for its end, or choose another --to.") from None
        for left in partial.iterdir():
            left.unlink()
        try:
            yield partial
            sync(partial)
            partial.rename(folder)
            sync(folder.parent)
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(partial)
            raise
    finally:
        os.close(handle)


def sync(folder: Path) -> None:
    """The directory's own entries are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
