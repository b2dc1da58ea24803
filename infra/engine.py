"""The `pulumi` command, for what the programs ask of it beside an `up`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from infra.config import OPTIONAL, SECRETS, ConfigError

__all__ = ["pulumi_cli", "stack_configuration", "stack_file"]


def pulumi_cli(*arguments: str, stdin: str = "") -> str:
    """Its stdout. Raises ConfigError with what it said when it fails or is not there."""
    program = shutil.which("pulumi")
    if program is None:
        raise ConfigError("pulumi is not on PATH; https://www.pulumi.com/docs/install says how to get it")
    done = subprocess.run([program, *arguments], input=stdin, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise ConfigError(f"pulumi {' '.join(arguments[:3])}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def stack_file(stack: str) -> Path:
    """The YAML file with a stack's configuration."""
    return Path(__file__).parent / "stacks" / f"Pulumi.{stack}.yaml"


def stack_configuration(stack: str) -> tuple[Any, dict[str, str | None]]:
    """(`heliograph:region`, the secrets) of a stack, by `pulumi config`. Raises ConfigError."""
    said = pulumi_cli("config", "--stack", stack, "--show-secrets", "--json")
    values = {name.removeprefix("heliograph:"): one for name, one in json.loads(said).items()}
    region = values.get("region", {})
    secrets = {name: values.get(name, {}).get("value") for name in (*SECRETS, *OPTIONAL)}
    return region.get("objectValue") or json.loads(region.get("value", "null")), secrets
