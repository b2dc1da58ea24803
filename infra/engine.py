"""The `pulumi` command, for what the programs ask of it beside an `up`."""

from __future__ import annotations

import shutil
import subprocess

from infra.config import ConfigError

__all__ = ["pulumi_cli"]


def pulumi_cli(*arguments: str, stdin: str = "") -> str:
    """Its stdout. Raises ConfigError with what it said when it fails or is not there."""
    program = shutil.which("pulumi")
    if program is None:
        raise ConfigError("pulumi is not on PATH; https://www.pulumi.com/docs/install says how to get it")
    done = subprocess.run([program, *arguments], input=stdin, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise ConfigError(f"pulumi {' '.join(arguments[:3])}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
