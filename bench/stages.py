"""Where the time goes: the node under load, sampled by py-spy; each sample belongs to the stage of its innermost frame that has one.

Frames of libraries (pymongo, bson, asyncio …) belong to whoever called them. What has no stage is the event loop itself and the kernel below it.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.gateways import BATCH, accepted
from bench.systems import Heliograph
from bench.tools import BenchError, Load, Sink, cpu_seconds

_STAGES = (
    ("HTTP: parse, answer", r"uvicorn|api/server|api/envelope"),
    ("validate, encode", r"api/|analyse .*domain/text|domain/address"),
    ("route", r"routing/"),
    ("seal: salt, commitment, leaf", r"\b(_seal|_cut|commitment|leaf_bytes) "),
    ("commit: document, BSON, insert", r"store/committer|store/events"),
    ("fold and lanes", r"store/book|domain/message|domain/events"),
    ("intent", r"store/intents"),
    ("dispatch: queue, compose", r"dispatch/(owner|outbox|compose|timers|throttle)|domain/text"),
    ("SMPP out", r"\b(submit|outgoing|_flush|_schedule_flush|encode|body|_c|_source) .*smpp/"),
    ("receipt", r"receipts/|domain/receipt|receipt_text|\b(answer|_answer) .*smpp/"),
    ("outcome of a submit", r"dispatch/outcome|dispatch/binds"),
    ("SMPP in", r"smpp/"),
    ("callback", r"callbacks/|aiohttp|store/callback_log"),
    ("housekeeping", r"telemetry/|dispatch/|store/|api/health"),
)
_REST = "event loop, kernel"
_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in _STAGES)


def run(work: Path, seconds: float) -> dict[str, Any]:
    """Kind of load → stage → µs a message of the node; with mongod's own beside it."""
    spy = work / "tools" / "bin" / "py-spy"
    if not spy.exists():
        raise BenchError("py-spy is missing. Run: bench/prepare")
    loads = {
        "single": (False, lambda system: system.request(), 1, 64),
        "batches": (False, lambda system: system.batch(BATCH), BATCH, 8),
        "receipts and callbacks": (True, lambda system: system.request(), 1, 64),
    }
    return {
        name: _profile(spy, work, Heliograph(told=told), told, request, size, connections, seconds)
        for name, (told, request, size, connections) in loads.items()
    }


def _profile(
    spy: Path, work: Path, system: Heliograph, told: bool, request: Any, size: int, connections: int, seconds: float
) -> dict[str, Any]:
    sink, load, out = Sink(work, receipts=told), Load(work), work / "stacks.txt"
    try:
        system.start(work / "stages", sink)
        template = request(system)
        warm = accepted(load.run(system.ports, template, connections=connections, seconds=2.0)) * size
        sink.wait_for(warm, callbacks=warm if told else 0)
        sink.reset()
        pid = str(system.node_pids[0])
        sampler = subprocess.Popen(
            [spy, "record", "-p", pid, "-f", "raw", "-o", out, "-r", "250", "-d", "600"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(1.5)
        node, mongod = cpu_seconds(system.node_pids), cpu_seconds(system.mongod_pids)
        result = load.run(system.ports, template, connections=connections, seconds=seconds)
        messages = accepted(result) * size
        sink.wait_for(messages, callbacks=messages if told else 0)
        node, mongod = cpu_seconds(system.node_pids) - node, cpu_seconds(system.mongod_pids) - mongod
        sampler.send_signal(signal.SIGINT)
        sampler.wait(60)
    finally:
        system.stop()
        sink.stop()
    shares = _shares(out.read_text(encoding="utf-8"))
    return {
        "messages": messages,
        "node_us": node / messages * 1e6,
        "mongod_us": mongod / messages * 1e6,
        "stages_us": {name: share * node / messages * 1e6 for name, share in shares.items()},
    }


def _shares(stacks: str) -> dict[str, float]:
    found: Counter[str] = Counter()
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        found[_stage(frames.split(";"))] += int(count)
    total = found.total() or 1
    order = [*(name for name, _ in _STAGES), _REST]
    return {name: found[name] / total for name in order if found[name]}


def table(found: dict[str, Any]) -> str:
    """Markdown: a row a stage, a column a kind of load, µs a message."""
    lines = ["| stage | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
    for stage in [*(name for name, _ in _STAGES), _REST]:
        values = [of["stages_us"].get(stage, 0.0) for of in found.values()]
        lines.append(f"| {stage} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    for label, figure in (("**node**", "node_us"), ("mongod", "mongod_us")):
        lines.append(f"| {label} | " + " | ".join(f"{of[figure]:.1f}" for of in found.values()) + " |")
    return "\n".join(lines)


def _stage(frames: list[str]) -> str:
    for frame in reversed(frames):
        for name, pattern in _PATTERNS:
            if pattern.search(frame):
                return name
    return _REST
