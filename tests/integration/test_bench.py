"""The benchmark itself, for a second: its C tools build, and every message that the node accepted at full speed is at the sink exactly once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.gateways import measure, scenarios
from bench.tools import build


class TestBench:
    """What the published figures rest on."""

    @pytest.mark.parametrize("name", ["heliograph, batches, 2 nodes", "heliograph, receipts and callbacks"])
    async def test_a_short_run_counts_everything(self, tmp_path: Path, name: str):
        scenario = next(one for one in scenarios(tmp_path) if one.name == name)
        build(tmp_path)
        run = await asyncio.to_thread(measure, scenario, tmp_path, 1.0)
        assert run["accepted"] >= 300
        assert (run["missing"], run["twice"], run["refused"]) == (0, 0, 0)
        if scenario.callbacks:
            assert run["callbacks"] == run["receipts_acknowledged"] == run["accepted"]
