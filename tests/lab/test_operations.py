"""`heliograph ops` on a region that is under load all the while: an hour. Needs root; skipped where the lab cannot run (`make lab-doctor` says why).

One region of three hosts, 200 messages a second in requests of ten from clients that try again and, as load balancers do, leave a node alone for some seconds after an error.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from controlplane.ops.journal import Journal
from controlplane.ops.journal import read as read_journal
from tests.conftest import exhaustive
from tests.lab import images, operations_parts
from tests.lab.doctor import require_lab
from tests.lab.hosts import Host, Lab
from tests.lab.load import Ledger, read
from tests.lab.tools import prepare
from tests.lab.world import DATA_DISK_MB, World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), exhaustive]

NAMES = ["fra-1", "fra-2", "fra-3"]
RATE, BATCH = 200.0, 10
SKIP = 5.0
ROUTER = 27017
SETTLE = 30.0
"""After a host's death: until sets have new primaries and nodes know them."""
CUT_AT = {"image-mongod", "image-controlplane", "fra-config", "fra-a", "router", "node", "ledger"}
ERRORS, REQUESTS = 0.001, 3
"""Share of attempts that clients may have to repeat; or so many requests, where a test is short."""
PATIENCE = 3_600
"""Seconds that one of these tests may take, where others have a quarter of an hour."""
FINAL = {"delivered", "undelivered", "expired", "failed", "cancelled", "unknown"}

