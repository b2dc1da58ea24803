"""Backup, restore and drill as playbooks: a real Ansible and the real `heliograph backup` over a real mongod; hostctl and systemctl are doubles that keep what they are told."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from controlplane.ops.journal import read
from controlplane.ops.runner import Done, play
from controlplane.settings import Settings
from controlplane.store.client import Database
from tests.integration.ops.test_playbooks import Region
from tests.unit.infra.pki import authority_pair

OURS = """
import os, subprocess, time
if verb == "facts":
    print(json.dumps({"installed": {}}))
    sys.exit()
if verb == "run" and spec["argv"][0] == "verify":
    print(json.dumps({"url": "https://x", "status": "delivered"}))
    sys.exit()
if verb == "run" and spec["argv"][1] == "snapshots":
    seconds = json.loads(spec["stdin"])["seconds"]
    log(f"snapshots {seconds}")
    print(json.dumps({"change": "snapshots"}))
    sys.exit()
if verb == "run" and spec["argv"][0] == "backup":
    given = json.loads((home / "settings").read_text())
    log(" ".join(spec["argv"][1:2]))
    done = subprocess.run([@PYTHON@, "-m", "controlplane", *spec["argv"]], env={**os.environ, **spec["environment"], **given}, capture_output=True, text=True)
    if (home / "slow").exists():  # long enough to be killed before it has answered
        time.sleep(60)
    if (home / "fails").exists():
        sys.exit("the host has lost its power")
    sys.exit(done.stderr) if done.returncode else print(done.stdout)
    sys.exit()
"""
SYSTEMCTL = """#!@PYTHON@
import pathlib, sys
home = pathlib.Path("@HOME@")
verb, *rest = [one for one in sys.argv[1:] if not one.startswith("-")]
unit = rest[0] if rest else ""
running = home / f"running-{unit}"
if verb in ("start", "stop"):
    running.touch() if verb == "start" else running.unlink(missing_ok=True)
    with (home / "log").open("a") as file:
        file.write(f"{verb} {unit}\\n")
elif verb == "is-active":
    print("active" if running.exists() else "inactive")
    sys.exit(0 if running.exists() else 3)
elif verb == "show":
    print(f"Id={unit}\\nLoadState=loaded\\nActiveState={'active' if running.exists() else 'inactive'}")
