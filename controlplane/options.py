"""Options that commands of the command line have alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DATA", "AsJson", "Data", "Url"]

Url = Annotated[str | None, typer.Option("--url", help="Of a node; else HELIOGRAPH_URL, else the local one.")]
Data = Annotated[Path, typer.Option("--data", help="Data directory of a local `heliograph up`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DATA = Path("data")
