"""One operation at a time; what was cut is gone on with, or aborted, and never forgotten."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controlplane.clock import SystemClock
from controlplane.domain.operations import KINDS
from controlplane.errors import ConfigError
from controlplane.ops import operation as module
from controlplane.ops.journal import Journal
from controlplane.ops.operation import Operation, State, adopt, begin, find, run
from controlplane.ops.runner import Done
from tests.unit.ops.sample import sample

CLOCK = SystemClock()


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "fra")


def ended(state: State, operation: Operation, how: str) -> Operation:
    return state.save(replace(operation, state=how))


def test_one_at_a_time(state: State) -> None:
    with state.lock():
        assert state.held()
        with pytest.raises(ConfigError, match="Another operation on fra is under way"), state.lock():
            pass
    assert not state.held()


@pytest.mark.parametrize("how", ["running", "failed", "canceled"])
def test_the_same_goes_on_and_another_is_refused(state: State, how: str) -> None:
    first = ended(state, begin(state, "upgrade", {"scope": "nodes"}, CLOCK), how)
    with pytest.raises(ConfigError, match=r"`upgrade scope=nodes` .* is not finished"):
        begin(state, "drain", {"node": "fra-1-1"}, CLOCK)
    with pytest.raises(ConfigError, match="is not finished"):
        begin(state, "upgrade", {"scope": "mongodb"}, CLOCK)
    second = begin(state, "upgrade", {"scope": "nodes"}, CLOCK)
    assert (second.id, second.resumed, second.state) == (first.id, 1, "running")


@pytest.mark.parametrize("how", ["done", "aborted"])
def test_after_an_end_a_new_one_begins(state: State, how: str) -> None:
    first = ended(state, begin(state, "upgrade", {}, CLOCK), how)
    assert find(state) is None
    assert begin(state, "drain", {}, CLOCK).id != first.id


def test_verify_is_never_in_the_way(state: State) -> None:
    ended(state, begin(state, "verify", {}, CLOCK), "failed")
    assert find(state) is None
    left = ended(state, begin(state, "upgrade", {}, CLOCK), "canceled")
    assert begin(state, "verify", {}, CLOCK).id != left.id
    assert find(state) == left


def test_a_file_that_was_cut_is_passed_over(state: State) -> None:
    kept = begin(state, "upgrade", {}, CLOCK)
    (state.folder / "zz").mkdir()
    (state.folder / "zz" / "operation.json").write_text('{"id": "zz"')
    assert state.all() == [kept]


class Played:
    """Stands for Ansible: notes what it is given, writes the journal as the playbooks do."""

    def __init__(self, done: Done, lines: list[tuple[str, str]] | None = None) -> None:
        self.done, self.lines, self.variables = done, lines or [], dict[str, Any]()

    def __call__(self, known: Any, playbook: str, variables: dict[str, Any], **_: Any) -> Done:
        self.playbook, self.variables = playbook, variables
        with Path(variables["heliograph_journal"]).open("a") as file:
            file.writelines(json.dumps({"at": 0, "entry": entry, "step": step}) + "\n" for entry, step in self.lines)
        return self.done


async def play(state: State, kind: str, played: Played, monkeypatch: pytest.MonkeyPatch) -> Operation:
    monkeypatch.setattr(module, "play", played)
    return await run(
        state, begin(state, kind, {"host": "fra-1"}, CLOCK), sample(), CLOCK, lambda _: None, canceled=lambda: False
    )


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (Done("successful", 2), "done"),
        (Done("failed", 1, "Refused: no majority"), "failed"),
        (Done("canceled", 0), "canceled"),
    ],
)
async def test_how_it_ends(state: State, done: Done, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = await play(state, "undrain", Played(done), monkeypatch)
    assert (operation.state, operation.changed, operation.problem) == (expected, done.changed, done.problem)
    assert state.all() == [operation]


async def test_what_is_owed_is_given_to_the_next_run(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Played(Done("canceled", 1), [("owed", "balancer"), ("begun", "a"), ("done", "a"), ("begun", "b")])
    monkeypatch.setitem(KINDS, "upgrade", replace(KINDS["upgrade"], counted=False))
    operation = await play(state, "upgrade", first, monkeypatch)
    assert first.variables["heliograph_owed"] == []
    written = state.journal(operation)
    assert (written.done, written.open, written.owed) == (("a",), ("b",), ("balancer",))
    second = Played(Done("successful", 2), [("done", "b"), ("settled", "balancer")])
    operation = await play(state, "upgrade", second, monkeypatch)
    assert second.variables["heliograph_owed"] == ["balancer"]
    assert second.variables["heliograph_host"] == "fra-1"
    assert (operation.state, operation.changed, operation.resumed) == ("done", 3, 1)
    assert state.journal(operation).owed == ()


async def test_messages_that_nobody_takes_end_it(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender gives up: the playbook is told to end, and the operation fails with its reason."""

    class Nobody:
        def __init__(self, *_: Any) -> None:
            raise ConfigError("No node answered")

    told: list[bool] = []

    class Waiting(Played):
        def __call__(self, *given: Any, canceled: Any, **options: Any) -> Done:
            end = time.monotonic() + 20
            while not canceled() and time.monotonic() < end:
                time.sleep(0.01)
            told.append(canceled())
            return super().__call__(*given, **options)

    monkeypatch.setattr(module.canary, "Api", Nobody)
    operation = await play(state, "upgrade", Waiting(Done("canceled", 0)), monkeypatch)
    assert told == [True]
    assert (operation.state, operation.problem) == ("failed", "No node answered")


def test_a_folder_has_one_identity(state: State) -> None:
    """Whoever goes on from it is known by it."""
    first = state.identity()
    assert first.startswith("agent_")
    assert {state.identity(), State(state.folder).identity()} == {first}
    assert [path.name for path in state.folder.iterdir()] == ["agent"]


def test_what_was_asked_for_elsewhere_is_held_here(state: State) -> None:
    """Known here it goes on; told by another machine alone, with what that one wrote down; beside another unfinished one not at all."""
    asked = Operation("0" * 26, "upgrade", {"scope": "nodes"}, "running", 0, resumed=1)
    held = adopt(state, asked, Journal(("a",), ("b",), ("balancer",)), CLOCK)
    assert (held.state, held.resumed) == ("running", 2)
    assert state.journal(held) == Journal(("a",), ("b",), ("balancer",))
    ended(state, held, "canceled")
    again = adopt(state, asked, Journal(), CLOCK)
    assert (again.id, again.state, again.resumed) == (asked.id, "running", 3)
    assert state.journal(again).owed == ("balancer",)  # its own counts, not what was told
    with pytest.raises(ConfigError, match="is not finished on this machine"):
        adopt(state, replace(asked, id="1" * 26), Journal(), CLOCK)
    assert adopt(state, Operation("2" * 26, "verify", {}, "running", 0), Journal(), CLOCK).kind == "verify"
