"""Changes of several phases: the real `infra.changes` over a stack of the real pulumi, taken by a real Ansible, cut and gone on with.

Two things are doubles: the hosts' tool, and of pulumi `up` and `preview` alone, which would need the hosts (`tests/lab` has both). The double of `up` keeps what
it was asked to bring about, and says that nothing changed when it stands already.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml

from controlplane.errors import ConfigError
from controlplane.ops import phases
from controlplane.ops.desired import Desired, desired
from controlplane.ops.journal import Journal, read
from controlplane.ops.phases import ask, perform
from controlplane.ops.runner import Done, Event, play
from infra.certificates import new_authority
from tests.conftest import exhaustive
from tests.integration.ops.test_playbooks import TOOL, Region
from tests.lab.project import Project
from tests.lab.tools import ToolsError, prepare
from tests.unit.infra.sample import HOST_KEYS, LEDGER_KEY, sample_peer, sample_value

PULUMI = """#!{python}
import json, os, pathlib, sys, yaml
home, real, words = pathlib.Path("{home}"), "{real}", sys.argv[1:]
if words[0] not in ("up", "preview"):
    os.execv(real, [real, *words])
stack = words[words.index("--stack") + 1]
named = words[words.index("--config-file") + 1] if "--config-file" in words else "infra/stacks/Pulumi." + stack + ".yaml"
ours = ("change", "changed", "told")  # of which Pulumi's program reads nothing
config = json.dumps({{name: value for name, value in yaml.safe_load(pathlib.Path(named).read_text())["config"].items() if name.partition(":")[2] not in ours}})
stands = home / ("stands-" + stack)
same = stands.exists() and stands.read_text() == config
with (home / "log").open("a") as file:
    file.write(words[0] + " " + stack + ("" if same else " changes") + "\\n")
if (home / "refuse").exists():
    sys.exit("error: nothing was changed; mend first:\\n" + (home / "refuse").read_text())
if words[0] == "up":
    stands.write_text(config)
