"""`python -m bench.ledger.worker ROLE CONFIG`: the programs that the ledger's benchmarks run beside themselves, each of the product's own parts.

| role | does |
|---|---|
| sequence | the sequencer, round after round, as `heliograph ledger` runs it; until SIGTERM |
| write | nodes' committers, so many events a second, or as many as are taken with so many unanswered; until SIGTERM |
| add | an HTTP server that takes an entry and answers its index once it is published, as Tessera's does: `POST /add`, `GET /checkpoint`, `GET /tile/…` |
| verify | the scrubber over a whole log |
| damage | see `damage` |

CONFIG is JSON with `uri`, `work`, `out` (where the report goes) and the role's own settings.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvloop
from fastapi import FastAPI, HTTPException
from fastapi.responses import PlainTextResponse, Response

from bench.ledger.bed import accepted, percentiles, settings_of, submitted
from bench.ledger.damage import damage
from controlplane import garbage
from controlplane.api.hot import Respond
from controlplane.api.server import Server
from controlplane.clock import SystemClock
from controlplane.domain.events import Event, Kind
from controlplane.ids import new_mid
from controlplane.ledger.lead import Leadership
from controlplane.ledger.published import Published
from controlplane.ledger.scrub import Scrub
from controlplane.ledger.sequencer import Sequencer
from controlplane.ledger.tiles import parse_path
from controlplane.store.client import connect
from controlplane.store.committer import Committer
from controlplane.store.copies import Copies
from controlplane.store.ledger import LEDGER_NODE, LedgerStore
from controlplane.store.ledger_scrub import ScrubStore
from controlplane.store.schema import ensure_indexes

_TICK_SECONDS = 0.01
_POLL_SECONDS = 0.01


class _Worker:
    """What each role has."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.settings = settings_of(config["uri"], Path(config["work"]), ledger_round_ms=config.get("round_ms", 250))
        self.clock = SystemClock()
        self.database = connect(self.settings)
        self.store = LedgerStore(self.database)
        self.stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop.set)

    def committer(self, node: str, epoch: int = 1) -> Committer:
        return Committer(self.database, datacenter="local", node=node, epoch=epoch, clock=self.clock)

    def ready(self) -> None:
        Path(self.config["out"]).with_suffix(".ready").touch()

    def report(self, found: dict[str, Any]) -> None:
        Path(self.config["out"]).write_text(json.dumps(found), encoding="utf-8")


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _threads_cpu(tasks: Path) -> float:
    """Of another process, to the nanosecond; a third of a millisecond."""
    total = 0
    for task in tasks.iterdir():
        try:
            total += int((task / "schedstat").read_bytes().split()[0])
        except OSError:  # a thread that has ended
            continue
    return total / 1e9


async def sequence(worker: _Worker) -> None:
    """`mongod`, its process id. Reports each round that had entries: how many, and at each step the time, our CPU seconds and mongod's."""
    store, settings, clock = worker.store, worker.settings, worker.clock
    await ensure_indexes(worker.database)
    await store.ensure_indexes()
    term = await Leadership(store, settings, clock, "bench").acquire()
    await store.add_source(LEDGER_NODE, term)
    mongod = Path("/proc", str(worker.config["mongod"]), "task")
    steps: dict[str, tuple[float, float, float]] = {}
    rounds: list[dict[str, Any]] = []

    def at(step: str) -> None:
        steps[step] = (time.perf_counter(), _cpu(), _threads_cpu(mongod))

    committer = worker.committer(LEDGER_NODE, term)
    sequencer = Sequencer(store, committer, settings, clock, term=term, at=at)
    await sequencer.open()
    worker.ready()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(committer.run()), group.create_task(garbage.collect())]
        while not worker.stop.is_set():
            at("began")
            entries = await sequencer.round()
            at("ended")
            if entries:
                rounds.append(
                    {
                        "entries": entries,
                        "size": sequencer.log.size,
                        "at_ms": time.time_ns() / 1e6,
                        "steps": dict(steps),
                    }
                )
            if not sequencer.backlog:
                pause = max(0.0, settings.ledger_round_ms / 1000 - (time.perf_counter() - steps["began"][0]))
                try:
                    async with asyncio.timeout(pause):
                        await worker.stop.wait()
                except TimeoutError:
                    pass
        for task in tasks:
            task.cancel()
    worker.report({"rounds": rounds})


