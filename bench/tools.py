"""What all benchmarks share: the C tools, processes and their CPU time, the sink's control port, one load run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent


class BenchError(Exception):
    """The benchmark cannot go on; the message says what to do."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def build(work: Path) -> None:
    """Compile the sink and the load generator."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("There is no C compiler. Run: apt-get install gcc libc6-dev")
    for name in ("sink", "load"):
        source = HERE / f"{name}.c"
        subprocess.run([compiler, "-O2", "-Wall", "-o", str(work / name), str(source)], check=True)


def require(*commands: str) -> None:
    missing = [name for name in commands if shutil.which(name) is None]
    if missing:
        raise BenchError(f"Missing: {', '.join(missing)}. Run: bench/prepare")


class Process:
    """A child in its own process group, its output in a file."""

    def __init__(self, arguments: Iterable[str | Path], log: Path, **options: Any) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self.child = subprocess.Popen(
                [str(argument) for argument in arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )
        self.log = log

    @property
    def pid(self) -> int:
        return self.child.pid

    def stop(self, seconds: float = 20.0) -> None:
        """SIGTERM to the group, SIGKILL to what is left of it."""
        for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(self.child.pid, number)
            except ProcessLookupError:
                break
            try:
                self.child.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        self.child.wait()


def until(what: str, ready: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise BenchError(f"{what} was not ready within {seconds:.0f} s.")


def listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes and of all their children so far."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def others_cpu() -> float:
    """CPU seconds since the boot of all that is not this process or below it: how much a measurement was disturbed."""
    used = os.times()
    alive = [child.pid for child in psutil.Process().children()]
    ours = used.user + used.system + used.children_user + used.children_system + cpu_seconds(alive)
    all_of = psutil.cpu_times()
    return all_of.user + all_of.nice + all_of.system + all_of.irq + all_of.softirq + all_of.steal - ours


def resident_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


@dataclass(frozen=True)
class SinkStats:
    submits: int
    receipts: int
    acked: int
    callbacks: int
    first_ns: int
    last_ns: int
    last_callback_ns: int


class Sink:
    """The SMSC that all gateways talk to, and the receiver of their callbacks."""

    def __init__(self, work: Path, *, receipts: bool = False, port: int = 0) -> None:
        self.port, self._control, self.callback_port = port or free_port(), free_port(), free_port()
        self._work = work
        ports = [str(number) for number in (self.port, self._control, self.callback_port)]
        self.process = Process([work / "sink", *ports, *(["receipts"] if receipts else [])], work / "sink.log")
        until("the sink", lambda: listens(self._control))

    def _ask(self, line: str) -> str:
        with socket.create_connection(("127.0.0.1", self._control), timeout=30) as connection:
            connection.sendall(line.encode() + b"\n")
            return connection.makefile().readline().strip()

    def stats(self) -> SinkStats:
        return SinkStats(*(int(word) for word in self._ask("stats").split()))

    def reset(self) -> None:
        self._ask("reset")

    def wait_for(self, submits: int, *, receipts: int = 0, callbacks: int = 0, seconds: float = 300.0) -> SinkStats:
        """Until so many of each came, or nothing for 10 s: `check` says what is missing."""
        deadline = time.monotonic() + seconds
        last, since = None, time.monotonic()
        while time.monotonic() < deadline:
            stats = self.stats()
            if stats != last:
                last, since = stats, time.monotonic()
            whole = stats.submits >= submits and stats.acked >= receipts and stats.callbacks >= callbacks
            if whole or time.monotonic() - since > 10:
                break
            time.sleep(0.05)
        time.sleep(0.3)  # whatever would come twice
        return self.stats()

    def check(self, accepted: int) -> dict[str, int]:
        """Each accepted part exactly once: how many came, were missing, came twice."""
        path = self._work / "seen.bin"
        self._ask(f"dump {path}")
        data = memoryview(path.read_bytes()).cast("Q")
        distinct = len(set(data))
        return {"arrived": len(data), "missing": max(0, accepted - distinct), "twice": len(data) - distinct}

    def stop(self) -> None:
        self.process.stop()


class Load:
    """Runs the load generator; numbers go on from run to run, so that no message is like another."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._next = 1

    def run(
        self, ports: list[int], request: bytes, *, connections: int, seconds: float, rate: float = 0.0
    ) -> dict[str, Any]:
        """One run; see load.c for the result."""
        template, out = self._work / "request.bin", self._work / "load.json"
        template.write_bytes(request)
        arguments = [str(connections), str(seconds), str(rate), str(self._next), str(out)]
        subprocess.run(
            [str(self._work / "load"), "127.0.0.1", ",".join(map(str, ports)), str(template), *arguments], check=True
        )
        result: dict[str, Any] = json.loads(out.read_text())
        self._next = result["next"]
        return result


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A whole HTTP/1.1 request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "?")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "fsync_us": fsync_us(),
    }


def fsync_us(tries: int = 50) -> int:
    """Median of write 4 KiB + fdatasync in the working directory: the floor under every journaled acknowledgement."""
    path = Path(f".fsync-{os.getpid()}")
    times = []
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(tries):
                started = time.perf_counter_ns()
                file.write(bytes(4096))
                os.fdatasync(file.fileno())
                times.append(time.perf_counter_ns() - started)
    finally:
        path.unlink(missing_ok=True)
    return sorted(times)[tries // 2] // 1000