_EVENTS = """
from collections import defaultdict
found = defaultdict(list)
for event in client.heliograph.events.find({"kind": {"$ne": "void"}}, {"_id": 0, "mid": 1, "kind": 1}):
    found[event.get("mid")].append(event["kind"])
print(json.dumps(found))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    require_lab()
    tools = await asyncio.to_thread(prepare)
    made = await asyncio.to_thread(images.build)
    async with Lab(tools, data_disk_mb=DATA_DISK_MB) as lab:
        hosts = await lab.boot(NAMES)
        world = World(lab, made, tmp_path_factory.mktemp("world"))
        await world.stack("fra", hosts, ["a"])
        await world.up("fra")
        yield world
        print("\n[lab] record:", json.dumps(world.record, indent=1))


@pytest.fixture(autouse=True)
def _patience() -> None:
    faulthandler.dump_traceback_later(PATIENCE, exit=True, file=sys.__stderr__)


@pytest.fixture
def fra(world: World) -> list[Host]:
    """The hosts that it has now."""
    return [world.lab.hosts[one["name"]] for one in world.project.region("fra")["hosts"]]


async def lost(world: World, hosts: list[Host], ledger: Ledger) -> tuple[list[str], dict[str, int]]:
    """(accepted messages of which the database knows nothing, last kind → count of the others), once all others are final or a minute has passed."""
    for _ in range(30):
        kinds: dict[str, list[str]] = json.loads(await world.mongo(hosts[0], ROUTER, _EVENTS))
        known = {mid: kinds[mid] for mid in ledger.accepted.values() if mid in kinds}
        ends = Counter(next((kind for kind in reversed(of) if kind in FINAL), "open") for of in known.values())
        if not ends["open"]:
            break
        await asyncio.sleep(2)
    return [mid for mid in ledger.accepted.values() if mid not in known], dict(+ends)


@asynccontextmanager
async def loaded(world: World, hosts: list[Host], name: str, nodes: list[Host] | None = None) -> AsyncIterator[None]:
    """Clients all the while; at the end nothing that was accepted is missing, and hardly an attempt failed. `nodes`: whose nodes they know, if not of all."""
    known = {host.address for host in nodes or hosts}
    async with world.load("fra", name, RATE, 3000, batch=BATCH, skip=SKIP, only=known) as out:
        await asyncio.sleep(2)
        yield
    ledger = read(out)
    missing, ends = await lost(world, hosts, ledger)
    attempts = len(ledger.accepted) + len(ledger.refused)
    figures = {
        "offered": ledger.offered,
        "accepted": len(ledger.accepted),
        "outcomes": ends,
        "errors": ledger.errors(0, 1e12),
        "p50 ms": ledger.ms[len(ledger.ms) // 2],
        "p99 ms": ledger.ms[len(ledger.ms) * 99 // 100],
        "longest without an acceptance, s": round(ledger.outage(min(ledger.ok_at), max(ledger.ok_at)), 1),
    }
    world.note(name, figures)
    assert len(ledger.accepted) == ledger.offered
    assert not missing, f"{len(missing)} of {ledger.offered} accepted messages are gone"
    assert set(ends) <= {"delivered", "unknown"}, ends
    assert len(ledger.refused) <= max(ERRORS * attempts, REQUESTS * BATCH), figures["errors"]


def journal(world: World) -> Journal:
    """Of the newest operation."""
    folders = world.project.operations("fra")
    path = folders[-1] / "journal.jsonl" if folders else None
    return read_journal(path.read_text().splitlines() if path and path.exists() else ())


async def must(world: World, verb: str, *options: str) -> str:
    code, said = await world.project.operate(verb, "fra", *options)
    assert code == 0, said[-6000:]
    return said


def changed(said: str) -> int:
    """Of the line that an operation ends with."""
    found = re.findall(r"^fra: \w+ \w+ done, (\d+) changed$", said, re.MULTILINE)
    assert found, said[-3000:]
    return int(found[-1])


class TestLooking:
    """What changes nothing."""

    async def test_verify(self, world: World) -> None:
        assert changed(await must(world, "verify")) == 0

    async def test_plan_of_what_is_as_declared(self, world: World) -> None:
        assert "fra: 0 steps would change something" in await must(world, "plan")


class TestUpgrade:
    """New images for everything, the operator's machine going out again and again."""

    async def test_cut_at_each_kind_of_step(self, world: World, fra: list[Host]) -> None:
        def edit(region: dict[str, Any]) -> None:
            region["mongodb"]["image"] = world.image(world.images.mongod_next)
            region["control_plane"]["image"] = world.image(world.images.controlplane_next)

        world.project.edit("fra", edit)
        said = await must(world, "plan")
        assert "fra: 0 steps" not in said
        seen: set[str] = set()
        async with loaded(world, fra, "upgrade"):
            while True:
                code, said = await world.project.operate("upgrade", "fra", cut=self._at_a_new_kind(world, seen))
                if code >= 0:
                    break
            world.note("upgrade was cut at", sorted(seen))
            assert code == 0, said[-6000:]
            assert seen == CUT_AT
        assert changed(said) > 0
        assert not journal(world).open
        assert not journal(world).owed
        for host in fra:
            running = await host.run("podman ps --format '{{.Names}} {{.ImageID}}'")
            for unit, image in (("mongod", world.images.mongod_next), ("node", world.images.controlplane_next)):
                identity = await host.run(f"podman image inspect --format '{{{{.Id}}}}' {image.reference}")
                found = [line.split()[1] for line in running.splitlines() if unit in line]
                assert found
                assert all(identity.startswith(one) for one in found), running

    @staticmethod
    def _at_a_new_kind(world: World, seen: set[str]) -> Callable[[], bool]:
        def cut() -> bool:
            for step in journal(world).open:
                kind = re.sub(r"^(mongod-)|(-\d+)$", "", step.partition(" on ")[0])
                if kind in CUT_AT - seen:
                    seen.add(kind)
                    return True
            return False

        return cut

    async def test_a_second_run_changes_nothing(self, world: World) -> None:
        assert changed(await must(world, "upgrade")) == 0

    async def test_up_finds_it_done(self, world: World) -> None:
        """The same specifications: hosts are not touched again, no unit is restarted."""
        since = {name: await started(host) for name, host in world.lab.hosts.items()}
        done = await world.up("fra")
        assert set(done.changed) <= {"update"}
        for name, host in world.lab.hosts.items():
            assert await started(host) == since[name], name
        assert not (await world.up("fra")).changed

    async def test_site_changes_nothing(self, world: World) -> None:
        assert changed(await must(world, "site")) == 0


async def started(host: Host) -> set[str]:
    """Our units on a host, each with the time of its last start."""
    shown = await host.run("systemctl show --property=Id,ActiveEnterTimestampMonotonic 'heliograph-*'")
    return {" ".join(one.split()) for one in shown.split("\n\n")}


