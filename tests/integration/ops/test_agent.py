"""Operations that are asked for over the API, run by an agent with a real Ansible over the double of the hosts' tool, against a real node: watched, canceled, cut and gone on with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from controlplane import ops_command
from controlplane.clock import SystemClock
from controlplane.errors import ConfigError
from controlplane.ops import agent, reporting
from controlplane.ops import operation as module
from controlplane.ops.agent import _asked, _check, alone, serve
from controlplane.ops.desired import Desired
from controlplane.ops.journal import Journal
from controlplane.ops.operation import Operation, State, begin
from controlplane.ops.reporting import Desk, HeldElsewhereError, Telling, operate
from controlplane.ops.runner import Done, Event, play
from controlplane.store.operations import SILENT_MS
from tests.conftest import exhaustive
from tests.integration.ops.test_playbooks import Region
from tests.simulators.network import free_port
from tests.simulators.node import RunningNode

CLOCK = SystemClock()
AGENT = """
import asyncio, json, sys
from functools import partial
from pathlib import Path
from controlplane.clock import SystemClock
from controlplane.errors import ConfigError
from controlplane.ops import operation
from controlplane.ops.agent import _asked, _check, alone, serve
from controlplane.ops.desired import Desired
from controlplane.ops.operation import State
from controlplane.ops.runner import play
given = json.load(open(sys.argv[1]))
operation.play = partial(play, project=Path(given["project"]))
known, state = Desired(**given["known"]), State(Path(given["state"]))
with alone(state):
    asyncio.run(serve(state, lambda: known, SystemClock(), tell=print, say=print, stopped=lambda: False, once=True))
