"""kill -9 at every step and every database command of a round, over and over: nothing is lost, nothing is there twice, no two histories are published."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path

from controlplane.ledger.entries import place_of
from controlplane.ledger.merkle import Frontier
from controlplane.ledger.tiles import WIDTH, decode_bundle, tile_hashes
from controlplane.store.ledger import LedgerStore
from tests.simulators.crashes import NODE, STEPS

TRIALS = 1_050
ROOT = Path(__file__).parents[3]


async def test_crash_matrix(database, settings):
    arguments = [
        "-m",
        "tests.simulators.crashes",
        settings.mongodb_uri.get_secret_value(),
        settings.database,
        str(TRIALS),
        "7",
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-3000:]
    told = json.loads(out.splitlines()[-1])
    kills = told["kills"]
    print({name: kills[name] for name in sorted(kills)})
    for step in STEPS:
        assert kills.get(f"killed {step}", 0) > 0
        assert kills.get(f"stopped {step}", 0) > 0
    assert sum(count for name, count in kills.items() if not name.startswith("survived")) > 0.85 * TRIALS

    store = LedgerStore(database)
    [log] = await store.logs(own=True)
    entries = []
    for index in range(-(-log.size // WIDTH)):
        entries += decode_bundle(await store.bundle(log.origin, index))
    entries = entries[: log.size]
    places = [place_of(entry) for entry in entries]
    assert [place.q for place in places if place.n == NODE] == list(range(1, told["events"] + 1)), (
        "lost, twice or out of order"
    )
    published = {size: base64.b64decode(root) for _, size, root in told["seen"]}
    assert len(published) == len(told["seen"]), "two roots of one size"
    assert len(published) > TRIALS / 5
    frontier, hashes = Frontier(), tile_hashes(entries)
    for at in range(log.size + 1):
        if at in published:
            assert frontier.root() == published[at], f"the checkpoint of {at} entries is of another history"
        frontier.extend([hashes[32 * at : 32 * at + 32]] if at < log.size else [])
