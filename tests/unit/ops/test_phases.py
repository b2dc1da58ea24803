"""Operations of several phases: from one to the next with everything read anew, and to an end whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controlplane.clock import SystemClock
from controlplane.domain.operations import KINDS, refusals
from controlplane.errors import ConfigError
from controlplane.ops import canary, phases
from controlplane.ops import operation as operations
from controlplane.ops.desired import Desired
from controlplane.ops.operation import State, begin, run
from controlplane.ops.phases import perform
from controlplane.ops.runner import Done, Event
from tests.unit.ops.sample import sample


class Region:
    """A change of so many phases; each play says how it ends."""

    def __init__(self, *names: str) -> None:
        self.left = list(names)
        self.played: list[str] = []
        self.ends: Callable[[str], Done] = lambda _: Done("successful", 2)

    def ask(self, verb: str, stack: str, kind: str, **_: Any) -> Any:
        assert (verb, stack, kind) == ("next", "fra", "authority")
        return {"phase": self.left[0], "says": "something is so"} if self.left else {}

    def play(self, known: Desired, playbook: str, variables: dict[str, Any], **_: Any) -> Done:
        name = variables["heliograph_phase"].get("phase", "")
        self.played.append(f"{name} {known.admin_key}")
        done = self.ends(name)
        if done.status == "successful" and name:
            self.left.pop(0)
        return done if name else replace(done, changed=0)

    def desired(self, _: str) -> Desired:
        return replace(sample(), admin_key=f"key of {self.left[0] if self.left else 'the end'}")


@pytest.fixture
def region(monkeypatch: pytest.MonkeyPatch) -> Region:
    made = Region("trust", "sign")
    for name in ("ask", "play", "desired"):
        monkeypatch.setattr(phases, name, getattr(made, name))
    return made


def performed(canceled: Callable[[], bool] = lambda: False, tell: Callable[[Event], None] = lambda _: None) -> Done:
    return perform("fra", "a.yml", "authority", "one", {}, {}, tell=tell, canceled=canceled, turned=lambda _: None)


def test_phase_after_phase_and_a_last_look(region: Region) -> None:
    heard: list[Event] = []
    assert performed(tell=heard.append) == Done("successful", 4)
    assert region.played == ["trust key of trust", "sign key of sign", " key of the end"]
    assert [event.task for event in heard] == ["trust: something is so", "sign: something is so"]
    assert performed() == Done("successful", 0)


def test_a_failure_ends_it_and_the_next_run_goes_on(region: Region) -> None:
    region.ends = lambda name: Done("failed", 1, "not now") if name == "sign" else Done("successful", 2)
    assert performed() == Done("failed", 3, "not now")
    region.ends = lambda _: Done("successful", 1)
    assert performed() == Done("successful", 1)
    assert [line.split()[0] for line in region.played[:3]] == ["trust", "sign", "sign"]


def test_canceled_between_two_phases(region: Region) -> None:
    assert performed(canceled=lambda: bool(region.played)) == Done("canceled", 2)
    assert region.left == ["sign"]


def test_a_phase_that_does_not_end_is_no_endless_loop(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "left", ["trust", "trust", "trust"])
    done = performed()
    assert (done.status, len(region.played)) == ("failed", 1)
    assert "does not go on from it" in done.problem


def test_what_cannot_be_asked_for_is_the_problem(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ConfigError("heliograph:change names the phase 'x'")

    monkeypatch.setattr(phases, "ask", refuse)
    assert performed() == Done("failed", 0, "heliograph:change names the phase 'x'")
    assert region.played == []


async def test_messages_turn_with_the_phases(region: Region, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends uses the key of the phase; no message is sent with the one before once the next has begun."""
    used: list[str] = []

    class Api:
        def __init__(self, _urls: Any, key: str, _authority: str) -> None:
            used.append(key)

        async def __aenter__(self) -> Api:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    async def send(*_: Any, stop: asyncio.Event, **__: Any) -> None:
        await stop.wait()

    def slowly(name: str) -> Done:
        turned = f"key of {name or 'the end'}"
        for _ in range(500):
            if used[-1:] == [turned]:
                break
            asyncio.run(asyncio.sleep(0.01))  # in the thread of the play
        return Done("successful", 1)

    region.ends = slowly
    monkeypatch.setattr(canary, "Api", Api)
    monkeypatch.setattr(canary, "send", send)
    state = State(tmp_path / "fra")
    with state.lock():
        begun = begin(state, "rotate-certificates", {"scope": "authority"}, SystemClock())
        ended = await run(state, begun, sample(), SystemClock(), lambda _: None, canceled=lambda: False)
    assert (ended.state, ended.changed) == ("done", 2)
    assert used[-3:] == ["key of trust", "key of sign", "key of the end"]
    assert operations.find(state) is None


def test_what_each_takes() -> None:
    assert refusals("rotate-certificates", {"scope": "authority"}) == []
    assert refusals("rotate-keys", {"scope": "everything"})[0].where == "variables/scope"
    assert refusals("add-shard", {"shard": "c", "hosts": "fra-1,fra-2,fra-3"}) == []
    assert refusals("add-shard", {"shard": "C"})[0].where == "variables/shard"
    assert all(KINDS[name].phases for name in ("rotate-certificates", "rotate-keys", "replace-host", "add-shard"))


def test_who_names_a_machine_must_be_at_the_operators_own() -> None:
    """It would be given the region's keys."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
    given = {"host": "fra-2", "by": "fra-4=10.0.0.14", "host_key": key}
    assert refusals("replace-host", given)[0].where == "kind"
    assert refusals("replace-host", given, here=True) == []
    assert refusals("replace-host", given | {"by": "fra-4"}, here=True)[0].where == "variables/by"
