"""The upgrade's playbook, run by a real Ansible against hosts whose tool is a double: what is refused, what a cut leaves, how it goes on.

The double stands for hostctl alone (plan, install, image, run), and keeps what it is told. That the real one does the same on real hosts is the lab's to show.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from controlplane.ops.journal import Journal, read
from controlplane.ops.runner import PLAYBOOKS, Done, Event, play
from infra.desired import declared
from infra.plan import plan
from tests.unit.infra.sample import sample_region
from tests.unit.ops.sample import sample

TOOL = """
import hashlib, json, pathlib, sys
home = pathlib.Path("@HOME@")
verb, spec = sys.argv[1], json.load(sys.stdin)
mark = home / hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
balancer = home / "balancer"

def log(line):
    with (home / "log").open("a") as file:
        file.write(line + "\\n")

def status():
    sick = json.loads((home / "sick").read_text()) if (home / "sick").exists() else []
    done = len((home / "log").read_text().splitlines()) if (home / "log").exists() else 0
    down = [host for host, after in sick if done >= after]
    wanted = json.loads(spec["stdin"])["sets"]
    members = [[{"host": m["host"], "votes": 1, "healthy": m["host"] not in down, "answers": m["host"] not in down, "state": "SECONDARY",
                 "why": "refused" if m["host"] in down else ""} for m in one["members"]] for one in wanted]
    sets = [{"set": one["set"], "primary": one["members"][0]["host"], "members": seen} for one, seen in zip(wanted, members)]
    return {"sets": sets, "cluster": {"balancer": {"mode": balancer.read_text() if balancer.exists() else "full"}}, "problems": []}

if verb == "plan":
    change = not mark.exists()
    print(json.dumps({"paths": [], "units": spec.get("units", []) if change else [], "absent": False, "turned": False, "change": change}))
elif verb in ("install", "image"):
    log(spec["name"] + " " + " ".join(m["member"] for m in spec.get("markers", {}).values()))
    mark.touch()
    print("{}")
elif spec["argv"][1] == "status":
    print(json.dumps(status()))
elif spec["argv"][1] == "balancer":
    mode = "full" if json.loads(spec["stdin"])["running"] else "off"
    if mode != (balancer.read_text() if balancer.exists() else "full"):
        balancer.write_text(mode)
        log("balancer " + mode)
        print(json.dumps({"change": "balancer"}))