class TestRefusals:
    """What would lose a majority, or the last node, is not begun."""

    async def test_a_member_is_away(self, world: World, fra: list[Host]) -> None:
        world.project.edit("fra", lambda region: region["mongodb"].update(cache_gb=0.3))
        await fra[2].run("systemctl stop heliograph-mongod-fra-a")
        try:
            code, said = await world.project.operate("upgrade", "fra", "--scope", "mongodb")
        finally:
            await fra[2].run("systemctl start heliograph-mongod-fra-a")
        assert code == 1
        assert "Nothing was changed; mend first: fra-a: 10.81.1.13:27020 is" in said
        await must(world, "abort")
        world.project.edit("fra", lambda region: region["mongodb"].update(cache_gb=0.25))
        assert "0 steps would change" in await must(world, "plan")

    async def test_the_last_node(self, world: World) -> None:
        await must(world, "drain", "--host", "fra-1")
        await must(world, "drain", "--host", "fra-2")
        code, said = await world.project.operate("drain", "fra", "--host", "fra-3")
        assert code == 1
        assert "no node takes messages" in said
        await must(world, "abort")
        await must(world, "undrain", "--host", "fra-1")
        await must(world, "undrain", "--host", "fra-2")


class TestDrain:
    """A node that is drained hands over what it has."""

    async def test_under_load(self, world: World, fra: list[Host]) -> None:
        async with loaded(world, fra, "drain"):
            await must(world, "drain", "--host", "fra-2")
            state = await fra[1].run("systemctl is-active heliograph-node-1", check=False)
            assert state.strip() == "inactive"
            await must(world, "undrain", "--host", "fra-2")
            assert (await fra[1].run("systemctl is-active heliograph-node-1")).strip() == "active"


class TestRotations:
    """Certificates, the authority and the keys, one after another; what is old is dead at the end."""

    async def test_certificates(self, world: World, fra: list[Host]) -> None:
        await operations_parts.rotate_certificates(world, "fra", fra, partial(loaded, world, fra))

    async def test_the_authority(self, world: World, fra: list[Host]) -> None:
        await operations_parts.rotate_authority(world, "fra", fra, partial(loaded, world, fra))

    async def test_keys(self, world: World, fra: list[Host]) -> None:
        await operations_parts.rotate_keys(world, "fra", fra, partial(loaded, world, fra))


class TestHosts:
    """A machine dies and another one takes its place, one that lives is to go; then a shard more on those that are there."""

    async def test_a_dead_host_is_replaced(self, world: World, fra: list[Host]) -> None:
        [new] = await world.lab.boot(["fra-4"])
        *rest, gone = fra
        await gone.power_off()
        await asyncio.sleep(SETTLE)  # what a death itself costs is measured in test_region
        await operations_parts.replace_host(
            world, "fra", fra, gone, new, partial(loaded, world, [*rest, new], nodes=rest)
        )

    async def test_a_living_host_is_replaced(self, world: World, fra: list[Host]) -> None:
        [new] = await world.lab.boot(["fra-5"])
        await operations_parts.replace_host(
            world, "fra", fra, fra[1], new, partial(loaded, world, [*fra, new], nodes=fra)
        )

    async def test_a_shard_more(self, world: World, fra: list[Host]) -> None:
        await operations_parts.add_shard(world, "fra", fra, "b", partial(loaded, world, fra))


class TestBackup:
    """The region is destroyed with its data, and comes back from the archive."""

    async def test_destroyed_and_restored(self, world: World, fra: list[Host]) -> None:
        async with world.load("fra", "backed-up", RATE, 3000, batch=BATCH, skip=SKIP) as out:
            await must(world, "backup", "--name", "first")
        ledger = read(out)
        await must(world, "backup", "--name", "second")
        await must(world, "drill", "--backup", "second")
        world.project.edit("fra", lambda region: region.update(purge=True))
        await world.up("fra")
        await world.destroy("fra")
        for host in fra:
            assert not (await host.run("ls /var/lib/heliograph/data 2>/dev/null || true")).strip()
        world.project.edit("fra", lambda region: region.update(purge=False))
        await world.up("fra")
        await must(world, "restore", "--backup", "second", "--confirm", "fra", "--discard")
        missing, ends = await lost(world, fra, ledger)
        world.note("restored", {"accepted before": len(ledger.accepted), "outcomes": ends})
        assert not missing
        assert set(ends) <= {"delivered", "unknown"}
        code, report = await world.project.verify("fra")
        assert (code, report["problems"]) == (0, [])
