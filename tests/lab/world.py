"""Two datacenters in the lab: hosts, stacks, and what the tests ask of them."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.lab.hosts import Host, Lab
from tests.lab.images import Image, Images
from tests.lab.load import Ledger
from tests.lab.project import ROOT, Done, Project

__all__ = ["Fault", "World"]

DATA_DISK_MB = 6144

_ASK = """
import asyncio, json, ssl, sys
import aiohttp
async def main():
    spec = json.load(sys.stdin)
    context = ssl.create_default_context(cadata=spec["ca"])
    headers = {"authorization": "Bearer " + spec["key"]}
    gate = asyncio.Semaphore(20)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), timeout=aiohttp.ClientTimeout(total=30)) as session:
        async def one(n, call):
            method, path, body = call
            async with gate:
                url = spec["urls"][n % len(spec["urls"])]
                async with session.request(method, url + path, json=body, headers=headers) as answer:
                    return answer.status, await answer.json(content_type=None)
        print(json.dumps(await asyncio.gather(*[one(n, call) for n, call in enumerate(spec["calls"])])))
asyncio.run(main())
"""

_SNAPSHOT = r"""
find /etc /usr/local /opt /var/lib/heliograph /root -xdev \( -path /etc/machine-id -o -path /var/lib/heliograph/data \) -prune -o \
  ! -type d ! -name '*-' ! -name .pwd.lock -printf '%p %m %u %s %l\n' 2>/dev/null | grep -v -e '^/etc/ld.so.cache' -e '^/etc/passwd' -e '^/etc/group' -e '^/etc/g\?shadow' -e '^/etc/sub[ug]id' | sort
echo users; getent passwd | sort; getent group | sort
echo containers; podman ps -a --format '{{.Names}}' | sort
echo images; podman images --format '{{.Repository}}@{{.Digest}}' | sort
echo rules; nft list tables
echo units; systemctl list-units --all --plain --no-legend 'heliograph*' | grep -v ' not-found ' | sort
"""

_UNWELL = r"""
for unit in $(systemctl list-units --all --plain --no-legend 'heliograph*' | awk '$3 != "active" {print $1}'); do
  systemctl status --no-pager --full --lines=40 "$unit"
