"""An operation on a region: one at a time, written down where it runs, gone on with after a cut.

Each has a folder `<state>/<region>/<id>/`: `operation.json` (what, since when, how it ended), `journal.jsonl` (steps, and what is owed), `canaries.jsonl`
(messages accepted meanwhile). The steps themselves remember nothing: what is to be done is what differs now, so going on is beginning again.
The kinds are in `controlplane.domain.operations`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from controlplane.clock import Clock
from controlplane.domain.operations import KINDS
from controlplane.errors import ConfigError
from controlplane.ids import new_mid, token
from controlplane.ops import canary, journal
from controlplane.ops.desired import Desired
from controlplane.ops.journal import Journal
from controlplane.ops.phases import perform
from controlplane.ops.runner import Done, Event, play

__all__ = ["Operation", "State", "adopt", "begin", "find", "run", "take_back"]

_UNDER_TEST = "+999"
_EVERY_SECONDS = 0.5
_EVERY_SECONDS_PAID = 30.0
"""Where test messages go to a real number, and cost something."""


@dataclass(frozen=True, slots=True)
class Operation:
    """As `operation.json` has it."""

    id: str
    kind: str
    variables: dict[str, str]
    state: str
    """running, done, failed, canceled or aborted. `running` while nobody holds the region's lock: it was cut."""
    begun_at: int
    """ms since the epoch."""
    ended_at: int = 0
    changed: int = 0
    problem: str = ""
    pid: int = 0
    resumed: int = 0
    """How often it was gone on with."""

    @property
    def unfinished(self) -> bool:
        """May owe something, or be gone on with."""
        known = KINDS.get(self.kind)  # None: of a newer version
        return (known is None or known.changes) and self.state in ("running", "failed", "canceled")