"""


class World:
    """A node that takes messages, and a region that it is the only node of."""

    def __init__(self, folder: Path, node: RunningNode) -> None:
        self.node, self.region, self.folder = node, Region(folder), folder
        every = self.region.desired.inventory["all"]
        [first, *_] = every["vars"]["heliograph_nodes_all"]
        every["vars"] |= {
            "heliograph_nodes_all": [first | {"url": node.base_url}],
            "steps_soak_seconds": 0,
            "steps_join_seconds": 6,
        }
        self.known = replace(
            self.region.desired,
            region=node.node.settings.datacenter,
            urls=(node.base_url,),
            admin_key=node.admin_key,
            authority="",
        )
        self.state = State(folder / "state" / "fra")
        self.heard: list[Event] = []
        self.ended: list[Operation] = []

    async def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        status, found = await self.node.call(
            method, f"/v1/operations{path}", key=self.node.admin_key, json=body, params=query
        )
        assert status < 300, found
        return found

    async def ask(self) -> str:
        return str((await self.call("POST", "", {"kind": "site"}))["id"])

    async def agent(self, state: State | None = None, stopped: Callable[[], bool] = lambda: False) -> None:
        await serve(
            state or self.state,
            lambda: self.known,
            CLOCK,
            tell=self.heard.append,
            say=self.ended.append,
            stopped=stopped,
            once=True,
        )

    def installed(self) -> list[str]:
        return [line for line in self.region.log() if not line.startswith("balancer")]

    async def events(self, operation: str) -> list[Any]:
        return list((await self.call("GET", f"/{operation}/events", limit=1000))["data"])

    def process(self) -> subprocess.Popen[bytes]:
        """The agent as a process of its own."""
        given = {"project": str(self.region.project), "known": asdict(self.known), "state": str(self.state.folder)}
        path = self.folder / "given.json"
        path.write_text(json.dumps(given))
        return subprocess.Popen([sys.executable, "-c", AGENT, str(path)], start_new_session=True)


@pytest.fixture
async def world(
    tmp_path: Path, node: RunningNode, carriers: Any, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> World:
    await node.connect(await carriers(), prefixes=("999",))
    (tmp_path / "region").mkdir()
    made = World(tmp_path / "region", node)
    monkeypatch.setattr(module, "play", partial(play, project=made.region.project))
    return made


async def test_asked_for_run_and_told(world: World) -> None:
    operation = await world.ask()
    await world.agent()
    found = await world.call("GET", f"/{operation}")
    assert (found["state"], found["problem"]) == ("done", None)
    steps = len(world.known.inventory["all"]["vars"]["heliograph_steps"])
    assert (found["steps"]["total"], found["steps"]["passed"]) == (steps, steps)
    assert (len(found["steps"]["done"]), found["steps"]["open"], found["steps"]["owed"]) == (4, [], [])
    assert found["canaries"]["accepted"] > 0
    assert found["canaries"]["missing"] == 0
    assert found["changed"] == world.ended[0].changed > 0
    assert len(world.installed()) == 4
    told = [(event["kind"], event["task"], event["host"]) for event in await world.events(operation)]
    assert told == [(each.kind, each.task, each.host) for each in world.heard if each.kind != "ok" or each.message]
    assert [each.id for each in world.state.all()] == [operation]
    database = world.node.node.database
    for name in ("operations", "operation_events", "audit"):
        kept = str(await database[name].find({}).to_list())
        assert world.known.admin_key not in kept
        assert world.known.ssh_key.splitlines()[2] not in kept
    files = [path for path in world.state.folder.rglob("*") if path.is_file()]
    assert not [path for path in files if world.known.admin_key in path.read_text()]
    before = world.region.log()
    await world.agent()  # nothing is asked for
    assert world.region.log() == before


async def test_canceled_from_elsewhere_and_gone_on_with(world: World) -> None:
    operation = await world.ask()

    async def cancel() -> None:
        while not world.installed():
            await asyncio.sleep(0.05)
        await world.call("POST", f"/{operation}/cancel")

    async with asyncio.TaskGroup() as group:
        group.create_task(cancel())
        group.create_task(world.agent())
    found = await world.call("GET", f"/{operation}")
    assert (found["state"], found["can"]) == ("canceled", ["resume", "abort"])
    assert len(world.installed()) < 4
    await world.call("POST", f"/{operation}/resume")
    await world.agent()
    found = await world.call("GET", f"/{operation}")
    assert (found["state"], found["resumed"]) == ("done", 1)
    assert len(world.installed()) == 4  # none was done twice
    assert len(await world.events(operation)) == sum(each.kind != "ok" or bool(each.message) for each in world.heard)


async def test_killed_and_gone_on_with_by_the_same_and_by_another_machine(world: World) -> None:
    operation = await world.ask()
    process = world.process()
    while not world.installed():
        await asyncio.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (await world.call("GET", f"/{operation}"))["state"] == "running"
    process = world.process()  # the same folder: it need not wait
    while len(world.installed()) < 2:
        await asyncio.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    told = len(await world.events(operation))
    other = State(world.folder / "other" / "fra")
    await world.agent(other)  # the first may still be at it
    assert not other.all()
    await world.node.node.database["operations"].update_many({}, {"$inc": {"beat": -SILENT_MS}})
    await world.agent(other)
    found = await world.call("GET", f"/{operation}")
    assert (found["state"], found["problem"]) == ("done", None)
    assert len(world.installed()) == 4
    assert len(await world.events(operation)) > told
    assert [each.id for each in other.all()] == [operation]


async def by_hand(world: World, known: Desired) -> Operation:
    """As `heliograph ops site` does it."""
    with world.state.lock():
        async with Desk(known, world.state, CLOCK) as desk:
            operation = begin(world.state, "site", {}, CLOCK)
            telling = Telling(desk, operation)
            await telling.enter(operation)
            return await operate(telling, operation, world.heard.append, canceled=lambda: False)


@exhaustive
async def test_begun_by_hand_while_the_api_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is told of it is away, not the nodes: the operation is neither stopped nor held up, and is told when somebody listens."""
    monkeypatch.setattr(reporting, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(reporting, "_LAST_SECONDS", 1.0)
    calls = reporting.Desk.call

    async def nobody(*_: Any) -> None:
        await asyncio.sleep(0.5)

    monkeypatch.setattr(reporting.Desk, "call", nobody)
    ended = await by_hand(world, world.known)
    assert ended.state == "done"
    assert (await world.call("GET", ""))["data"] == []
    monkeypatch.setattr(reporting.Desk, "call", calls)
    async with Desk(world.known, world.state, CLOCK) as desk:
        assert await desk.catch_up()
        [found] = (await world.call("GET", ""))["data"]
        assert (found["id"], found["state"], found["by_hand"]) == (ended.id, "done", True)
        assert found["events"] == sum(each.kind != "ok" or bool(each.message) for each in world.heard)
        assert await desk.catch_up()
    assert (await world.call("GET", f"/{ended.id}")) == found  # what is told already is not told again


async def test_by_hand_another_one_that_is_not_finished_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had never been begun; and what was cut here stays as it was."""
    monkeypatch.setattr(ops_command, "desired", lambda _: world.known)
    monkeypatch.setattr(ops_command, "_signals", lambda: lambda: False)
    folder = world.state.folder.parent
    asked = (await world.call("POST", "", {"kind": "upgrade"}))["id"]
    with pytest.raises(HeldElsewhereError, match=r"`upgrade` .* is requested"):
        await asyncio.to_thread(ops_command._operate, "fra", folder, "site")
    assert world.state.all() == []
    left = begin(world.state, "site", {}, CLOCK)
    with pytest.raises(HeldElsewhereError, match="is requested"):
        await asyncio.to_thread(ops_command._operate, "fra", folder, "site")
    assert world.state.all() == [left]
    assert world.region.log() == []
    await world.call("POST", f"/{asked}/cancel")
    with pytest.raises(ConfigError, match="exactly one of host, node"):
        await asyncio.to_thread(ops_command._operate, "fra", folder, "drain")


@exhaustive
async def test_by_hand_gone_on_with_and_aborted(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command goes on; abort takes back, and the API hears of both."""
    monkeypatch.setattr(ops_command, "desired", lambda _: world.known)
    monkeypatch.setattr(ops_command, "_signals", lambda: lambda: bool(world.installed()))
    folder = world.state.folder.parent
    with pytest.raises(typer.Exit):
        await asyncio.to_thread(ops_command._operate, "fra", folder, "site")
    [left] = world.state.all()
    assert (await world.call("GET", f"/{left.id}"))["state"] == "canceled"
    await asyncio.to_thread(ops_command.abort, "fra", folder)
    found = await world.call("GET", f"/{left.id}")
    assert (found["state"], found["unfinished"], found["by_hand"]) == ("aborted", False, True)
    assert f"site {left.id} aborted" in capsys.readouterr().out
    await world.ask()


async def test_what_cannot_be_begun_has_failed(world: World) -> None:
    """Something else is unfinished on this machine: what is asked for ends with that, and is in nobody's way."""
    left = begin(world.state, "drain", {"node": "fra-1-1"}, CLOCK)
    world.state.save(replace(left, state="failed"))
    operation = await world.ask()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Desk, "catch_up", lambda _: asyncio.sleep(0))  # as while the API is away
        await world.agent()
    found = await world.call("GET", f"/{operation}")
    assert (found["state"], found["unfinished"]) == ("failed", False)
    assert "`drain`" in found["problem"]
    await world.ask()


