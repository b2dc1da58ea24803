"""Operations that change what is declared, on real hosts under load: certificates, keys, a host, a shard. `tests/lab/test_operations.py` calls them, in this order or another.

Each takes the world, the stack, its hosts and `loaded`: a context in which clients send, and which fails where an accepted message is gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.lab.hosts import Host
from tests.lab.world import World

__all__ = ["add_shard", "replace_host", "rotate_authority", "rotate_certificates", "rotate_keys"]

Loaded = Callable[[str], AbstractAsyncContextManager[None]]
CONFIG, FIRST_SHARD, LEDGER, API = 27019, 27020, 8442, 8443
_PYTHON = "podman run --rm -i --network=host --user=0 -v /etc/heliograph/tls:/etc/heliograph/tls:ro -v /root/old-tls:/root/old-tls:ro --entrypoint /opt/heliograph/bin/python"
_MONGO = """
import sys
from pymongo import MongoClient
from pymongo.errors import PyMongoError
endpoint, tls, role, ca = sys.argv[1:]
client = MongoClient(f"mongodb://{endpoint}/", directConnection=True, tls=True, tlsCAFile=ca, tlsCertificateKeyFile=f"{tls}/{role}.pem",
    authMechanism="MONGODB-X509", authSource="$external", serverSelectionTimeoutMS=4000)
try:
    client.admin.command("connectionStatus")
    print("taken")
except PyMongoError as error:
    print("refused:", type(error).__name__)
"""
_HTTPS = """
import ssl, sys, urllib.request
url, certificate, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
if certificate != "-":
    context.load_cert_chain(certificate)
try:
    print("taken", urllib.request.urlopen(url, context=context, timeout=5).status)
except OSError as error:
    print("refused:", error)
"""


async def operate(world: World, stack: str, verb: str, *options: str) -> tuple[int, str]:
    """`heliograph ops`, and clients that are asked anew afterwards: keys and authorities may be others."""
    code, said = await world.project.operate(verb, stack, *options)
    world._clients.pop(stack, None)
    return code, said


async def must(world: World, stack: str, verb: str, *options: str) -> int:
    """How much it changed; it must end well."""
    code, said = await operate(world, stack, verb, *options)
    assert code == 0, said[-6000:]
    found = re.findall(rf"^{stack}: [\w-]+ \w+ done, (\d+) changed$", said, re.MULTILINE)
    assert found, said[-3000:]
    return int(found[-1])


async def whole(world: World, stack: str) -> None:
    """As declared, and it delivers; the next `up` has nothing to do."""
    assert (await world.up(stack)).changed == {}
    code, report = await world.project.verify(stack)
    assert (code, report["problems"]) == (0, [])


async def keep_old(hosts: list[Host]) -> None:
    """Certificates and keys as they are now, for later."""
    for host in hosts:
        await host.run("rm -rf /root/old-tls; cp -a /etc/heliograph/tls /root/old-tls; chmod -R u+rX /root/old-tls")


async def mongo(host: Host, to: Host, port: int, role: str, *, old: bool) -> str:
    """What a member says to this host with the role's certificate: `taken`, or `refused: …`. The server is verified by what the host trusts now."""
    tls = "/root/old-tls" if old else "/etc/heliograph/tls"
    run = f"{_PYTHON} $(cat /etc/heliograph/controlplane.image) - {to.address}:{port} {tls} {role} /etc/heliograph/tls/ca.pem"
    return (await host.run(run, stdin=_MONGO)).strip()


async def https(host: Host, url: str, certificate: str, ca: str) -> str:
    """What an address says to this host: `taken 200`, or `refused: …`."""
    return (await host.run(f"python3 - {url} {certificate} {ca}", stdin=_HTTPS)).strip()