async def write(worker: _Worker) -> None:
    """`nodes`, and either `rate` or `writers`. Reports what was written, how fast, and the times to the durable answer."""
    config, clock = worker.config, worker.clock
    committers = [worker.committer(node) for node in config["nodes"]]
    rate = float(config.get("rate", 0))
    latencies: list[float] = []
    follow: deque[Callable[[], None]] = deque()
    counts = {"submitted": 0, "done": 0}
    began = time.perf_counter()

    def submit(committer: Committer, due: float, before: Event | None) -> None:
        counts["submitted"] += 1
        now = clock.now_ms() - int((time.perf_counter() - due) * 1e3)
        draft = accepted(now, counts["submitted"]) if before is None else submitted(before, now)
        committer.submit(draft, partial(done, committer, due))

    def done(committer: Committer, due: float, event: Event | None) -> None:
        now = time.perf_counter()
        counts["done"] += 1
        latencies.append((now - due) * 1e3)
        before = event if event is not None and event.k == 0 else None
        if rate:
            if before is not None:
                follow.append(partial(submit, committer, before=before))
        elif not worker.stop.is_set():
            submit(committer, now, before)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(committer.run()) for committer in committers] + [
            group.create_task(garbage.collect())
        ]
        if rate:
            worker.ready()
            while not worker.stop.is_set():
                elapsed = time.perf_counter() - began
                while counts["submitted"] < rate * elapsed:
                    due = began + counts["submitted"] / rate
                    if follow:
                        follow.popleft()(due=due)
                    else:
                        submit(committers[counts["submitted"] % len(committers)], due, None)
                await asyncio.sleep(_TICK_SECONDS)
        else:
            for number in range(config["writers"]):
                submit(committers[number % len(committers)], time.perf_counter(), None)
            worker.ready()
            await worker.stop.wait()
        elapsed = time.perf_counter() - began
        per_s = counts["done"] / elapsed
        for committer in committers:
            await committer.drain()
        for task in tasks:
            task.cancel()
    worker.report(
        {
            "written": counts["done"],
            "per_s": per_s,
            "began": began,
            "ended": began + elapsed,
            "durable_ms": percentiles(latencies),
        }
    )


async def add(worker: _Worker) -> None:
    """`port`, `node`. The one node that writes here: its event number q is entry q, behind the `opened` entry."""
    store, clock = worker.store, worker.clock
    committer = worker.committer(worker.config["node"])
    waiting: deque[tuple[int, Respond]] = deque()
    published = Published(store, clock)

    def take(_headers: dict[bytes, bytes], body: bytes, _rid: str, respond: Respond) -> None:
        now = clock.now_ms()
        draft = Event(new_mid(now), 0, "bench", Kind.ACCEPTED, now, {"entry": body.decode()})
        committer.submit(draft, partial(durable, respond))

    def durable(respond: Respond, event: Event | None) -> None:
        if event is None:
            respond(500, {}, b"")
        else:
            waiting.append((event.q, respond))

    async def answer() -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if not waiting:
                continue
            mark = (await store.logs(own=True))[-1].marks.get((committer.node, 1), 0)
            for _ in range(len(waiting)):
                q, respond = waiting.popleft()
                if q <= mark:
                    respond(200, {"content-type": "text/plain"}, str(q).encode())
                else:
                    waiting.append((q, respond))

    app = FastAPI()

    @app.get("/checkpoint", response_class=PlainTextResponse)
    async def checkpoint() -> str:
        return (await published.logs())[-1].checkpoint

    @app.get("/tile/{path:path}")
    async def tile(path: str) -> Response:
        wanted = parse_path(f"tile/{path}")
        try:
            return Response((await published.read((await published.logs())[-1], [wanted]))[wanted])
        except KeyError:
            raise HTTPException(404) from None

    app.state.hot = {b"/add": take}
    app.state.services = SimpleNamespace(settings=worker.settings)
    server = Server(app, worker.settings)
    listener = socket.create_server(("127.0.0.1", worker.config["port"]), backlog=4096)
    async with asyncio.TaskGroup() as group:
        for part in (committer.run(), answer(), garbage.collect(), server.run_on(listener)):
            group.create_task(part)


async def verify(worker: _Worker) -> None:
    """`hashes_only`, `most` entries. Reports entries a second, by the clock and by this process's CPU, and how much was found wrong."""
    store = ScrubStore(worker.database)
    scrub = Scrub(store, Copies(worker.database, worker.store), worker.settings, worker.clock)
    log = (await worker.store.logs(own=True))[-1]
    entries = min(log.size, worker.config["most"])
    cpu, began = _cpu(), time.perf_counter()
    found = await scrub.verify(log, 0, entries - 1, hashes_only=worker.config["hashes_only"])
    seconds, used = time.perf_counter() - began, _cpu() - cpu
    worker.report(
        {
            "entries": entries,
            "seconds": seconds,
            "per_s": entries / seconds,
            "cpu_us": used / entries * 1e6,
            "faults": len(found),
        }
    )


async def spoil(worker: _Worker) -> None:
    """`entries`."""
    worker.report(await damage(worker.settings, worker.config["entries"]))


async def _main(role: str, config: dict[str, Any]) -> None:
    worker = _Worker(config)
    try:
        await {"sequence": sequence, "write": write, "add": add, "verify": verify, "damage": spoil}[role](worker)
    finally:
        await worker.database.client.close()


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1], json.loads(sys.argv[2])))