async def test_what_breaks_has_failed_and_is_not_tried_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent ends by it and is started again, as a service would be."""
    tries: list[str] = []

    def broken(_: Desired, playbook: str, *__: Any, **___: Any) -> Done:
        tries.append(playbook)
        raise RuntimeError("no memory")

    monkeypatch.setattr(module, "play", broken)
    operation = await world.ask()
    with pytest.raises(ExceptionGroup):
        await world.agent()
    await world.agent()
    assert tries == ["site.yml"]
    found = await world.call("GET", f"/{operation}")
    assert (found["state"], found["can"]) == ("failed", ["resume", "abort"])
    assert "no memory" in found["problem"]


@exhaustive
async def test_a_key_that_was_changed_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's own was taken out of use: it reads anew what is declared."""
    monkeypatch.setattr(agent, "_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(agent, "_ANEW", 2)
    monkeypatch.setattr(module, "play", lambda *_, **__: Done("successful", 0))
    operation = (await world.call("POST", "", {"kind": "verify"}))["id"]
    good, world.known = world.known, replace(world.known, admin_key="hg_live_former")
    asked: list[Desired] = []

    def declared() -> Desired:
        asked.append(world.known if not asked else good)
        return asked[-1]

    async with asyncio.timeout(30):
        await serve(
            world.state,
            declared,
            CLOCK,
            tell=world.heard.append,
            say=world.ended.append,
            stopped=lambda: bool(world.ended),
        )
    assert (world.ended[0].id, world.ended[0].state) == (operation, "done")
    assert (await world.call("GET", f"/{operation}"))["state"] == "done"


@pytest.mark.parametrize(
    "changes",
    [
        {"variables": {"scope": "{{ lookup('pipe', 'id') }}"}},
        {"kind": "nothing"},
        {"kind": "abort"},
        {"journal": {"done": [], "open": [], "owed": ["node {{ lookup('pipe', 'id') }}"]}},
    ],
)
async def test_what_a_node_was_made_to_say_is_not_run(world: World, changes: dict[str, Any]) -> None:
    """Somebody can write to the database: the machine that has the keys still runs only what is in its own table."""
    operation = await world.ask()
    await world.node.node.database["operations"].update_one({"_id": operation}, {"$set": changes})
    await world.agent()
    assert world.ended[0].problem.startswith("What the API asks for is not run here")
    assert world.state.all() == []
    assert world.region.log() == []
    assert (await world.call("GET", f"/{operation}"))["state"] == "failed"


def test_an_id_is_no_path(tmp_path: Path) -> None:
    found = {"id": "../../x", "kind": "verify", "variables": {}, "resumed": 0}
    steps = {"done": [], "open": [], "owed": []}
    with pytest.raises(ConfigError, match="no id of an operation"):
        _check(State(tmp_path), *_asked({"operation": found | {"steps": steps}}))


def test_what_is_begun_by_hand_alone_goes_on_where_it_was_and_as_it_was(tmp_path: Path) -> None:
    """Whoever may only ask over the API brings no machine of their own into the region."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEX2mVqK5mM4J7pYv8r5uY1cXq4l2pQzq3b0kQnW8TtG"
    variables = {"host": "fra-1", "by": "fra-9=10.0.0.9", "host_key": key}
    asked = Operation("0" * 26, "replace-host", variables, "running", 0)
    with pytest.raises(ConfigError, match="is not one of"):
        _check(State(tmp_path), asked, Journal())
    state = State(tmp_path)
    state.save(asked)
    _check(state, asked, Journal())
    with pytest.raises(ConfigError, match="is not one of"):
        _check(state, replace(asked, variables=variables | {"by": "evil=10.6.6.6"}), Journal())


def test_one_agent_for_a_folder(tmp_path: Path) -> None:
    state = State(tmp_path / "fra")
    with alone(state), pytest.raises(ConfigError, match="runs here already"), alone(state):
        pass


async def test_nobody_answers(world: World) -> None:
    known = replace(world.known, urls=(f"http://127.0.0.1:{free_port()}",))
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="takes operations"):
        await serve(world.state, lambda: known, CLOCK, tell=print, say=print, stopped=lambda: False, once=True)
    assert time.monotonic() - begun < 15
