"""Tessera's POSIX log on the same machine and disk, unmodified: as a library in one Go program (`tessera/main.go`), and as its own conformance server under its own `hammer`.

The same hammer then loads ours, behind an HTTP server that takes what hammer sends (`worker.add`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.ledger.bed import Bed
from bench.ledger.sequencing import WRITERS, Sequencing
from bench.tools import BenchError, Process, cpu_seconds, free_port, listens, until
from controlplane.ledger.note import Signer

VERSION = "v1.0.4"
_MODULE = "github.com/transparency-dev/tessera"
_SOURCE = Path(__file__).parent / "tessera"
_NAME = "bench.invalid/tessera"
_WARM_SECONDS = 3.0
_HAMMERS = 3_000
"""Writers of hammer's, each with one entry at a time: more than a second's worth of ours, less than Tessera pushes back at (4,096)."""


class Programs:
    """What Go builds: `appends` is ours, `posix` and `hammer` are Tessera's."""

    def __init__(self, work: Path) -> None:
        self._folder = work / "tools" / f"tessera-{VERSION}"
        self.appends, self.posix, self.hammer = (self._folder / name for name in ("appends", "posix", "hammer"))
        self._go = _find_go(work)

    def build(self) -> None:
        """A minute when cold. From the module proxy, checked against the checksum database."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for target, package in ((self.posix, "cmd/conformance/posix"), (self.hammer, "internal/hammer")):
            if not target.exists():
                self._run("install", f"{_MODULE}/{package}@{VERSION}")
        self._run("build", "-mod=readonly", "-o", str(self.appends), ".")

    def _run(self, *arguments: str) -> None:
        environment = {**os.environ, "GOBIN": str(self._folder), "GOFLAGS": "-buildvcs=false"}
        done = subprocess.run(
            [self._go, *arguments], cwd=_SOURCE, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchError(f"go {' '.join(arguments)}: {done.stderr[-1500:]}\nIs a Go module proxy reachable?")


def _find_go(work: Path) -> str:
    path = f"{os.environ.get('PATH', '')}:/usr/local/go/bin:/usr/lib/go/bin:{work}/tools/go/go/bin"
    found = shutil.which("go", path=path)
    if found is None:
        raise BenchError("There is no Go toolchain. Run: bench/prepare")
    return found


def library(
    programs: Programs, work: Path, seconds: float, size: int, *, rate: float = 0.0, dedup: bool = False
) -> dict[str, Any]:
    """Entries as long as ours are on average, as fast as they are taken or at a rate."""
    folder = _empty(work / "tessera-log")
    arguments = ["-dir", folder, "-seconds", seconds, "-writers", WRITERS, "-size", size, "-rate", rate]
    done = subprocess.run(
        [programs.appends, *map(str, arguments), *(["-dedup"] if dedup else [])],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"Tessera: {done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def hammered_tessera(programs: Programs, work: Path, seconds: float, size: int, *, dedup: bool) -> dict[str, Any]:
    """Its conformance server as it stands: batches of 256 or a second, a checkpoint a second."""
    folder, port = _empty(work / "tessera-log"), free_port()
    private, verifier = _key()
    (work / "tessera.key").write_text(private)
    server = Process(
        [
            *(programs.posix, f"--storage_dir={folder}", f"--listen=127.0.0.1:{port}"),
            *(f"--private_key={work / 'tessera.key'}", f"--antispam={str(dedup).lower()}"),
        ],
        work / "tessera-posix.log",
    )
    try:
        until("Tessera", lambda: listens(port))
        return _hammer(programs, work, port, verifier, [server.pid], seconds, size)
    finally:
        server.stop()


def hammered_heliograph(programs: Programs, bed: Bed, name: str, seconds: float, size: int) -> dict[str, Any]:
    """The same of ours: an acceptor process, the sequencer's process, mongod. An entry is answered when it is published."""
    port = free_port()
    bed.know(name)
    server = bed.worker("add", port=port, node=name)
    sequencing = Sequencing(bed)
    try:
        until("the server", lambda: listens(port))
        log = bed.log()
        if log is None or not log.size:
            raise BenchError("Hammer needs a log that has begun.")
        pids = [server.pid, sequencing.worker.pid, bed.mongod_pid]
        return _hammer(programs, bed.work, port, log.vkey, pids, seconds, size)
    finally:
        server.kill()
        sequencing.end(name)


def _hammer(
    programs: Programs, work: Path, port: int, verifier: str, pids: list[int], seconds: float, size: int
) -> dict[str, Any]:
    said = work / "hammer.log"
    said.unlink(missing_ok=True)
    url = f"http://127.0.0.1:{port}/"
    hammer = Process(
        [
            *(programs.hammer, f"--log_url={url}", f"--log_public_key={verifier}", "--show_ui=false"),
            *(f"--num_writers={_HAMMERS}", "--max_write_ops=1000000", f"--leaf_min_size={size}", "--dup_chance=0"),
            *("--num_readers_random=1", "--num_readers_full=1", f"--max_runtime={int(seconds + 60)}s"),
        ],
        said,
    )
    try:
        time.sleep(_WARM_SECONDS)
        points, before = [], cpu_seconds(pids)
        own = cpu_seconds([hammer.pid])
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            points.append((time.monotonic(), _size(url)))
            time.sleep(0.05)
        used, own = cpu_seconds(pids) - before, cpu_seconds([hammer.pid]) - own
        if hammer.child.poll() is not None:
            raise BenchError(f"hammer ended early: {said.read_text()[-1500:]}")
    finally:
        hammer.child.send_signal(signal.SIGKILL)
        hammer.stop()
    # between checkpoints: a checkpoint a second would make the ends of the window worth a tenth
    moves = [later for earlier, later in pairwise(points) if later[1] > earlier[1]]
    entries, took = moves[-1][1] - moves[0][1], moves[-1][0] - moves[0][0]
    whole = points[-1][1] - points[0][1]
    return {
        "per_s": entries / took,
        "cpu_us": used / whole * 1e6,
        "hammer_us": own / whole * 1e6,
        "errors": sum("x)" in line for line in said.read_text().splitlines()),
    }


def _size(url: str) -> int:
    try:
        with urllib.request.urlopen(url + "checkpoint", timeout=10) as answer:
            return int(answer.read().split(b"\n")[1])
    except urllib.error.HTTPError:
        return 0


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _key() -> tuple[str, str]:
    """A note signer's key as golang.org/x/mod has it, and its verifier key."""
    private = Ed25519PrivateKey.generate()
    vkey = Signer.log(_NAME, private).vkey
    public = private.public_key().public_bytes_raw()
    identity = hashlib.sha256(f"{_NAME}\n".encode() + b"\x01" + public).digest()[:4].hex()
    secret = base64.b64encode(b"\x01" + private.private_bytes_raw()).decode()
    return f"PRIVATE+KEY+{_NAME}+{identity}+{secret}", vkey