async def rotate_certificates(world: World, stack: str, hosts: list[Host], loaded: Loaded) -> None:
    """New keys and certificates everywhere, without an outage; a second run has nothing to do."""
    before = [await host.run("sha256sum /etc/heliograph/tls/*.pem /etc/heliograph/keys/*") for host in hosts]
    async with loaded("certificates"):
        assert await must(world, stack, "rotate-certificates", "--scope", "certificates") > 0
    for host, old in zip(hosts, before, strict=True):
        now = await host.run("sha256sum /etc/heliograph/tls/*.pem /etc/heliograph/keys/*")
        same = set(now.splitlines()) & set(old.splitlines())
        assert [line.split()[1] for line in same] == ["/etc/heliograph/tls/ca.pem"]
    assert await must(world, stack, "rotate-certificates", "--scope", "certificates") == 0
    await whole(world, stack)


async def rotate_authority(
    world: World, stack: str, hosts: list[Host], loaded: Loaded, peer: tuple[str, list[Host]] | None = None
) -> None:
    """Another authority: it stops until clients have both, goes on, and at the end whatever the old one signed is refused. `peer`: a second region of the project, with its hosts."""
    await keep_old(hosts)
    first, second = hosts[0], hosts[1]
    assert await mongo(first, second, FIRST_SHARD, "member", old=True) == "taken"
    async with loaded("authority, both trusted"):
        code, said = await operate(world, stack, "rotate-certificates", "--scope", "authority")
        assert code == 1
        assert "go on with --told clients" in said
    bundle = (await world.project.outputs(stack))["authority"]
    assert bundle.count("BEGIN CERTIFICATE") == 2
    async with loaded("authority, the new one signs and is alone"):
        assert await must(world, stack, "rotate-certificates", "--scope", "authority", "--told", "clients") > 0
    assert (await world.project.outputs(stack))["authority"].count("BEGIN CERTIFICATE") == 1
    for role in ("member", "node"):
        for port in (CONFIG, FIRST_SHARD):
            assert (await mongo(first, second, port, role, old=True)).startswith("refused"), (role, port)
    assert await mongo(first, second, FIRST_SHARD, "member", old=False) == "taken"
    livez, ca = f"https://{second.address}:{LEDGER}/livez", "/etc/heliograph/tls/ca.pem"
    assert (await https(first, livez, "/root/old-tls/ledger.pem", ca)).startswith("refused")
    assert await https(first, livez, "/etc/heliograph/tls/ledger.pem", ca) == "taken 200"
    ready = f"https://{second.address}:{API}/readyz"
    assert (await https(first, ready, "-", "/root/old-tls/ca.pem")).startswith("refused")
    assert await https(first, ready, "-", ca) == "taken 200"
    if peer is not None:
        name, there = peer
        known = {one["name"]: one for one in world.project.region(name)["ledger"]["peers"]}
        assert known[stack]["authority"].count("BEGIN CERTIFICATE") == 1
        theirs = f"https://{there[0].address}:{LEDGER}/livez"
        trusts = "/etc/heliograph/ledger/authorities.pem"
        assert (await https(first, theirs, "/root/old-tls/ledger.pem", trusts)).startswith("refused")
        assert await https(first, theirs, "/etc/heliograph/tls/ledger.pem", trusts) == "taken 200"
        await world.mirrored(stack, name)
    assert await must(world, stack, "rotate-certificates", "--scope", "authority") == 0
    await whole(world, stack)


