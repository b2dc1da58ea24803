"""Does a message cost the same when millions are stored? The store is filled with events of the product's own shape, then loaded again."""

from __future__ import annotations

import multiprocessing
import secrets
import time
from pathlib import Path
from statistics import median
from typing import Any

from pymongo import MongoClient
from pymongo.write_concern import WriteConcern

from bench.gateways import BATCH, accepted
from bench.systems import Heliograph
from bench.tools import Load, Sink, cpu_seconds
from controlplane.domain.events import Event, Kind
from controlplane.ids import new_mid
from controlplane.store.events import to_document
from controlplane.store.schema import EVENTS

_WRITERS = 2
_CHUNK = 1_000
_SECONDS = 15.0
_RUNS = 5
_QUIET_SECONDS = 15.0
_SPAN_MS = 30 * 86_400_000
"""The stored messages are of the last thirty days."""


def run(work: Path, up_to: int) -> dict[str, Any]:
    """CPU µs a message of node and mongod at 10 thousand, 100 thousand … `up_to` stored messages."""
    system, sink, load = Heliograph(max_open=5_000_000), Sink(work), Load(work)
    levels: list[dict[str, Any]] = []
    try:
        system.start(work / "growth", sink)
        stored, level = 0, 10_000
        while level <= up_to:
            _fill(system.uri, stored, level)
            stored = level
            _settle(system, sink, load)
            levels.append({"stored": level, **_measure(system, sink, load)})
            print(
                f"growth  {level:11,} stored  "
                + "  ".join(
                    f"{name} {of['node_us']:6.1f} + {of['mongod_us']:6.1f} µs"
                    for name, of in levels[-1].items()
                    if name != "stored"
                ),
                flush=True,
            )
            level *= 10
    finally:
        system.stop()
        sink.stop()
    return {"levels": levels}


def _measure(system: Heliograph, sink: Sink, load: Load) -> dict[str, dict[str, float]]:
    kinds = {"single": (system.request(), 1, 64), "batch": (system.batch(BATCH), BATCH, 8)}
    found = {}
    for name, (request, size, connections) in kinds.items():
        runs = []
        for _ in range(_RUNS):
            sink.reset()
            node, mongod = cpu_seconds(system.node_pids), cpu_seconds(system.mongod_pids)
            result = load.run(system.ports, request, connections=connections, seconds=_SECONDS / _RUNS)
            messages = accepted(result) * size
            stats = sink.wait_for(messages)
            node, mongod = cpu_seconds(system.node_pids) - node, cpu_seconds(system.mongod_pids) - mongod
            rate = messages / ((stats.last_ns - result["begin_ns"]) / 1e9)
            runs.append(
                {"node_us": node / messages * 1e6, "mongod_us": mongod / messages * 1e6, "end_to_end_per_s": rate}
            )
        found[name] = {figure: median(run[figure] for run in runs) for figure in runs[0]}
    return found


def _settle(system: Heliograph, sink: Sink, load: Load) -> None:
    """What mongod still has to write of the fill is not a message's cost: a checkpoint, some quiet, and a warm-up."""
    with MongoClient(system.uri) as client:
        client.admin.command("fsync")
    time.sleep(_QUIET_SECONDS)
    sink.reset()
    warm = accepted(load.run(system.ports, system.request(), connections=64, seconds=2.0))
    sink.wait_for(warm)


def _fill(uri: str, stored: int, level: int) -> None:
    share = (level - stored) // _WRITERS
    writers = [
        multiprocessing.get_context("spawn").Process(target=_write, args=(uri, f"old-{stored}-{number}", share))
        for number in range(_WRITERS)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        if writer.exitcode:
            raise RuntimeError(f"a writer ended with code {writer.exitcode}")


def _write(uri: str, node: str, count: int) -> None:
    """`count` delivered messages, two events each, as a node named `node` would have left them."""
    with MongoClient(uri) as client:
        events = client["heliograph"].get_collection(EVENTS, write_concern=WriteConcern(w=1, j=False))
        now = time.time_ns() // 1_000_000
        batch: list[dict[str, Any]] = []
        for number in range(count):
            batch.extend(_documents(node, number, now - _SPAN_MS + _SPAN_MS * number // max(count, 1)))
            if len(batch) >= _CHUNK:
                events.insert_many(batch, ordered=False)
                batch = []
        if batch:
            events.insert_many(batch, ordered=False)


def _documents(node: str, number: int, at: int) -> list[dict[str, Any]]:
    mid = new_mid(at)
    to = f"+49151{number:08d}"
    text = {"to": to, "from": "12345", "body": f"bench {number:010d}", "class": "transactional", "encoding": "gsm7"}
    rest = {
        "sender_type": "short",
        "parts": 1,
        "price": 0,
        "currency": "EUR",
        "planned_route": "sink",
        "plan": "-" * 38,
    }
    more = {"expires_at": at + 172_800_000, "unknown_policy": "resend"}
    sent = {"route": "sink", "connector": "sink", "attempt": 1, "part_ids": [[1, f"{node}{number}"]]}
    place: dict[str, Any] = {"dc": "local", "node": node, "epoch": 1, "salt": secrets.token_bytes(16)}
    leaf = secrets.token_bytes(100) + bytes(200)
    return [
        to_document(
            Event(mid, 0, "bench", Kind.ACCEPTED, at, text | rest | more, leaf=leaf, q=2 * number + 1, **place)
        ),
        to_document(
            Event(
                mid,
                1,
                "bench",
                Kind.SUBMITTED,
                at + 20,
                sent,
                route="sink",
                cids=(f"sink/{node}{number}",),
                leaf=leaf,
                q=2 * number + 2,
                **place,
            )
        ),
    ]