"""


@dataclass
class Region:
    """Three hosts that are this machine, and what their tool was told."""

    folder: Path
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.home.mkdir()
        self.project = self.folder / "playbooks"
        shutil.copytree(PLAYBOOKS, self.project)
        tool, user = str(self.home / "hostctl"), pwd.getpwuid(os.getuid()).pw_name
        for path in (self.project / "library/heliograph_hostctl.py", self.project / "roles/region/tasks/main.yml"):
            text = path.read_text().replace("/usr/local/lib/heliograph/hostctl", tool)
            path.write_text(text.replace("owner: root", f"owner: {user}").replace("    group: root\n", ""))
        region = sample_region()
        every = declared(region, plan(region))["all"]
        for name in every["children"]["region"]["hosts"]:
            every["hosts"][name] |= {
                "ansible_connection": "local",
                "ansible_become": False,
                "ansible_python_interpreter": sys.executable,
            }
        known = [one for one in every["vars"]["heliograph_steps"] if one.get("set") == "fra-a"]
        known += [one for one in every["vars"]["heliograph_steps"] if one["kind"] == "router"][:1]
        every["vars"] |= {"heliograph_steps": known, "heliograph_tool": TOOL.replace("@HOME@", str(self.home))}
        self.desired = sample()
        self.desired.inventory.clear()
        every["hosts"]["fra-1"].setdefault("ansible_port", 22)
        self.desired.inventory["all"] = every
        self.members = [one["endpoint"] for one in known if one["kind"] == "member"]

    def run(self, playbook: str, canceled: Callable[[], bool] = lambda: False, **variables: Any) -> Done:
        self.events = []
        values = {
            "heliograph_journal": str(self.folder / "journal"),
            "heliograph_scope": "mongodb",
            "heliograph_soak_seconds": 0,
            "steps_soak_seconds": 0,
            "steps_join_seconds": 6,
            "region_wait_seconds": 6,
            "heliograph_owed": list(self.journal().owed),
            "heliograph_open": list(self.journal().open),
        }
        return play(
            self.desired, playbook, values | variables, tell=self.events.append, canceled=canceled, project=self.project
        )

    def journal(self) -> Journal:
        path = self.folder / "journal"
        return read(path.read_text().splitlines() if path.exists() else ())

    def log(self) -> list[str]:
        path = self.home / "log"
        return [line.strip() for line in path.read_text().splitlines()] if path.exists() else []

    def sick(self, *hosts: tuple[str, int]) -> None:
        """These members are down once so many things were done."""
        (self.home / "sick").write_text(json.dumps(hosts))


@pytest.fixture
def region(tmp_path: Path) -> Region:
    return Region(tmp_path)


def test_from_end_to_end_and_nothing_the_second_time(region: Region) -> None:
    done = region.run("upgrade.yml")
    assert done.status == "successful", done.problem
    primary, *others = region.members
    assert region.log() == [
        "balancer off",
        *(f"mongod-fra-a {one}" for one in (*others, primary)),
        "router",
        "balancer full",
    ]
    assert (len(region.journal().done), region.journal().open, region.journal().owed) == (4, (), ())
    before = region.log()
    again = region.run("upgrade.yml")
    assert (again.status, again.changed) == ("successful", 0)
    assert region.log() == before


def test_what_is_sick_before_is_refused_before_anything_is_changed(region: Region) -> None:
    region.sick((region.members[2], 0))
    done = region.run("upgrade.yml")
    assert done.status == "failed"
    assert f"Nothing was changed; mend first: fra-a: {region.members[2]} is refused" in done.problem
    assert region.log() == []


def test_a_member_lost_on_the_way_stops_it(region: Region) -> None:
    """The second member is upgraded and the third is lost meanwhile: the upgrade does not go on to the primary, and the balancer runs again."""
    region.sick((region.members[2], 2))
    done = region.run("upgrade.yml")
    assert done.status == "failed"
    assert region.log() == ["balancer off", f"mongod-fra-a {region.members[1]}", "balancer full"]
    assert region.journal().owed == ()
    region.sick()
    assert region.run("upgrade.yml").status == "successful"
    assert (len(region.journal().done), region.journal().open) == (4, ())


def test_killed_at_a_step_and_gone_on_with(region: Region) -> None:
    """Ansible and all of its children are killed when the first member is installed, before it was looked at."""

    def enough() -> bool:
        return any(line.startswith("mongod") for line in region.log())

    assert region.run("upgrade.yml", canceled=enough).status == "canceled"
    assert region.log()[-1] != "balancer full"
    assert region.journal().owed == ("balancer",)
    assert region.run("upgrade.yml").status == "successful"
    assert sorted(line for line in region.log() if not line.startswith("balancer")) == sorted(
        ["router", *(f"mongod-fra-a {one}" for one in region.members)]
    )  # none was done twice
    assert region.log()[-1] == "balancer full"
    assert (len(region.journal().done), region.journal().open, region.journal().owed) == (4, (), ())


def test_what_a_cut_left_and_does_not_come_back_is_named(region: Region) -> None:
    (region.folder / "journal").write_text('{"entry": "begun", "step": "mongod-fra-a on fra-2"}\n')
    region.sick((region.members[1], 0))
    done = region.run("upgrade.yml")
    assert done.status == "failed"
    assert f"Nothing was changed; mend first: fra-a: {region.members[1]} is refused" in done.problem
    assert region.log() == []


def test_aborted_after_a_cut(region: Region) -> None:
    assert region.run("upgrade.yml", canceled=lambda: bool(region.log())).status == "canceled"
    assert region.journal().owed == ("balancer",)
    assert region.run("abort.yml").status == "successful"
    assert region.log()[-1] == "balancer full"
    assert region.journal().owed == ()


def test_check_mode_changes_nothing(region: Region) -> None:
    heard: list[Event] = []
    done = play(
        region.desired,
        "upgrade.yml",
        {"heliograph_scope": "mongodb"},
        check=True,
        tell=heard.append,
        canceled=lambda: False,
        project=region.project,
    )
    assert done.status == "failed"  # a host that was never set up: its tool is not there, and check mode brings none
    assert "Run `pulumi up` first" in done.problem or "could describe the cluster" in done.problem
    (region.home / "hostctl").write_text(region.desired.inventory["all"]["vars"]["heliograph_tool"])
    heard.clear()
    done = play(
        region.desired,
        "upgrade.yml",
        {"heliograph_scope": "mongodb"},
        check=True,
        tell=heard.append,
        canceled=lambda: False,
        project=region.project,
    )
    assert done.status == "successful", done.problem
    assert region.log() == []
    assert len([event for event in heard if event.kind == "changed" and event.task.startswith("Install")]) == 4
    assert region.journal() == Journal()