print("Resources:\\n    " + ("68 unchanged" if same else "~ 12 updated\\n    56 unchanged"))
"""
CLUSTER = """"cluster": {"shards": [{"name": one["name"]} for one in json.loads(spec["stdin"])["cluster"]["shards"]],
    "collections": [{"collection": "heliograph.events", "chunks": {one["name"]: 2 for one in json.loads(spec["stdin"])["cluster"]["shards"]}}], "balancer\""""


class Stack:
    """A stack of its own, with a region that nobody has."""

    def __init__(self, folder: Path, project: Project, hosts: Region) -> None:
        self.folder, self.project, self.hosts = folder, project, hosts
        self.events: list[Event] = []
        self.more: dict[str, str] = {}
        self.nodeless = False
        self.turns: list[Desired] = []
        self.home = folder / "pulumi"
        self.home.mkdir()

    async def make(self, name: str, **region: Any) -> None:
        await self.project.must("pulumi", "stack", "init", name)
        certificate, key = new_authority(name, date(2026, 1, 1))
        secrets = {
            "authorityKey": key,
            "secretKey": "s" * 32,
            "adminKey": f"hg_live_{'k' * 38}",
            "sshKey": asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode(),
            "ledgerKey": LEDGER_KEY,
        }
        await self.project.must("pulumi", "config", "set", "--stack", name, "authorityCertificate", stdin=certificate)
        for secret, text in secrets.items():
            await self.project.must("pulumi", "config", "set", "--stack", name, "--secret", secret, stdin=text)
        path = self.project.stack_file(name)
        document = yaml.safe_load(path.read_text())
        document["config"]["heliograph:region"] = sample_value(**region) | {"name": name, "offline": True}
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        await self.stand(name)

    async def stand(self, name: str) -> None:
        """As if an `up` had brought there what is declared."""
        await self.project.must(self.home / "bin" / "pulumi", "up", "--stack", name)
        (self.home / "log").unlink()

    def config(self, name: str = "fra") -> dict[str, Any]:
        return yaml.safe_load(self.project.stack_file(name).read_text())["config"]

    def known(self, name: str) -> Desired:
        """What is declared, its hosts being this machine with the double of their tool."""
        found = desired(name)
        every = found.inventory["all"]
        for host in every["children"]["region"]["hosts"]:
            every["hosts"][host] |= {
                "ansible_connection": "local",
                "ansible_become": False,
                "ansible_python_interpreter": sys.executable,
            }
        tool = TOOL.replace("@HOME@", str(self.hosts.home)).replace('"cluster": {"balancer"', CLUSTER)
        every["vars"] |= {"heliograph_tool": tool}
        if self.nodeless:
            every["vars"]["heliograph_nodes_all"] = []
        return replace(found, inventory={"all": every})

    def run(
        self, playbook: str, kind: str, named: str = "one", canceled: Callable[[], bool] = lambda: False, **given: str
    ) -> Done:
        self.events, self.turns = [], []
        variables = {f"heliograph_{name}": value for name, value in given.items()}
        variables |= {"heliograph_journal": str(self.folder / "journal"), "heliograph_open": list(self.journal().open)}
        return perform(
            "fra",
            playbook,
            kind,
            named,
            given,
            variables | {"heliograph_wait_seconds": 6} | self.more,
            tell=self.events.append,
            canceled=canceled,
            turned=self.turns.append,
        )

    def set_up(self) -> None:
        """The hosts' tool is there, as after an `up`."""
        (self.hosts.home / "hostctl").write_text(self.known("fra").inventory["all"]["vars"]["heliograph_tool"])

    def journal(self) -> Journal:
        path = self.folder / "journal"
        return read(path.read_text().splitlines() if path.exists() else ())

    def ups(self) -> list[str]:
        path = self.home / "log"
        return [line for line in path.read_text().splitlines() if line.startswith("up")] if path.exists() else []


@pytest.fixture
async def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    try:
        tools = prepare()
    except ToolsError as error:
        pytest.skip(str(error))
    project = Project(tmp_path / "operator", tools)
    (tmp_path / "hosts").mkdir()
    made = Stack(tmp_path, project, Region(tmp_path / "hosts"))
    path = made.home / "bin" / "pulumi"
    path.parent.mkdir()
    path.write_text(PULUMI.format(python=sys.executable, home=made.home, real=shutil.which("pulumi", path=tools.bin)))
    path.chmod(0o755)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{path.parent}:{project.environment['PATH']}")
    monkeypatch.chdir(project.project)
    monkeypatch.setattr(phases, "desired", made.known)
    monkeypatch.setattr(phases, "play", lambda *given, **more: play(*given, **more, project=made.hosts.project))
    await made.make("fra")
    return made


async def test_another_authority_cut_in_every_up_and_gone_on_with(stack: Stack) -> None:
    """Cut once while each phase's `up` runs or has just run; each time the next run goes on from there, with the same secrets."""
    old = stack.config()["heliograph:authorityCertificate"]
    ask("told", "fra", "authority", peer="clients", variables={})
    cuts = 0
    for number in range(1, 4):
        done = stack.run(
            "rotate-certificates.yml", "authority", canceled=lambda number=number: len(stack.ups()) >= number
        )
        cuts += done.status == "canceled"
    assert cuts == 3
    done = stack.run("rotate-certificates.yml", "authority")
    assert done.status == "successful", done.problem
    config = stack.config()
    assert config["heliograph:authorityCertificate"] != old
    assert not {"heliograph:trustedAuthorities", "heliograph:nextAuthorityKey", "heliograph:change"} & config.keys()
    assert sum(line.endswith("changes") for line in stack.ups()) == 3
    assert (stack.journal().open, set(stack.journal().done)) == (
        (),
        {"phase trust", "phase tell", "phase sign", "phase only"},
    )
    document = json.loads(await stack.project.must("pulumi", "config", "--stack", "fra", "--show-secrets", "--json"))
    assert "BEGIN PRIVATE KEY" in document["heliograph:authorityKey"]["value"]
    ups = stack.ups()
    again = stack.run("rotate-certificates.yml", "authority", named="two")
    assert (again.status, again.changed) == ("successful", 0)
    assert stack.ups() == ups


@exhaustive
async def test_messages_are_sent_with_what_is_right_at_each_phase(stack: Stack) -> None:
    done = stack.run("rotate-keys.yml", "api")
    assert done.status == "successful", done.problem
    first, second, last = [turn.admin_key for turn in stack.turns]
    assert first == f"hg_live_{'k' * 38}"
    assert second == last != first
    said = json.loads(await stack.project.must("pulumi", "config", "--stack", "fra", "--show-secrets", "--json"))
    assert said["heliograph:revokedAdminKey"]["value"] == first
    written = (stack.folder / "journal").read_text() + "".join(event.message + event.task for event in stack.events)
    assert second not in written


async def test_what_is_sick_or_refused_changes_nothing(stack: Stack) -> None:
    before = stack.project.stack_file("fra").read_text()
    stack.hosts.sick((stack.hosts.members[2], 0))
    done = stack.run("rotate-certificates.yml", "certificates")
    assert done.status == "failed"
    assert "Nothing was changed; mend first" in done.problem
    stack.hosts.sick()
    (stack.home / "refuse").write_text("fra-1: its clock is 9 s off")
    done = stack.run("add-shard.yml", "add-shard", shard="c")
    assert "its clock is 9 s off" in done.problem
    assert stack.project.stack_file("fra").read_text() == before
    assert not list(stack.project.stack_file("fra").parent.glob(".*Pulumi*"))
    (stack.home / "refuse").unlink()
    (stack.home / "stands-fra").write_text("something else")
    done = stack.run("rotate-certificates.yml", "certificates")
    assert "what is declared for fra is not what stands" in done.problem
    assert stack.project.stack_file("fra").read_text() == before


@exhaustive
async def test_a_shard_more(stack: Stack) -> None:
    done = stack.run("add-shard.yml", "add-shard", shard="c")
    assert done.status == "successful", done.problem
    assert [shard["name"] for shard in stack.config()["heliograph:region"]["mongodb"]["shards"]] == ["a", "b", "c"]
    again = stack.run("add-shard.yml", "add-shard", named="two", shard="c")
    assert (again.status, again.changed, len(stack.ups())) == ("successful", 0, 1)


async def test_a_dead_host_is_replaced(stack: Stack) -> None:
    """Nobody is at its address; one of its members is known to be away, and a second one elsewhere is too much."""
    given = {"host": "fra-2", "by": "fra-4=10.81.1.14", "host_key": HOST_KEYS[3]}
    dead = next(member for member in stack.hosts.members if "10.81.1.12" in member)
    other = next(member for member in stack.hosts.members if "10.81.1.13" in member)
    stack.hosts.sick((dead, 0), (other, 0))
    stack.set_up()
    done = stack.run("replace-host.yml", "replace-host", **given)
    assert done.status == "failed"
    assert f"Nothing was changed; mend first: fra-a: {other} is refused" in done.problem
    stack.hosts.sick((dead, 0))
    done = stack.run("replace-host.yml", "replace-host", **given)
    assert done.status == "successful", done.problem
    region = stack.config()["heliograph:region"]
    assert [host["name"] for host in region["hosts"]] == ["fra-1", "fra-4", "fra-3"]
    assert region["mongodb"]["config_hosts"] == ["fra-1", "fra-4", "fra-3"]
    again = stack.run("replace-host.yml", "replace-host", named="two", **given)
    assert (again.status, again.changed) == ("successful", 0)


@exhaustive
async def test_peers_are_told_here_and_elsewhere(stack: Stack) -> None:
    """The other stack of this folder is given both authorities, and its `up`; of one elsewhere somebody says that it was."""
    await stack.make("iad")
    await stack.project.must("python", "-m", "infra.peer", "iad", "--into", "fra")
    document = yaml.safe_load(stack.project.stack_file("fra").read_text())
    document["config"]["heliograph:region"]["ledger"]["peers"].append(sample_peer("ord"))
    stack.project.stack_file("fra").write_text(yaml.safe_dump(document, sort_keys=False))
    await stack.stand("fra")
    done = stack.run("rotate-certificates.yml", "authority")
    assert done.status == "failed"
    assert "ord is no stack of this folder: give its operator what" in done.problem
    (entry,) = stack.config("iad")["heliograph:region"]["ledger"]["peers"]
    assert (entry["name"], entry["authority"].count("BEGIN CERTIFICATE")) == ("fra", 2)
    assert "when all of them trust both, go on with --told clients" in done.problem
    ask("told", "fra", "authority", peer="ord", variables={})
    ask("told", "fra", "authority", peer="clients", variables={})
    done = stack.run("rotate-certificates.yml", "authority")
    assert "go on with --told ord" in done.problem  # for the second time: that the old authority is gone
    assert "clients" not in done.problem
    ask("told", "fra", "authority", peer="ord", variables={})
    done = stack.run("rotate-certificates.yml", "authority")
    assert done.status == "successful", done.problem
    (entry,) = stack.config("iad")["heliograph:region"]["ledger"]["peers"]
    assert entry["authority"].strip() == stack.config()["heliograph:authorityCertificate"].strip()
    assert [line.split()[1] for line in stack.ups()] == ["fra", "iad", "fra", "fra", "iad"]


class Door(asyncssh.SSHServer):
    """Lets in whoever stands in a file, as it is at that moment."""

    keys: Path

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key.export_public_key().decode().split()[1] in self.keys.read_text()


@pytest.fixture
async def door(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """fra is one host, this machine: an asyncssh server is its sshd. The file with who may come in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address besides 127.0.0.1")
        address = probe.getsockname()[0]
    keys, host_key = stack.folder / "authorized_keys", asyncssh.generate_private_key("ssh-ed25519")
    ours = asyncssh.import_private_key(f"{await stack.project.secret('fra', 'sshKey')}\n").export_public_key().decode()
    keys.write_text(f"{HOST_KEYS[5]} somebody else\n{' '.join(ours.split()[:2])} operator\n")
    monkeypatch.setattr(Door, "keys", keys, raising=False)
    server = await asyncssh.create_server(
        Door, address, 0, server_host_keys=[host_key], process_factory=lambda process: process.exit(0)
    )
    path = stack.project.stack_file("fra")
    document = yaml.safe_load(path.read_text())
    value = sample_value(1, safety="none", mongodb={"members": 1, "shards": [{"name": "a"}]})
    public = " ".join(host_key.export_public_key().decode().split()[:2])
    value["hosts"][0] |= {"address": address, "host_key": public}
    document["config"]["heliograph:region"] = value | {"offline": True, "ssh": {"port": server.get_port()}}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    await stack.stand("fra")
    yield keys
    server.close()
    await server.wait_closed()


@exhaustive
async def test_the_operators_key(stack: Stack, door: Path) -> None:
    """The new key is tried before it is used, and the old one goes last."""
    old = await stack.project.secret("fra", "sshKey")
    stack.more = {"change_authorized_keys": str(door)}
    done = await asyncio.to_thread(stack.run, "rotate-keys.yml", "ssh")
    assert done.status == "successful", done.problem
    new = await stack.project.secret("fra", "sshKey")
    assert new != old
    body = asyncssh.import_private_key(f"{new}\n").export_public_key().decode().split()[1]
    assert door.read_text().splitlines() == [
        f"{HOST_KEYS[5]} somebody else",
        f"ssh-ed25519 {body} heliograph fra",
    ]
    assert not [name for name in stack.config() if "Ssh" in name or name == "heliograph:change"]
    again = await asyncio.to_thread(stack.run, "rotate-keys.yml", "ssh", "two")
    assert (again.status, again.changed) == ("successful", 0)


async def test_a_host_that_answers_leaves_after_the_new_one_came(stack: Stack, door: Path) -> None:
    """Its nodes are none here: draining them has its own tests."""
    assert door.exists()
    stack.nodeless = True
    stack.set_up()
    given = {"host": "fra-1", "by": "fra-4=10.81.1.14", "host_key": HOST_KEYS[3]}
    same = given | {"by": "fra-1=10.81.1.14"}
    done = await asyncio.to_thread(stack.run, "replace-host.yml", "replace-host", **same)
    assert "still answers" in done.problem
    done = await asyncio.to_thread(stack.run, "replace-host.yml", "replace-host", **given)
    assert done.status == "successful", done.problem
    assert stack.journal().done == ("phase join", "phase leave")
    assert [line.endswith("changes") for line in stack.ups()] == [True, True]
    region = stack.config()["heliograph:region"]
    assert [host["name"] for host in region["hosts"]] == ["fra-4"]
    assert region["mongodb"]["shards"] == [{"name": "a", "hosts": ["fra-4"]}]


@exhaustive
async def test_told_before_and_not_done(stack: Stack) -> None:
    before = stack.project.stack_file("fra").read_text()
    found = ask("plan", "fra", "authority", variables={})
    assert [line.split(":")[0] for line in found["phases"]] == ["trust", "tell", "sign", "only"]
    assert "12 updated" in found["preview"]
    with pytest.raises(ConfigError, match="secretKey stays as it is"):
        ask("plan", "fra", "secret", variables={})
    done = play(
        stack.known("fra"),
        "rotate-certificates.yml",
        {
            "heliograph_change": {"stack": "fra", "kind": "authority", "by": "x", "variables": "{}"},
            "heliograph_phase": ask("next", "fra", "authority", variables={}),
            "heliograph_project": os.getcwd(),
        },
        check=True,
        tell=stack.events.append,
        canceled=lambda: False,
        project=stack.hosts.project,
    )
    assert done.status == "failed"  # a host that was never set up: check mode brings no tool
    assert stack.project.stack_file("fra").read_text() == before
    assert stack.ups() == []
