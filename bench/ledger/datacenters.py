"""Two datacenters on this machine, the line between them slow: how soon what one accepted is readable in the other, and what a partition costs when it ends."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from tests.simulators.datacenters import Datacenter, measure_latency, measure_partition, quiet, two_datacenters, verify

DELAY_SECONDS = 0.05
RATES = (1_000.0, 300.0)
"""Messages a second into each."""


def run(work: Path, seconds: float, cut_seconds: float) -> dict[str, Any]:
    """Latency at each rate, then a partition at the last; each with datacenters of their own."""
    found: dict[str, Any] = {}
    for rate in RATES:
        found[f"latency at {rate:,.0f}/s"] = asyncio.run(_latency(work, rate, seconds))
    found["partition"] = asyncio.run(_partition(work, RATES[-1], cut_seconds))
    return found


async def _latency(work: Path, rate: float, seconds: float) -> dict[str, Any]:
    async with two_datacenters(_empty(work), DELAY_SECONDS) as (fra, iad):
        found = await measure_latency(fra, iad, rate, seconds, sample=max(20, int(rate / 10)))
        return found | {"quiet_s": await quiet(fra, iad), **await _verified(fra, iad)}


async def _partition(work: Path, rate: float, seconds: float) -> dict[str, Any]:
    async with two_datacenters(_empty(work), DELAY_SECONDS) as (fra, iad):
        return await measure_partition(fra, iad, rate, seconds) | await _verified(fra, iad)


async def _verified(fra: Datacenter, iad: Datacenter) -> dict[str, Any]:
    """Both logs in both datacenters lead to their signed roots; open findings."""
    entries = [await verify(each, dc) for each in (fra, iad) for dc in ("fra", "iad")]
    findings = [len(await each.store.findings("open")) for each in (fra, iad)]
    return {"entries": entries, "findings": findings}


def _empty(work: Path) -> Path:
    home = work / "datacenters"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    return home
