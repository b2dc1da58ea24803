"""A datacenter's ledger secret as a file, and what others must know of it."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

from controlplane.clock import SystemClock
from controlplane.errors import ConfigError
from controlplane.ledger.checkpoint import origin_of, quarter_of
from controlplane.ledger.note import Signer, derive, new_seed
from controlplane.ledger.trust import cosigner_name

__all__ = ["public_keys", "read_seed", "write_seed"]


def write_seed(path: Path) -> None:
    """A new secret that only its owner may read. ConfigError where there is a file already: a secret is never replaced."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be created ({error.strerror}). Name a new file in a directory that is there."
        ) from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(new_seed() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_seed(path: Path) -> bytes:
    """32 bytes. ConfigError for a file that is none, or that others may read."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: others may read it. Run: chmod 600 {path}")
        seed = base64.b64decode(path.read_text(encoding="ascii").strip(), validate=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, binascii.Error, ValueError):
        seed = b""
    if len(seed) != 32:
        raise ConfigError(f"{path} is not a ledger's secret (32 bytes in base64); make one with --new FILE")
    return seed


def public_keys(seed: bytes, dc: str, domain: str, urls: list[str]) -> dict[str, Any]:
    """`peer`: the entry for the others' settings; `vkeys`: of the log of this quarter, the witness and the mirror."""
    public = {
        role: base64.b64encode(derive(seed, role).public_key().public_bytes_raw()).decode()
        for role in ("log", "witness", "mirror")
    }
    origin = origin_of(domain, dc, quarter_of(SystemClock().now_ms()))
    return {
        "peer": {
            "dc": dc,
            "urls": urls or [f"https://<address of a ledger of {dc}>:8444"],
            "log_keys": [public["log"]],
            "witness_key": public["witness"],
            "mirror_key": public["mirror"],
        },
        "vkeys": {
            "log": Signer.log(origin, derive(seed, "log")).vkey,
            "witness": Signer.cosigner(cosigner_name(domain, dc, "witness"), derive(seed, "witness")).vkey,
            "mirror": Signer.cosigner(cosigner_name(domain, dc, "mirror"), derive(seed, "mirror")).vkey,
        },
    }
