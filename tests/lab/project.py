"""A Pulumi project of its own, as a user would have it: the repository's programs, a state file, a passphrase, stacks.

    project = Project(folder, tools, within=lab.within)
    await project.new("fra", hosts, …)
    done = await project.up("fra")
    done.changed     # {"create": […names], "update": […], …}

`python -m tests.lab.project` previews a sample region whose hosts do not exist (`make preview`).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import yaml

from infra.certificates import new_authority
from tests.lab.tools import Tools, prepare

__all__ = ["Done", "Project", "ProjectError"]

ROOT = Path(__file__).parents[2]
ENGINE_SECONDS = 1500
PASSPHRASE = "correct horse battery staple"  # of stacks that live as long as a test


class ProjectError(Exception):
    """`pulumi` failed; what it said."""


@dataclass
class Done:
    """How a run of the engine ended."""

    code: int
    text: str
    seconds: float
    steps: list[tuple[str, str, float]] = field(default_factory=list)
    """(operation, resource name, seconds since the start at which it ended), in order; `same` left out."""
    errors: list[str] = field(default_factory=list)
    """What the engine says of each resource that failed, and of the run."""
    retried: list[str] = field(default_factory=list)
    """What hosts did again because it had failed for a moment."""

    @property
    def changed(self) -> dict[str, list[str]]:
        """Operation → names of the resources, components left out."""
        found: dict[str, list[str]] = {}
        for operation, name, _ in self.steps:
            found.setdefault(operation, []).append(name)
        return {operation: sorted(names) for operation, names in found.items()}


class Project:
    """Runs `pulumi` in a folder that holds a copy of the programs."""

    def __init__(self, folder: Path, tools: Tools, within: Sequence[str] = ()) -> None:
        self.folder, self.within = folder, list(within)
        self.project = folder / "heliograph"
        self.project.mkdir(parents=True)
        for name in ("infra", "templates"):
            shutil.copytree(ROOT / name, self.project / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Pulumi.yaml", self.project)
        (self.project / "infra" / "stacks").mkdir(exist_ok=True)
        self.passphrase = folder / "passphrase"
        self.passphrase.write_text(PASSPHRASE)
        self.passphrase.chmod(0o400)
        (folder / "state").mkdir()
        self.restored = 0
        """State files that had to be put back."""
        virtual = Path(sys.executable).parent
        kept = {name: value for name, value in os.environ.items() if name in {"HOME", "LANG", "USER", "TERM"}}
        self.environment = kept | {
            "PATH": f"{virtual}:{tools.bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.project),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PULUMI_HOME": str(folder / "home"),
            "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(self.passphrase),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PULUMI_DEBUG_COMMANDS": "true",
            "HG_LAB_CUT": str(folder / "commands"),
        }

    # -- stacks

    async def call(self, *argv: str | Path, stdin: str = "", seconds: float = 600) -> tuple[int, str, str]:
        """Any program in the project's folder."""
        process = await asyncio.create_subprocess_exec(
            *self.within,
            *map(str, argv),
            cwd=self.project,
            env=self.environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(seconds):
                out, err = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")

    async def must(self, *argv: str | Path, stdin: str = "") -> str:
        """Its stdout; ProjectError when it fails."""
        code, out, err = await self.call(*argv, stdin=stdin)
        if code:
            raise ProjectError(f"{' '.join(map(str, argv))} ended with {code}\n{out[-4000:]}{err[-4000:]}")
        return out

    async def new(
        self,
        stack: str,
        hosts: Mapping[str, str],
        key: str,
        images: Mapping[str, Any],
        edit: Callable[[dict[str, Any]], None],
        *,
        beside: str = "",
    ) -> str:
        """`python -m infra.new`, as the README says; then `edit` changes the region. What the command printed."""
        file = self.folder / "ssh_key"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(key)
        made = self.folder / "controlplane.json"
        made.write_text(json.dumps({"reference": images["controlplane"][0], "archive": str(images["controlplane"][1])}))
        said = await self.must(
            "python", "-m", "infra.new", stack, *[f"{name}={address}" for name, address in hosts.items()],
            "--ssh-key", file, "--user", "operator", "--mongod", images["mongod"][0], "--controlplane", made,
            *(("--beside", beside) if beside else ()),
        )  # fmt: skip
        self.edit(stack, edit)
        return said

    def stack_file(self, stack: str) -> Path:
        return self.project / "infra" / "stacks" / f"Pulumi.{stack}.yaml"

    def region(self, stack: str) -> dict[str, Any]:
        return yaml.safe_load(self.stack_file(stack).read_text())["config"]["heliograph:region"]

    def edit(self, stack: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the region in the stack's file, as an operator does in an editor."""
        path = self.stack_file(stack)
        document = yaml.safe_load(path.read_text())
        change(document["config"]["heliograph:region"])
        path.write_text(yaml.safe_dump(document, sort_keys=False))

    # -- the engine

    async def up(self, stack: str, *, cut_after: tuple[int, float] | None = None) -> Done:
        """`pulumi up`. `cut_after`: the engine and its plugins are killed so many beginnings and ends of commands, and then seconds, after the start."""
        return await self._engine("up", stack, ["--yes", "--skip-preview"], cut_after)

    def journal(self) -> list[str]:
        """Beginnings and ends of commands, of all runs: `<urn> start`, `<urn> done`."""
        path = self.folder / "commands.journal"
        return path.read_text().splitlines() if path.exists() else []

    async def preview(self, stack: str) -> Done:
        return await self._engine("preview", stack, [])

    async def destroy(self, stack: str) -> Done:
        return await self._engine("destroy", stack, ["--yes", "--skip-preview"])

    async def cancel(self, stack: str) -> None:
        """Break the lock that a killed run left; where the engine was killed while it wrote its state file, put back the one before (docs/operations.md)."""
        stacks = self.folder / "state" / ".pulumi" / "stacks" / "heliograph"
        files = [stacks / f"{stack}.json", stacks / f"{stack}.json.attrs"]
        if not all(file.stat().st_size for file in files):
            for file in files:
                shutil.copy(stacks / file.name.replace(".json", ".json.bak"), file)
            self.restored += 1
        await self.must("pulumi", "cancel", "--yes", "--stack", stack)

    async def operate(
        self, verb: str, stack: str, *options: str, cut: Callable[[], bool] | None = None
    ) -> tuple[int, str]:
        """`heliograph ops …`: its exit code and what it printed. `cut`: all its processes are killed as soon as it says so, as when the machine goes out."""
        argv = ["heliograph", "ops", verb, stack, *options]
        return await self._run(argv, cut or (lambda: False), _kill_with_children)

    def operations(self, stack: str) -> list[Path]:
        """The folders of the operations that were run, oldest first."""
        return sorted((self.project / "data" / "operations" / stack).glob("*/"))

    async def outputs(self, stack: str) -> dict[str, Any]:
        return json.loads(await self.must("pulumi", "stack", "output", "--json", "--show-secrets", "--stack", stack))

    async def secret(self, stack: str, name: str) -> str:
        return (await self.must("pulumi", "config", "get", name, "--stack", stack)).strip()

    async def verify(self, stack: str) -> tuple[int, dict[str, Any]]:
        """`python -m infra.verify`: its exit code and report."""
        code, out, err = await self.call("python", "-m", "infra.verify", stack, "--json")
        if code == 2:
            raise ProjectError(err)
        return code, json.loads(out)

    async def _engine(
        self, verb: str, stack: str, options: Sequence[str], cut_after: tuple[int, float] | None = None
    ) -> Done:
        log = self.folder / f"events-{time.monotonic_ns()}.json"
        argv = [
            "pulumi",
            verb,
            "--stack",
            stack,
            "--non-interactive",
            "--color=never",
            "--parallel=16",
            f"--event-log={log}",
            *options,
        ]
        begun = time.time()
        before = len(self.journal())

        def cut() -> bool:
            return cut_after is not None and len(self.journal()) - before >= cut_after[0]

        code, text = await self._run(argv, cut, _kill_session, cut_after[1] if cut_after else 0.0)
        events = _events(log)
        seconds = time.time() - begun
        return Done(code, text, seconds, _steps(events, begun), *_said(events))

    async def _run(
        self, argv: Sequence[str], cut: Callable[[], bool], kill: Callable[[int], None], grace: float = 0.0
    ) -> tuple[int, str]:
        """A program in a session of its own: its exit code and what it said. `cut`: it is killed, so many seconds after that turned true."""
        process = await asyncio.create_subprocess_exec(
            *self.within,
            *argv,
            cwd=self.project,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        reading = asyncio.ensure_future(process.communicate())
        try:
            async with asyncio.timeout(ENGINE_SECONDS):
                while not reading.done():
                    await asyncio.wait([reading], timeout=0.1)
                    if cut():
                        await asyncio.sleep(grace)
                        break
        finally:
            if not reading.done():
                kill(process.pid)
            out, _ = await reading
        return process.returncode or 0, out.decode(errors="replace")


def _kill_session(session: int) -> None:
    """The engine, the language host, the program and the provider, as when the operator's machine goes out: each has a process group of its own."""
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (place / "stat").read_text().rpartition(")")[2].split()[3] == str(session):
                os.kill(int(place.name), signal.SIGKILL)


def _kill_with_children(pid: int) -> None:
    """A program and all that it started; Ansible is in a session of its own."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _events(log: Path) -> list[dict[str, Any]]:
    found = []
    for line in log.read_text().splitlines() if log.exists() else []:
        with suppress(ValueError):  # the last line of a run that was cut
            found.append(json.loads(line))
    return found


def _steps(events: list[dict[str, Any]], begun: float) -> list[tuple[str, str, float]]:
    found = []
    for event in events:
        for kind in ("resOutputsEvent", "resourcePreEvent"):
            details = event.get(kind, {}).get("metadata")
            if not details or details["op"] in {"same", "read", "refresh"}:
                continue
            custom = not details["type"].startswith(("heliograph:", "pulumi:"))
            if custom and (kind == "resOutputsEvent" or details.get("planning") or event[kind].get("planning")):
                found.append((details["op"], details["urn"].rpartition("::")[2], event["timestamp"] - begun))
    return found


def _said(events: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """(errors, what was tried again), each behind the resource's name."""
    errors, retried = [], []
    for event in events:
        said = event.get("diagnosticEvent", {})
        line = f"{said.get('urn', '').rpartition('::')[2]}: {said.get('message', '').strip()}"
        if said.get("severity") == "error":
            errors.append(line)
        elif re.search(r"(trying|tried|started) again", line):
            retried.append(line)
    return errors, retried


async def _preview() -> int:
    """A sample region of three hosts that nobody has."""
    tools = prepare(lambda line: print(line, file=sys.stderr))
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder) / "sample", tools)
        await project.must("pulumi", "stack", "init", "sample")
        certificate, key = new_authority("sample", date(2026, 1, 1))
        ssh_key = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
        values = {
            "authorityKey": key,
            "secretKey": "s" * 32,
            "adminKey": "k" * 46,
            "sshKey": ssh_key,
            "ledgerKey": "A" * 43 + "=",
        }
        await project.must("pulumi", "config", "set", "--stack", "sample", "authorityCertificate", stdin=certificate)
        for name, value in values.items():
            await project.must("pulumi", "config", "set", "--stack", "sample", "--secret", name, stdin=value)
        host_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 42 + "E="
        image = {"reference": "registry.example/image@sha256:" + "0" * 64}
        path = project.stack_file("sample")
        document = yaml.safe_load(path.read_text())
        document["config"]["heliograph:region"] = {
            "name": "sample",
            "offline": True,
            "hosts": [{"name": f"sample-{n}", "address": f"192.0.2.1{n}", "host_key": host_key} for n in (1, 2, 3)],
            "mongodb": {"version": "8.0", "image": image, "shards": [{"name": "a"}, {"name": "b"}]},
            "control_plane": {"image": image},
            "certificates": {"not_before": "2026-01-01"},
        }
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        done = await project.preview("sample")
        print(done.text)
        return done.code


if __name__ == "__main__":
    sys.exit(asyncio.run(_preview()))