async def rotate_keys(world: World, stack: str, hosts: list[Host], loaded: Loaded) -> None:
    """The first API key, then the operator's SSH key: the old ones are refused, the new ones work."""
    old = await world.project.secret(stack, "adminKey")
    assert await must(world, stack, "rotate-keys", "--scope", "api") > 0
    assert await world.project.secret(stack, "adminKey") != old
    [(status, _)] = await world.api(stack, [("GET", "/v1/keys", None)])
    assert status == 200
    asked = 'import sys, ssl, urllib.request, urllib.error\nrequest = urllib.request.Request(sys.argv[1] + "/v1/keys", headers={"authorization": "Bearer " + sys.argv[2]})\ntry:\n    print(urllib.request.urlopen(request, context=ssl.create_default_context(cafile="/etc/heliograph/tls/ca.pem")).status)\nexcept urllib.error.HTTPError as error:\n    print(error.code)\n'
    said = await hosts[0].run(f"python3 - https://{hosts[0].address}:{API} {old}", stdin=asked)
    assert said.strip() == "401"
    keys = [await host.run("cat ~operator/.ssh/authorized_keys") for host in hosts]
    former = await world.project.secret(stack, "sshKey")
    assert await must(world, stack, "rotate-keys", "--scope", "ssh") > 0
    assert (await world.project.secret(stack, "sshKey")) != former
    for host, before in zip(hosts, keys, strict=True):
        now = await host.run("cat ~operator/.ssh/authorized_keys")
        assert len(now.split("ssh-ed25519")) == len(before.split("ssh-ed25519"))
        assert now != before
    async with loaded("keys, a second time"):
        assert await must(world, stack, "rotate-keys", "--scope", "api") == 0
        assert await must(world, stack, "rotate-keys", "--scope", "ssh") == 0
    await whole(world, stack)


async def replace_host(world: World, stack: str, hosts: list[Host], gone: Host, new: Host, loaded: Loaded) -> None:
    """`gone` is dead (power off it first) or alive; `new` is bare. Its members have the data at the end, and the others' firewalls know `gone` no more."""
    alive = bool(gone.leader)
    rest = [host for host in hosts if host is not gone]
    options = ["--host", gone.name, "--by", f"{new.name}={new.address}", "--host-key", new.host_key]
    async with loaded(f"{new.name} for {gone.name}, {'alive' if alive else 'dead'}"):
        assert await must(world, stack, "replace-host", *options) > 0
    names = [one["name"] for one in world.project.region(stack)["hosts"]]
    assert new.name in names
    assert gone.name == new.name or gone.name not in names
    for port in (CONFIG, FIRST_SHARD):
        primary = await world.primary([*rest, new], port)
        members = json.loads(
            await world.mongo(
                primary,
                port,
                "print(json.dumps([[m['name'], m['stateStr']] for m in client.admin.command('replSetGetStatus')['members']]))",
            )
        )
        assert sorted(name for name, _ in members) == sorted(f"{host.address}:{port}" for host in [*rest, new])
        assert sorted(state for _, state in members) == ["PRIMARY", "SECONDARY", "SECONDARY"]
    for host in rest:
        rules = await host.run("nft list table inet heliograph")
        assert new.address in rules
        assert gone.address == new.address or gone.address not in rules
    if alive:
        assert "heliograph" not in await gone.run(
            "systemctl list-units --plain --no-legend 'heliograph*' | grep running || true"
        )
        reached = await gone.run(
            f"timeout 3 bash -c '</dev/tcp/{rest[0].address}/{FIRST_SHARD}' && echo open || echo closed"
        )
        assert reached.strip() == "closed"
    assert await must(world, stack, "replace-host", *options) == 0
    await whole(world, stack)


async def add_shard(world: World, stack: str, hosts: list[Host], name: str, loaded: Loaded) -> None:
    """A shard more, on these three hosts; the router knows it, and the balancer runs."""
    options = [name, "--hosts", ",".join(host.name for host in hosts)]
    async with loaded(f"shard {name}"):
        assert await must(world, stack, "add-shard", *options) > 0
    report: dict[str, Any] = (await world.project.verify(stack))[1]
    cluster = report["cluster"]["cluster"]
    assert f"{stack}-{name}" in {shard["name"] for shard in cluster["shards"]}
    assert cluster["balancer"]["mode"] == "full"
    world.note(f"chunks with {name}", {one["collection"]: one["chunks"] for one in cluster["collections"]})
    assert await must(world, stack, "add-shard", *options) == 0
    await whole(world, stack)
