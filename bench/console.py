"""What 500 open tabs of the console take from the message path: runs with and without them, in turn. And what a page weighs on the server.

The tabs are server-sent streams (half on the overview, half on the list of messages), read by a process of its own, as browsers on other machines would be;
its CPU time is on this machine all the same, and counts against us.
"""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench.gateways import accepted
from bench.ledger.bed import percentiles
from bench.ledger.path import WAYS, Way, compare
from bench.systems import Heliograph
from bench.tools import BenchError, Load, Process, Sink, cpu_seconds, until
from controlplane.clock import SystemClock
from controlplane.domain.people import Role, Stage
from controlplane.settings import Settings
from controlplane.store.client import connect
from controlplane.store.people import People
from controlplane.store.seal import Seal
from controlplane.store.sessions import Sessions

TABS = 500
_PEOPLE = 20
STREAMS = ("/console/overview/feed", "/console/messages/live")
PAGES = ("/console/", "/console/messages", "/console/messages?q=status%3Adelivered", "/console/help")
_PAGE_ROUNDS = 40
_WARM_SECONDS = 2.0


def run(work: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Ratios of throughput with tabs to without, by pairs that followed each other; server times of pages in ms."""
    found: dict[str, Any] = {"tabs": TABS, "ways": {}}
    for way in (way for way in WAYS if not way.rate and not way.receipts):
        runs: dict[str, list[dict[str, Any]]] = {"off": [], "on": []}
        for number in range(rounds):
            for state in ("off", "on") if number % 2 == 0 else ("on", "off"):
                runs[state].append(measure(way, work, seconds, TABS if state == "on" else 0))
        found["ways"][way.name] = compare(runs) | {"runs": runs}
    return found


def measure(way: Way, work: Path, seconds: float, tabs: int) -> dict[str, Any]:
    """One run; with tabs, all of them are open before it begins, and must be at its end."""
    system = Heliograph()
    sink, load = Sink(work), Load(work)
    reader: Process | None = None
    log = work / "tabs.log"
    try:
        system.start(work / "console", sink)
        cookies = asyncio.run(_cookies(system.uri, (work / "console" / "secret").read_text()))
        if tabs:
            log.unlink(missing_ok=True)
            command = [sys.executable, "-m", "bench.console", str(system.ports[0]), str(tabs), *cookies]
            reader = Process(command, log)
            until("the tabs", lambda: f"{tabs} open" in log.read_text())
        request = way.request(system)
        warm = accepted(load.run(system.ports, request, connections=way.connections, seconds=_WARM_SECONDS)) * way.size
        sink.wait_for(warm)
        sink.reset()
        before = {"node_us": cpu_seconds(system.node_pids), "tabs_us": cpu_seconds([reader.pid]) if reader else 0.0}
        result = load.run(system.ports, request, connections=way.connections, seconds=seconds)
        messages = accepted(result) * way.size
        stats = sink.wait_for(messages)
        if reader and "closed" in log.read_text():
            raise BenchError("Tabs were closed during the run.")
        used = {"node_us": cpu_seconds(system.node_pids), "tabs_us": cpu_seconds([reader.pid]) if reader else 0.0}
        return {
            "per_s": messages / ((stats.last_ns - result["begin_ns"]) / 1e9),
            **{name: (used[name] - before[name]) / messages * 1e6 for name in used},
            "pages_ms": _pages(system.ports[0], cookies[0]),
        }
    finally:
        if reader:
            reader.stop()
        system.stop()
        sink.stop()


def _pages(port: int, cookie: str) -> dict[str, dict[str, float]]:
    """What pages take after the run, from the request to the last octet, on the same machine."""
    found = {}
    for path in PAGES:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", headers={"Cookie": f"__Host-heliograph={cookie}"}
        )
        times = []
        for _ in range(_PAGE_ROUNDS):
            began = time.perf_counter()
            with urllib.request.urlopen(asked) as answer:
                if "login" in answer.url:
                    raise BenchError(f"{path} asks for a login.")
                answer.read()
            times.append((time.perf_counter() - began) * 1000)
        found[path] = percentiles(times)
    return found


async def _cookies(uri: str, secret: str) -> list[str]:
    """Sessions of a team of admins."""
    settings = Settings(mongodb_uri=uri, secret_key=secret)
    database, seal, clock = connect(settings), Seal(settings.secret), SystemClock()
    people, sessions = People(database, seal, clock), Sessions(database, seal, clock)
    found = []
    for number in range(_PEOPLE):
        name = f"bench-{number}"
        await people.create(name, Role.ADMIN, "")
        found.append(await sessions.begin(name, Stage.OPEN, address="127.0.0.1", agent="bench"))
    await database.client.close()
    return found


async def _read(port: int, tabs: int, cookies: list[str]) -> None:
    """Open the streams and read them until this process is ended."""

    async def tab(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        path = STREAMS[number % len(STREAMS)]
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n"
            f"Cookie: __Host-heliograph={cookies[number % len(cookies)]}\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise BenchError(head.decode())
        ready.append(number)
        if len(ready) == tabs:
            print(f"{tabs} open", flush=True)
        while await reader.read(65_536):
            pass
        print("closed", flush=True)

    ready: list[int] = []
    async with asyncio.TaskGroup() as group:
        for number in range(tabs):
            group.create_task(tab(number))


if __name__ == "__main__":
    asyncio.run(_read(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
