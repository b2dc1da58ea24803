"""What backups run on a host, and which of them stay."""

from __future__ import annotations

import json
import runpy
from typing import Any

from controlplane.ops.runner import PLAYBOOKS
from infra.backups import FOLDER, KEEP_SECONDS, backups
from infra.plan import plan
from tests.unit.infra.sample import sample_peer, sample_region

FILTERS = runpy.run_path(str(PLAYBOOKS / "filter_plugins" / "heliograph.py"))["FilterModule"]().filters()


def test_they_run_as_a_node_with_secrets_as_files_only() -> None:
    region = sample_region(ledger={"domain": "sms.example.com", "peers": [sample_peer()]}, backups={"keep": 5})
    topology = plan(region)
    found = backups(region, topology)
    assert (found["folder"], found["keep"], found["owner"]) == (FOLDER, 5, "heliograph")
    assert list(found["runs"]) == ["fra-1", "fra-2", "fra-3"]
    run = found["runs"]["fra-2"]
    assert run["user"] == "heliograph"
    assert run["environment"]["HELIOGRAPH_SECRET_KEY_FILE"] == "/etc/heliograph/node/secret-key"
    assert run["environment"]["HELIOGRAPH_MONGODB_URI"].startswith("mongodb://10.81.1.12:27017,")
    [peer] = json.loads(run["environment"]["HELIOGRAPH_LEDGER_PEERS"])
    assert peer == {
        "dc": "iad",
        **{name: sample_peer()[name] for name in ("urls", "log_keys", "witness_key", "mirror_key")},
    }
    assert f"{FOLDER}:{FOLDER}" in run["volumes"]
    assert all(volume.endswith(":ro") for volume in run["volumes"] if not volume.startswith(FOLDER))
    assert run["argv"] == ["backup"]
    assert FILTERS["heliograph_backup"](run, "create", "--to", "/x")["argv"] == ["backup", "create", "--to", "/x"]
    assert run["argv"] == ["backup"]


def test_old_states_are_kept_by_every_shard_and_no_longer_than_for_the_backup() -> None:
    region = sample_region()
    topology = plan(region)
    snapshots = backups(region, topology)["snapshots"]
    wanted = [member.endpoint for shard in topology.shards for member in shard.members]
    assert [json.loads(snapshots[name]["stdin"]) for name in ("on", "off")] == [
        {"members": wanted, "seconds": KEEP_SECONDS},
        {"members": wanted, "seconds": 300},
    ]
    assert snapshots["on"]["argv"][:2] == ["cluster", "snapshots"]


def directory(name: str, mtime: float) -> dict[str, Any]:
    return {"path": f"{FOLDER}/{name}", "mtime": mtime}


def test_the_newest_stay() -> None:
    found = [directory("c", 3), directory("a", 9), directory("d.partial", 99), directory("b", 5)]
    old = FILTERS["heliograph_old_backups"]
    assert old(found, 2) == [f"{FOLDER}/d.partial", f"{FOLDER}/c"]
    assert old(found, 3) == [f"{FOLDER}/d.partial"]
    assert old([], 2) == []


def test_the_newest_that_is_whole_is_drilled() -> None:
    found = [directory(f"{name}/manifest.json", at) for at, name in enumerate(("b", "a", "d.incoming", "c.partial"))]
    assert FILTERS["heliograph_newest_backup"](found) == "a"
    assert FILTERS["heliograph_newest_backup"](found[2:]) == ""


def test_a_ledger_that_leads_and_signs() -> None:
    leads = FILTERS["heliograph_leads"]
    checks = {"role": "leads", "sequencing": "ok", "preferences": "iad is silent"}
    assert leads({"status": 200, "json": {"checks": checks}})
    assert not leads({"status": 503, "json": {"checks": checks | {"sequencing": "iad has more"}}})
    assert not leads({"status": 200, "json": {"checks": checks | {"role": "waits"}}})
    assert not leads({"status": -1, "msg": "connection refused"})


def test_why_a_drill_failed() -> None:
    problems = FILTERS["heliograph_drill_problems"]
    assert problems('{"drill": "failed", "problems": ["one", "two"]}', "") == "one; two"
    assert problems("", "Error: /b is no backup\n") == "Error: /b is no backup"
    assert problems("[]", "x") == "x"