"""


READY = {"ready": True, "checks": {"role": "leads", "sequencing": "ok"}}


class Health(BaseHTTPRequestHandler):
    """Nodes and ledgers, which are as ready as `said` says."""

    said: dict[str, Any]

    def do_GET(self) -> None:
        body = json.dumps(self.said).encode()
        self.send_response(200 if self.said["ready"] else 503)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Whole(Region):
    """The region over one mongod."""

    def prepare(self, settings: Settings, url: str) -> None:
        self.backups = self.folder / "data" / "backups" / "fra"
        self.operation = self.folder / "data" / "operations" / "fra" / "op1"
        self.operation.mkdir(parents=True)
        certificate, key = authority_pair()
        (self.home / "ca.pem").write_text(certificate)
        (self.home / "ledger.pem").write_text(key + certificate)
        secret = self.home / "secret"
        secret.write_text(settings.secret_key.get_secret_value())
        self.host = self.home / "backups"
        given = {
            "HELIOGRAPH_MONGODB_URI": settings.mongodb_uri.get_secret_value(),
            "HELIOGRAPH_DATABASE": settings.database,
            "HELIOGRAPH_SECRET_KEY_FILE": str(secret),
        }
        (self.home / "settings").write_text(json.dumps(given))
        variables = self.desired.inventory["all"]["vars"]
        tool = variables["heliograph_tool"].replace('if verb == "plan":', f'{OURS}\nif verb == "plan":', 1)
        variables["heliograph_tool"] = tool.replace("@PYTHON@", repr(sys.executable))
        backups = variables["heliograph_backups"] | {
            "folder": str(self.host),
            "owner": pwd.getpwuid(os.getuid()).pw_name,
        }
        backups["ledgers"] = [one | {"url": url} for one in backups["ledgers"]]
        variables["heliograph_backups"] = backups
        variables["heliograph_nodes_all"] = [one | {"url": url} for one in variables["heliograph_nodes_all"]]
        object.__setattr__(self.desired, "authority", certificate)
        object.__setattr__(self.desired, "secret_key", settings.secret_key.get_secret_value())

    def operate(
        self,
        playbook: str,
        *,
        opens: bool = False,
        canceled: Any = lambda: False,
        check: bool = False,
        **variables: Any,
    ) -> Done:
        self.events = []
        path = self.operation / "journal.jsonl"
        written = read(path.read_text().splitlines() if path.exists() else ())
        values = {
            "heliograph_journal": str(path),
            "heliograph_owed": list(written.owed),
            "heliograph_open": list(written.open),
            "restore_seconds": 6,
            "restore_tls": str(self.home),
        }
        return play(
            self.desired,
            playbook,
            values | variables,
            check=check,
            opens=opens,
            tell=self.events.append,
            canceled=canceled,
            project=self.project,
        )

    def owed(self) -> tuple[str, ...]:
        return read((self.operation / "journal.jsonl").read_text().splitlines()).owed


@pytest.fixture
def region(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Whole]:
    found = Whole(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    text = SYSTEMCTL.replace("@PYTHON@", sys.executable).replace("@HOME@", str(found.home))
    (programs / "systemctl").write_text(text)
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    Health.said = READY
    server = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found.prepare(settings.model_copy(update={"datacenter": "fra"}), f"http://127.0.0.1:{server.server_port}")
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
async def filled(database: Database) -> Database:
    await database["events"].insert_many(
        [{"_id": f"m{n}:0", "mid": f"m{n}", "k": 0, "kind": "accepted", "dc": "fra"} for n in range(300)]
    )
    return database


async def test_from_a_backup_to_a_restored_region(region: Whole, filled: Database) -> None:
    """Made on a host, brought here, put back into the emptied database from here, everything started in order; a second run of each changes nothing."""
    canaries = region.operation / "canaries.jsonl"
    canaries.write_text('{"id": "m1", "retried": 0}\n')
    done = await asyncio.to_thread(
        region.operate,
        "backup.yml",
        heliograph_canaries="",
    )
    assert done.status == "successful", done.problem
    assert region.log() == ["balancer off", "snapshots 14400", "create", "snapshots 300", "balancer full"]
    assert region.owed() == ()
    here = region.backups / "op1"
    assert {one.name for one in here.iterdir()} == {one.name for one in (region.host / "op1").iterdir()}
    assert json.loads((here / "manifest.json").read_text())["accepted"][0]["messages"] == 300
    assert {stat.S_IMODE(one.stat().st_mode) for one in here.iterdir()} == {0o600}
    assert stat.S_IMODE(here.stat().st_mode) == 0o700
    again = await asyncio.to_thread(region.operate, "backup.yml")
    assert again.status == "successful", again.problem
    assert "create" not in region.log()[5:]

    shutil.rmtree(region.host)
    before = {one["_id"]: one async for one in filled["events"].find()}
    await filled["events"].insert_one({"_id": "of afterwards", "mid": "x"})
    log = len(region.log())

    async def restore(**variables: Any) -> Done:
        given = {"heliograph_backup": "op1", "heliograph_confirm": "fra", **variables}
        return await asyncio.to_thread(region.operate, "restore.yml", **given)

    refused = await restore(heliograph_confirm="iad")
    assert "Confirm it by the region's name, not iad" in refused.problem
    (region.home / "running-heliograph-node-1.service").touch()
    refused = await restore()
    assert "fra-1-1" in refused.problem
    assert "run. Stop them, or give --discard" in refused.problem
    assert region.log()[log:] == []

    Health.said = {"ready": False, "checks": {"role": "leads", "sequencing": "iad has 7 entries of the log"}}
    refused = await restore(heliograph_discard="true")
    assert "The ledger may not sign yet, and no node was started" in refused.problem
    assert "iad has 7 entries" in refused.problem
    put = [line for line in region.log()[log:] if not line.startswith("stop ")]
    assert put == ["restore", "clear", "restore", "start heliograph-ledger.service"]
    log = len(region.log())
    Health.said = READY
    done = await restore(heliograph_discard="true")
    assert done.status == "successful", done.problem
    order = region.log()[log:]
    put = [line for line in order if not line.startswith("stop ")]
    assert put[:2] == ["restore", "start heliograph-ledger.service"]  # what is there already is not emptied again
    assert put[2:] == ["start heliograph-node-1.service"]  # of all three, which share this machine
    assert {one["_id"]: one async for one in filled["events"].find()} == before


async def test_a_failure_leaves_everything_as_it_was(region: Whole, filled: Database) -> None:
    (region.home / "fails").touch()
    done = await asyncio.to_thread(region.operate, "backup.yml")
    assert done.status == "failed"
    assert "No backup was made: " in done.problem
    assert region.log() == ["balancer off", "snapshots 14400", "create", "snapshots 300", "balancer full"]
    assert region.owed() == ()


async def test_killed_gone_on_with_and_aborted(region: Whole, filled: Database) -> None:
    """Ansible and its children are killed while the archive is made: what it owes stands in the journal, the next run makes it good, and so does abort."""

    def enough() -> bool:
        return "create" in region.log()

    slow = region.home / "slow"
    slow.touch()
    assert (await asyncio.to_thread(region.operate, "backup.yml", canceled=enough)).status == "canceled"
    slow.unlink()
    assert set(region.owed()) == {"balancer", "snapshots"}
    assert (await asyncio.to_thread(region.operate, "abort.yml")).status == "successful"
    assert region.owed() == ()
    assert {"snapshots 300", "balancer full"} <= set(region.log())
    done = await asyncio.to_thread(region.operate, "backup.yml")
    assert done.status == "successful", done.problem
    assert region.owed() == ()
    assert (region.backups / "op1" / "manifest.json").exists()


async def test_check_mode_changes_nothing(region: Whole, filled: Database) -> None:
    (region.home / "hostctl").write_text(region.desired.inventory["all"]["vars"]["heliograph_tool"])
    done = await asyncio.to_thread(region.operate, "backup.yml", check=True)
    assert done.status == "successful", done.problem
    assert not region.host.exists()
    assert not region.backups.exists()
    assert region.log() == []


async def test_the_drill(region: Whole, filled: Database) -> None:
    """On the controller, with the key that only it is given; what is missing is told."""
    canaries = region.operation / "canaries.jsonl"
    canaries.write_text('{"id": "m1", "retried": 0}\n')
    assert (await asyncio.to_thread(region.operate, "drill.yml", opens=True)).status == "failed"
    done = await asyncio.to_thread(region.operate, "backup.yml")
    assert done.status == "successful", done.problem
    assert not (region.operation / "canaries-before.jsonl").exists()
    (region.operation / "canaries-before.jsonl").write_text('{"id": "m-not-there", "retried": 0}\n')
    done = await asyncio.to_thread(region.operate, "drill.yml", opens=True)
    assert done.status == "failed"
    assert "300 messages have no status: m0 (an event cannot be read" in done.problem  # these are no real events
    assert "1 of 1 test messages are missing: m-not-there" in done.problem
    done = await asyncio.to_thread(region.operate, "drill.yml")
    assert "HELIOGRAPH_SECRET_KEY" in done.problem
