"""The SMPP engine alone: submit/response pairs a second over one bind, window 64, beside smpp34 (Rust core) against the same sink."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from statistics import median
from typing import Any

import smpp34
import uvloop

from bench.tools import Sink
from controlplane.clock import SystemClock
from controlplane.domain.catalog import Connector
from controlplane.smpp.connection import Bind
from controlplane.smpp.pdu import SubmitSm

WINDOW = 64
TEXT = b"bench 0123456789"
SOURCE, DEST = "12345", "4915112345678"


class _Feeder:
    """Keeps the window full until `total` responses are there."""

    def __init__(self, total: int) -> None:
        self.left, self.answered, self.total = total, 0, total
        self.done = asyncio.Event()

    def on_bound(self, bind: Bind) -> None:
        self.on_room(bind)

    def on_room(self, bind: Bind) -> None:
        for _ in range(min(bind.room, self.left)):
            self.left -= 1
            pdu = SubmitSm(
                source_ton=3,
                source_addr=SOURCE,
                dest_ton=1,
                dest_npi=1,
                dest_addr=DEST,
                validity_period="000002000000000R",
                registered_delivery=1,
                short_message=TEXT,
            )
            bind.submit(pdu, self)

    def on_response(
        self, _bind: Bind, _token: object, status: int, message_id: str, _latency: float, _late: bool
    ) -> None:
        assert status == 0
        assert message_id
        self.answered += 1
        if self.answered == self.total:
            self.done.set()

    def on_unbound(self, *_: object) -> None: ...
    def on_no_response(self, *_: object) -> None: ...
    def on_deliver(self, *_: object) -> None: ...
    def on_query(self, *_: object) -> None: ...
    def on_alert(self, *_: object) -> None: ...
    def on_protocol_error(self, *_: object) -> None: ...


async def ours(port: int, total: int) -> None:
    """Through the product's own Bind."""
    feeder = _Feeder(total)
    connector = Connector(name="sink", host="127.0.0.1", port=port, system_id="bench", password="bench", window=WINDOW)
    bind = Bind("sink/1", connector, feeder, clock=SystemClock(), random=random.Random())
    async with asyncio.TaskGroup() as group:
        running = group.create_task(bind.run())
        await feeder.done.wait()
        await bind.stop()
        await running


async def theirs(port: int, total: int) -> None:
    """smpp34: its core keeps the window; as many coroutines as the window has places await their responses."""
    client = smpp34.Client(host="127.0.0.1", port=port, system_id="bench", password="bench", window_size=WINDOW)
    smsc = await client.connect()

    async def sender(count: int) -> None:
        for _ in range(count):
            await smsc.submit_sm(DEST, TEXT, source_addr=SOURCE, registered_delivery=1)

    await asyncio.gather(*(sender(total // WINDOW) for _ in range(WINDOW)))
    await smsc.unbind()


def run(work: Path, rounds: int, total: int = 128_000) -> dict[str, Any]:
    """Medians: pairs a second and CPU µs a pair, of this process."""
    engines: dict[str, Callable[[int, int], Coroutine[Any, Any, None]]] = {"heliograph": ours, "smpp34": theirs}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            sink = Sink(work)
            try:
                uvloop.run(engine(sink.port, WINDOW * 20))  # warm
                sink.reset()
                before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
                uvloop.run(engine(sink.port, total))
                seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
                assert sink.stats().submits == total
            finally:
                sink.stop()
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            found[name].append((total / seconds, cpu / total * 1e6))
            print(
                f"engine  {name:12} {total / seconds:9,.0f} pairs/s  {cpu / total * 1e6:5.1f} µs CPU a pair", flush=True
            )
    return {
        name: {"pairs_per_s": median(rate for rate, _ in runs), "cpu_us": median(cpu for _, cpu in runs)}
        for name, runs in found.items()
    }