done
journalctl --no-pager -q -o short-iso -p warning -n 40
"""


@dataclass
class Fault:
    """A stretch of the load: what was done, and what the clients saw of it."""

    name: str
    begun: float
    ended: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


class World:
    """The lab, its images, one Pulumi project with a stack for each datacenter."""

    def __init__(self, lab: Lab, images: Images, folder: Path) -> None:
        self.lab, self.images, self.folder = lab, images, folder
        self.project = Project(folder / "operator", lab.tools, lab.within)
        self.record: dict[str, Any] = {}
        self._clients: dict[str, dict[str, Any]] = {}

    async def stack(self, name: str, hosts: list[Host], shards: list[str] | None, *, beside: str = "") -> str:
        """`python -m infra.new` for these hosts, then what the lab needs to be otherwise."""

        def edit(region: dict[str, Any]) -> None:
            region["mongodb"] |= {
                "version": "6.0",
                "image": self.image(self.images.mongod),
                "oplog_mb": 990,
                "min_free_gb": 1,
            }
            if shards:
                region["mongodb"]["shards"] = [{"name": shard} for shard in shards]

        images = {
            "controlplane": (self.images.controlplane.reference, self.images.controlplane.archive),
            "mongod": (self.images.mongod.reference, ""),
        }
        return await self.project.new(
            name, {host.name: host.address for host in hosts}, self.lab.private_key, images, edit, beside=beside
        )

    async def peers(self, one: str, other: str) -> None:
        """Two stacks know each other's ledgers, as docs/operations.md says."""
        for stack, into in ((one, other), (other, one)):
            await self.project.must("python", "-m", "infra.peer", stack, "--into", into)

    @staticmethod
    def image(image: Image) -> dict[str, str]:
        return {"reference": image.reference, "archive": str(image.archive)}

    # -- asking

    async def client(self, stack: str) -> dict[str, Any]:
        """What a client of the region needs: `urls`, `ca` (PEM), `key`."""
        if stack not in self._clients:
            outputs = await self.project.outputs(stack)
            key = await self.project.secret(stack, "adminKey")
            self._clients[stack] = {"urls": outputs["urls"], "ca": outputs["authority"], "key": key}
        return self._clients[stack]

    async def api(self, stack: str, calls: list[tuple[str, str, Any]]) -> list[tuple[int, Any]]:
        """Calls to the nodes of a region, in turn, with its first key."""
        spec = {**await self.client(stack), "calls": calls}
        done = await self.lab.call([sys.executable, "-c", _ASK], stdin=json.dumps(spec), timeout=300)
        assert not done.code, done.stderr[-3000:]
        return [(status, body) for status, body in json.loads(done.stdout)]

    async def messages(self, stack: str, ids: list[str]) -> list[dict[str, Any]]:
        answers = await self.api(stack, [("GET", f"/v1/messages/{mid}", None) for mid in ids])
        return [body if status == 200 else {"status": f"HTTP {status}"} for status, body in answers]

    async def mirrored(self, *stacks: str, seconds: float = 120) -> dict[str, dict[str, Any]]:
        """Origin → own log, as `GET /v1/ledger` has it, once each is mirrored and witnessed as far as it is published and nobody complains."""
        end = time.monotonic() + seconds
        while True:
            answers = [(await self.api(stack, [("GET", "/v1/ledger", None)]))[0][1] for stack in stacks]
            own = {log["origin"]: log for answer in answers for log in answer["logs"] if log["own"]}
            copies = [log for answer in answers for log in answer["logs"] if not log["own"]]
            missing = [answer["alarms"] for answer in answers if answer["alarms"]]
            missing += [log for log in own.values() if not log["published"] == log["witnessed"] == log["mirrored"]]
            missing += [log for log in copies if log["root"] != own[log["origin"]]["root"]]
            if not missing and len(copies) == len(own) >= len(stacks):
                return own
            assert time.monotonic() < end, json.dumps(answers)[:6000]
            await asyncio.sleep(0.5)

    async def mongo(self, host: Host, port: int, script: str) -> str:
        """Python on a host, `client` being connected to a member there as the cluster's own; "" when the member does not answer."""
        program = f"""
import json
from pymongo import MongoClient
from pymongo.errors import ConnectionFailure
client = MongoClient("mongodb://{host.address}:{port}/", directConnection=True, tls=True, tlsCAFile="/etc/heliograph/tls/ca.pem",
    tlsCertificateKeyFile="/etc/heliograph/tls/member.pem", authMechanism="MONGODB-X509", authSource="$external", serverSelectionTimeoutMS=5000)
try:
    client.admin.command("ping")
except ConnectionFailure:
    raise SystemExit(0)
{script}
"""
        run = "podman run --rm -i --network=host --user=0 -v /etc/heliograph/tls:/etc/heliograph/tls:ro --entrypoint /opt/heliograph/bin/python"
        return (await host.run(f"{run} $(cat /etc/heliograph/controlplane.image) -", stdin=program)).strip()

    async def primary(self, hosts: list[Host], port: int) -> Host:
        """Who of them is the primary at this port."""
        script = "print(client.admin.command('hello')['isWritablePrimary'])"
        for _ in range(60):
            for host in hosts:
                if host.process and await self.mongo(host, port, script) == "True":
                    return host
            await asyncio.sleep(0.5)
        raise AssertionError(f"no primary at port {port}")

    async def snapshot(self, host: Host) -> list[str]:
        """What somebody who looks at the host sees of us."""
        return (await host.run(_SNAPSHOT)).splitlines()

    # -- load

    @asynccontextmanager
    async def load(
        self,
        stack: str,
        name: str,
        rate: float,
        seconds: float,
        *,
        batch: int = 1,
        skip: float = 0.0,
        only: Collection[str] = (),
    ) -> AsyncIterator[Path]:
        """Clients that send until the block ends; yields the file that they write. `batch`: messages a request; `skip`: for how long they leave a node alone that failed; `only`: addresses of
        the nodes that they know, if not all."""
        client = await self.client(stack)
        urls = [url for url in client["urls"] if not only or urlsplit(url).hostname in only]
        name = re.sub(r"\W+", "-", name)
        out, spec, stop = self.folder / f"{name}.jsonl", self.folder / f"{name}.json", self.folder / f"{name}.stop"
        authority = self.folder / f"{name}.pem"
        authority.write_text(client["ca"])
        values = client | {"urls": urls, "ca": str(authority), "name": name}
        spec.touch(mode=0o600)
        values |= {"rate": rate, "seconds": seconds, "batch": batch, "skip": skip}
        spec.write_text(json.dumps(values | {"out": str(out), "stop": str(stop)}))
        process = self.lab.exec([sys.executable, "-m", "tests.lab.load", spec], cwd=ROOT)
        try:
            async with asyncio.timeout(60):
                while not out.exists() or not out.stat().st_size:
                    assert process.poll() is None
                    await asyncio.sleep(0.2)
            yield out
            stop.touch()
            async with asyncio.timeout(180):
                while process.poll() is None:
                    await asyncio.sleep(0.2)
        finally:
            process.kill()
            process.wait()

    async def settled(self, stack: str, ledger: Ledger, seconds: float = 240) -> dict[str, int]:
        """Status → count of all accepted messages, once all are final or nothing has moved for 20 s."""
        ids = list(ledger.accepted.values())
        end = time.monotonic() + seconds
        last: dict[str, int] = {}
        still = 0
        while True:
            counts = dict(Counter(message["status"] for message in await self.messages(stack, ids)))
            still = still + 1 if counts == last else 0
            waiting = {"accepted", "queued", "submitted", "scheduled"} & counts.keys()
            if not waiting or (still >= 4 and waiting == {"submitted"}) or time.monotonic() > end:
                return counts
            last = counts
            await asyncio.sleep(5)

    # -- runs of the engine

    async def up(self, stack: str, **options: Any) -> Done:
        """`pulumi up` that must succeed; what hosts had to do again is noted."""
        done = await self.project.up(stack, **options)
        self._clients.pop(stack, None)
        if done.code:
            raise AssertionError("\n".join([*done.errors, *done.retried, *await self.unwell(stack), done.text[-2000:]]))
        if done.retried:
            self.note(f"tried again by `up` of {stack}", done.retried)
        return done

    async def destroy(self, stack: str) -> Done:
        """`pulumi destroy` that must succeed."""
        done = await self.project.destroy(stack)
        assert done.code == 0, "\n".join([*done.errors, done.text[-2000:]])
        return done

    async def unwell(self, stack: str) -> list[str]:
        """Of each host of the region: our units that do not run, with the end of their journal; then what else went wrong there."""
        found = []
        for one in self.project.region(stack)["hosts"]:
            host = self.lab.hosts.get(one["name"])
            if host and host.leader:
                found.append(f"-- {host.name}\n{await host.run(_UNWELL, check=False)}")
        return found

    def note(self, key: str, value: Any) -> None:
        """For the record that the run ends with."""
        self.record[key] = value
        print(f"\n[lab] {key}: {json.dumps(value)[:2000]}")