@dataclass
class State:
    """Where a region's operations are written down."""

    folder: Path
    """`<state>/<region>`."""
    listeners: list[Callable[[Event], None]] = field(default_factory=list)

    def path(self, operation: Operation, name: str) -> Path:
        """A file of an operation."""
        return self.folder / operation.id / name

    def save(self, operation: Operation) -> Operation:
        """Durably."""
        path = self.path(operation, "operation.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(asdict(operation), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return operation

    def forget(self, operation: Operation) -> None:
        """One that came to nothing."""
        shutil.rmtree(self.folder / operation.id, ignore_errors=True)

    def identity(self) -> str:
        """Of this folder, and of whoever runs operations from it."""
        path, draft = self.folder / "agent", self.folder / f"agent.{os.getpid()}"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.write_text(token("agent"), encoding="ascii")
            with suppress(FileExistsError):  # another process was first
                path.hardlink_to(draft)
            draft.unlink()
        return path.read_text(encoding="ascii")

    def all(self) -> list[Operation]:
        """Oldest first."""
        found = []
        for path in sorted(self.folder.glob("*/operation.json")):
            with suppress(ValueError, TypeError):
                found.append(Operation(**json.loads(path.read_text(encoding="utf-8"))))
        return found

    def journal(self, operation: Operation) -> Journal:
        """What it wrote down."""
        path = self.path(operation, "journal.jsonl")
        return journal.read(path.read_text(encoding="utf-8").splitlines() if path.exists() else ())

    @contextmanager
    def alone(self, name: str, refusal: str) -> Iterator[None]:
        """Hold the lock file `name`. ConfigError, which is `refusal`, while another process does."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(refusal) from None
            yield

    def lock(self) -> AbstractContextManager[None]:
        """One operation at a time. ConfigError while another one runs."""
        return self.alone(
            "lock",
            f"Another operation on {self.folder.name} is under way. `heliograph ops status` shows it, `heliograph ops abort` ends it.",
        )

    def held(self) -> bool:
        """Whether somebody runs an operation now."""
        try:
            with self.lock():
                return False
        except ConfigError:
            return True


def find(state: State) -> Operation | None:
    """The newest that is unfinished: failed, canceled or cut, and neither gone on with nor aborted."""
    return next((one for one in reversed(state.all()) if one.unfinished), None)


def begin(state: State, kind: str, variables: Mapping[str, str], clock: Clock) -> Operation:
    """A new operation, or the unfinished one of the same kind. ConfigError while another one is unfinished. Hold the lock."""
    left = find(state) if KINDS[kind].changes else None
    if left is not None and (left.kind, left.variables) != (kind, dict(variables)):
        words = " ".join([left.kind, *(f"{name}={value}" for name, value in left.variables.items())])
        raise ConfigError(
            f"`{words}` ({left.id}) {'was cut' if left.state == 'running' else left.state} and is not finished. "
            "Run it again to go on, or `heliograph ops abort` to take back what it owes."
        )
    now = clock.now_ms()
    if left is not None:
        return state.save(replace(left, state="running", pid=os.getpid(), resumed=left.resumed + 1, problem=""))
    return state.save(Operation(new_mid(now), kind, dict(variables), "running", now, pid=os.getpid()))


def adopt(state: State, asked: Operation, written: Journal, clock: Clock) -> Operation:
    """Hold one that was asked for over the API: as it is known here, else as it was told by another machine (`written`). ConfigError, Hold the lock: as `begin`."""
    known = next((one for one in state.all() if one.id == asked.id), None)
    left = find(state) if KINDS[asked.kind].changes else None
    if left is not None and left.id != asked.id:
        raise ConfigError(
            f"`{left.kind}` ({left.id}) is not finished on this machine, and the API does not know it. "
            "Run it again here, or `heliograph ops abort` it."
        )
    if known is not None:
        return state.save(
            replace(known, state="running", pid=os.getpid(), resumed=known.resumed + 1, problem="", ended_at=0)
        )
    resumed = asked.resumed + (written != Journal())
    fresh = state.save(replace(asked, state="running", begun_at=clock.now_ms(), pid=os.getpid(), resumed=resumed))
    entries = [("done", written.done), ("begun", written.open), ("owed", written.owed)]
    lines = [json.dumps({"at": 0, "entry": entry, "step": step}) for entry, steps in entries for step in steps]
    state.path(fresh, "journal.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return fresh


def take_back(
    state: State,
    operation: Operation,
    desired: Desired,
    clock: Clock,
    tell: Callable[[Event], None],
    *,
    canceled: Callable[[], bool],
) -> Operation:
    """Abort it: what it owes is settled, what was changed stays. Blocks, as `play`. Hold the lock."""
    path = str(state.path(operation, "journal.jsonl"))
    variables = {"heliograph_owed": list(state.journal(operation).owed), "heliograph_journal": path}
    done = play(desired, KINDS["abort"].playbook, variables, tell=tell, canceled=canceled)
    how = {"successful": "aborted", "canceled": "canceled"}.get(done.status, "failed")
    return state.save(replace(operation, state=how, ended_at=clock.now_ms(), problem=done.problem, pid=0))


async def run(
    state: State,
    operation: Operation,
    desired: Desired,
    clock: Clock,
    tell: Callable[[Event], None],
    *,
    canceled: Callable[[], bool],
    turned_to: Callable[[Desired], None] = lambda _: None,
) -> Operation:
    """Take the operation to its end, messages sent all the while; `turned_to` hears what is declared from then on. Hold the lock."""
    written = state.journal(operation)
    variables: dict[str, Any] = {f"heliograph_{name}": value for name, value in operation.variables.items()}
    variables |= {
        "heliograph_owed": list(written.owed),
        "heliograph_open": list(written.open),
        "heliograph_journal": str(state.path(operation, "journal.jsonl")),
    }
    stop, lost = asyncio.Event(), []
    kind = KINDS[operation.kind]
    loop, now, turned = asyncio.get_running_loop(), desired, asyncio.Event()

    def turn(known: Desired) -> None:
        """From here on messages are sent as this says: a phase may have changed hosts, keys and authority."""
        nonlocal now
        now = known
        loop.call_soon_threadsafe(turned.set)
        loop.call_soon_threadsafe(turned_to, known)

    path = state.path(operation, "canaries.jsonl")

    async def keep_sending() -> None:
        every = _EVERY_SECONDS if desired.to.startswith(_UNDER_TEST) else _EVERY_SECONDS_PAID
        try:
            while not stop.is_set():
                turned.clear()
                async with canary.Api(now.urls, now.admin_key, now.authority) as api:
                    await canary.send(api, now.to, path, name=operation.id, every=every, stop=turned)
        except ConfigError as error:
            lost.append(str(error))
        except Exception as error:  # the playbook ends first, then the error is shown
            lost.append(f"the sender of test messages broke: {error!r}")
            raise

    async def keep_playing() -> Done:
        counting = {"heliograph_canaries": str(path)} if kind.counted else {}
        try:
            if kind.phases:
                return await asyncio.to_thread(
                    perform,
                    state.folder.name,
                    kind.playbook,
                    operation.variables.get("scope", operation.kind),
                    operation.id,
                    operation.variables,
                    variables | counting,
                    tell=tell,
                    canceled=lambda: canceled() or bool(lost),
                    turned=turn,
                )
            return await asyncio.to_thread(
                play,
                desired,
                kind.playbook,
                variables | counting,
                check=kind.check,
                opens=kind.opens,
                tell=tell,
                canceled=lambda: canceled() or bool(lost),
            )
        finally:
            stop.set()
            turned.set()

    async with asyncio.TaskGroup() as group:
        if kind.counted:
            group.create_task(keep_sending())
        playing = group.create_task(keep_playing())
    done = playing.result()
    ended = {"successful": "done", "canceled": "canceled"}.get(done.status, "failed")
    if lost:
        ended, done = "failed", replace(done, problem=lost[0])
    return state.save(
        replace(
            operation,
            state=ended,
            ended_at=clock.now_ms(),
            changed=operation.changed + done.changed,
            problem=done.problem,
            pid=0,
        )
    )
