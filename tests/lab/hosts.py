"""Hosts for tests of the deployment: systemd-nspawn containers with a real systemd, sshd and podman, in a network of
their own.

    async with Lab(prepare()) as lab:
        one, two = await lab.boot(["fra-1", "iad-1"])
        await one.run("podman info")
        with lab.partition(one) as cut:
            ...
            assert cut.counter()

One network namespace is the lab: a bridge per datacenter (fra 10.81.1.0/24, iad 10.81.2.0/24, .1 is the router), and
programs of this machine that should see the hosts (`Lab.exec`, `Lab.socket`). Nothing reaches the machine's network.

What the flags are for, each found by trying without:

- `nsenter --net=`, never `ip netns exec`: that remounts /sys, and the container finds no cgroups.
- `SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1`: podman 5 wants cgroup v2 although the machine may boot with v1.
- `--register=no --keep-unit`: this machine's PID 1 need not be systemd.
- `--capability=all --system-call-filter=…`: podman in the container makes namespaces, keyrings, device programs.
  CAP_SYS_TIME and CAP_SYS_MODULE stay out: clock and kernel are this machine's.
- `unshare --mount`: the root (overlay) is mounted in a mount namespace that dies with the host, so no crash leaves one.
- `setpriv --pdeathsig` and `unshare --pid --kill-child`: when the test process dies its hosts do. Without the process
  namespace around it a container outlives its systemd-nspawn. `python -m tests.lab.hosts down` clears the rest. Start
  hosts from a thread that lasts (the main one): the signal comes when the *thread* that started them ends.
- /var/lib/containers and /var/lib/heliograph are directories of the real disk: podman's overlay does not work on
  overlay, and fsync of a copied-up file is not what a database has in production.

Not like production: kernel, clock, page cache, /proc/sys and /sys (read-only) are shared with this machine; resource
limits may be unenforced (see tools.py). A power cut loses what was not fsynced only on a disk from `limit_disk` or
`data_disk_mb` – elsewhere the page cache survives it.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import asyncssh

from tests.lab.tools import Tools, cache_dir, prepare

__all__ = ["Host", "Lab", "LabError", "Partition", "Result", "down"]

NAME = re.compile(r"([a-z]{2,6})-([1-9]\d?)")
PLAIN = ("/var/lib/containers", "/var/lib/heliograph")
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
CLONE_NEWNET = 0x40000000
OPERATOR = (1000, 37)  # as in the golden tree


class LabError(Exception):
    """The lab, or a command on one of its hosts, failed: which, and what it said."""


class Result(NamedTuple):
    code: int
    stdout: str
    stderr: str


class Host:
    """One machine: off until `start`, keeps its disk over `power_off` and `start`. `Lab.boot` makes it."""

    def __init__(self, lab: Lab, name: str, address: str, data_disk_mb: int | None) -> None:
        self.lab, self.name, self.address = lab, name, address
        self.path = lab.path / name
        self.process: subprocess.Popen[bytes] | None = None
        self.leader = 0  # the container's PID 1, as this machine sees it
        self.disks: dict[str, Path] = {}
        key = asyncssh.generate_private_key("ssh-ed25519")
        self.host_key = " ".join(key.export_public_key().decode().split()[:2])
        for part in ("upper", "work", "root"):
            (self.path / part).mkdir(parents=True)
        self._write("etc/ssh/ssh_host_ed25519_key", key.export_private_key().decode(), 0o600)
        self._write("etc/hostname", f"{name}\n")
        self._write("etc/hosts", lab.hosts_file)
        self._write("etc/machine-id", hashlib.md5(f"{lab.name}/{name}".encode()).hexdigest() + "\n")
        network = (
            f"Address={address}/24\nGateway={address.rpartition('.')[0]}.1\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        )
        self._write("etc/systemd/network/10-lab.network", f"[Match]\nName=host0\n[Network]\n{network}")
        self._write("root/.ssh/authorized_keys", lab.public_key + "\n", 0o600)
        self._write("home/operator/.ssh/authorized_keys", lab.public_key + "\n", 0o600)
        if data_disk_mb:
            self._image("/var/lib/heliograph", data_disk_mb)

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address}>"

    def _write(self, name: str, text: str, mode: int = 0o644) -> None:
        """Into the overlay's upper directory, where modes and owners win over the tree below."""
        upper = self.path / "upper"
        path = upper / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        for parent in [at for at in path.parents if at.is_relative_to(upper)]:
            parent.chmod(0o700 if parent.relative_to(upper).name in {".ssh", "root"} else 0o755)
        for at in (path, *path.parents) if name.startswith("home/operator/") else ():
            if at.is_relative_to(upper / "home/operator"):
                os.chown(at, *OPERATOR)

    # -- power

    async def start(self, timeout: float = 90) -> None:
        """Power on; returns when sshd answers. Units may still be starting: `systemctl is-system-running --wait`."""
        if self.process:
            raise LabError(f"{self.name} is already on")
        (self.path / "console.log").touch()
        with (self.path / "console.log").open("ab") as console:
            unshare = [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "--pid",
                "--mount-proc",
                "--fork",
                "--kill-child",
            ]
            argv = ["setpriv", "--pdeathsig", "KILL", *unshare, "/bin/sh", "-ec", self._script()]
            env = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=env, start_new_session=True
            )
        try:
            async with asyncio.timeout(timeout):
                self.leader = await self._find_leader()
                await self._until_ssh()
        except (TimeoutError, LabError) as error:
            last = (self.path / "console.log").read_text(errors="replace")[-2000:]
            await self.power_off()
            raise LabError(f"{self.name} did not boot: {error or f'no sshd in {timeout} s'}\n{last}") from error

    async def settle(self) -> None:
        """Until all units of the boot run. This machine makes a unit fail now and then ("Failed to spawn executor"): it is started again, and told."""
        for left in (2, 1, 0):
            state = (await self.run("systemctl is-system-running --wait", check=False)).strip()
            if state == "running":
                return
            failed = (await self.run("systemctl --failed --no-legend --plain | cut -d ' ' -f 1")).split()
            units = " ".join(failed)
            journal = await self.run(
                f"journalctl -q --no-pager -o short-iso -n 40 {' '.join(f'-u {u}' for u in failed)}"
            )
            what = f"{self.name} is {state}: {units or 'no failed unit'}\n{journal}"
            if not left:
                raise LabError(what)
            print(f"\n[lab] started again: {what}", flush=True)
            await self.run(f"systemctl reset-failed; systemctl start {units}", check=False)

    async def power_off(self) -> None:
        """Power cut: SIGKILL to everything at once. Disks of their own lose what was not fsynced, see `limit_disk`."""
        if not self.process:
            return
        for path in self.disks if self.leader else ():
            with suppress(OSError):
                fd = os.open(f"/proc/{self.leader}/root{path}", os.O_RDONLY)
                try:
                    fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
                finally:
                    os.close(fd)
        await self._gone(signal.SIGKILL, 15)

    async def shut_down(self, timeout: float = 180) -> None:
        """Orderly: systemd stops every unit, as `systemctl poweroff` does."""
        if self.process:
            await self._gone(signal.SIGTERM, timeout)

    async def _gone(self, how: signal.Signals, timeout: float) -> None:
        assert self.process
        for nspawn in _children(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(nspawn, how)
        end = time.monotonic() + timeout
        # The disks too: mounted again while the last mount still lets go, two loop devices would write one image.
        while self.process.poll() is None or _loops(self.path):
            if time.monotonic() > end:
                self.process.kill()
            if time.monotonic() > end + 15:
                raise LabError(f"{self.name} does not end, or its disks are held: {_loops(self.path)}")
            await asyncio.sleep(0.02)
        self.process, self.leader = None, 0

    def _script(self) -> str:
        at, lab = self.path, self.lab
        lines = [
            f"mount -t overlay overlay -o lowerdir={lab.tools.golden},upperdir={at}/upper,workdir={at}/work {at}/root"
        ]
        binds = {inside: at / "data" / inside.strip("/").replace("/", "-") for inside in PLAIN}
        for inside, image in self.disks.items():
            binds[inside] = image.with_suffix("")
            lines.append(f"mount -o loop {image} {image.with_suffix('')}")
        for outside in binds.values():
            outside.mkdir(parents=True, exist_ok=True)
        options = [f"--bind={outside}:{inside}" for inside, outside in binds.items()]
        if lab.images:
            options.append(f"--bind-ro={lab.images}:/srv/images")
        # The kernel removes the link of a container that was killed in its own time.
        lines.append(f"nsenter --net=/run/netns/{lab.netns} ip link del vb-{self.name} 2>/dev/null || true")
        lines.append(
            f"exec nsenter --net=/run/netns/{lab.netns} systemd-nspawn --quiet --boot -D {at}/root -M {self.name}"
            f" --register=no --keep-unit --console=pipe --link-journal=no --resolv-conf=off --timezone=off"
            f" --network-bridge=br-{self.datacenter} --capability=all --drop-capability=CAP_SYS_TIME,CAP_SYS_MODULE"
            f" '--system-call-filter=add_key keyctl bpf' {' '.join(options)}"
        )
        return "\n".join(lines)

    @property
    def datacenter(self) -> str:
        return self.name.partition("-")[0]

    async def _find_leader(self) -> int:
        assert self.process
        while self.process.poll() is None:
            for nspawn in _children(self.process.pid):
                for child in _children(nspawn):
                    with suppress(OSError):
                        own = os.readlink(f"/proc/{child}/ns/pid") != os.readlink(f"/proc/{nspawn}/ns/pid")
                        if own and Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                            return child
            await asyncio.sleep(0.05)
        raise LabError(f"systemd-nspawn ended with {self.process.returncode}")

    async def _until_ssh(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self.process and self.process.poll() is not None:
                raise LabError(f"the container ended with {self.process.returncode}")
            with self.lab.socket() as probe, suppress(OSError):
                async with asyncio.timeout(2):
                    await loop.sock_connect(probe, (self.address, 22))
                    if (await loop.sock_recv(probe, 4)) == b"SSH-":
                        return
            await asyncio.sleep(0.1)

    # -- at work

    async def call(self, cmd: str, stdin: str = "", timeout: float = 120) -> Result:
        """A shell command as root in a transient unit: the same surroundings as any service, network or not."""
        if not self.leader:
            raise LabError(f"{self.name} is off")
        unit = [
            "systemd-run",
            "--quiet",
            "--pipe",
            "--wait",
            "--collect",
            "--setenv=HOME=/root",
            "/bin/bash",
            "-c",
            cmd,
        ]
        return await _call([*self.inside, *unit], stdin, timeout)

    async def run(self, cmd: str, check: bool = True, stdin: str = "", timeout: float = 120) -> str:
        """Its stdout; with `check` a LabError when it fails."""
        done = await self.call(cmd, stdin, timeout)
        if check and done.code:
            raise LabError(f"{self.name}: {cmd!r} ended with {done.code}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout

    @property
    def inside(self) -> list[str]:
        return ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "--"]

    async def kill_unit(self, unit: str, how: str = "SIGKILL") -> None:
        """The signal to all processes of the unit: of a quadlet, podman's monitor and the container."""
        await self.run(f"systemctl kill --kill-whom=all --signal={how} {unit}")

    async def journal(self, unit: str, n: int = 50) -> str:
        return await self.run(f"journalctl --no-pager -q -o short-iso -n {n} -u {unit}")

    async def limit_disk(self, path: str, megabytes: int) -> None:
        """Give `path` a file system of its own, so that it can be filled and loses unsynced writes at a power cut.

        What is there is copied: stop who writes there first. Stays after `power_off` and `start`.
        """
        image = self._image(path, megabytes)
        device = (await _must(["losetup", "-f", "--show", str(image)])).strip()
        try:
            numbers = Path("/sys/class/block", Path(device).name, "dev").read_text().strip().replace(":", " ")
            script = (
                f"test -b {device} || mknod {device} b {numbers}\n"  # nspawn gives the container no loop devices
                f"mkdir -p {path} /run/lab-disk; mount {device} /run/lab-disk; rmdir /run/lab-disk/lost+found\n"
                f"cp -a {path}/. /run/lab-disk/; umount /run/lab-disk; mount {device} {path}"
            )
            await _must([*self.inside, "/bin/sh", "-ec", script])
        finally:
            await _must(["losetup", "-d", device])  # in use it goes with the last mount

    def _image(self, path: str, megabytes: int) -> Path:
        if path in self.disks:
            raise LabError(f"{self.name}: {path} has its own disk already")
        image = self.path / "disks" / f"{path.strip('/').replace('/', '-')}.img"
        image.parent.mkdir(exist_ok=True)
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, capture_output=True)
        self.disks[path] = image
        return image


class Partition:
    """Dropped packets between two groups of hosts, until `heal`."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.name, self.healed = lab, name, False

    def counter(self) -> int:
        """How many packets were dropped: a test whose partition dropped none has shown nothing."""
        shown = self.lab.nft("-j", "list", "counters")
        return sum(
            c["counter"]["packets"]
            for c in json.loads(shown)["nftables"]
            if c.get("counter", {}).get("table") == self.name
        )

    def heal(self) -> None:
        if not self.healed:
            self.lab.nft("-f", "-", script=f"delete table bridge {self.name}\ndelete table ip {self.name}\n")
            self.healed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.heal()


class Lab:
    """The network and its hosts; an async context manager that leaves nothing behind."""

    def __init__(
        self,
        tools: Tools,
        name: str | None = None,
        datacenters: Sequence[str] = ("fra", "iad"),
        images: Path | None = None,
        data_disk_mb: int | None = None,
    ) -> None:
        self.tools, self.datacenters, self.images, self.data_disk_mb = tools, tuple(datacenters), images, data_disk_mb
        self.name = self.netns = name or f"heliograph-lab-{os.getpid()}"
        self.path = cache_dir() / "labs" / self.name
        self.hosts: dict[str, Host] = {}
        key = asyncssh.generate_private_key("ssh-ed25519")
        self.private_key, self.public_key = key.export_private_key().decode(), key.export_public_key().decode().strip()
        # Every name there may be, so that a host that comes later is known to those that are up.
        lines = [f"{self.address(f'{dc}-{n}')} {dc}-{n}" for dc in self.datacenters for n in range(1, 10)]
        self.hosts_file = "\n".join(["127.0.0.1 localhost", "::1 localhost", *lines]) + "\n"
        self._cuts = 0

    def address(self, name: str) -> str:
        """`fra-1` is 10.81.1.11, `iad-2` is 10.81.2.12."""
        parts = NAME.fullmatch(name)
        if not parts or parts[1] not in self.datacenters:
            raise LabError(
                f"{name!r} is no host of {', '.join(self.datacenters)}: expected for example {self.datacenters[0]}-1"
            )
        return f"10.81.{self.datacenters.index(parts[1]) + 1}.{10 + int(parts[2])}"

    async def __aenter__(self) -> Self:
        if self.path.exists():
            _destroy(self.name, self.path)
        self.path.mkdir(parents=True)
        try:
            (self.path / "owner").write_text(f"{os.getpid()} {_birth(os.getpid())}")
            self._network()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        try:
            for host in self.hosts.values():
                await host.power_off()
        finally:
            _destroy(self.name, self.path)

    def _network(self) -> None:
        _sh(f"ip netns add {self.netns}")
        commands = [
            "ip link set lo up",
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
            "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6",
            # Else the rules of the ip family see bridged packets a second time, where the kernel has br_netfilter.
            "if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables; fi",
        ]
        for number, dc in enumerate(self.datacenters, 1):
            commands += [
                f"ip link add br-{dc} type bridge",
                f"ip addr add 10.81.{number}.1/24 dev br-{dc}",
                f"ip link set br-{dc} up",
            ]
        _sh("\n".join(commands), self.netns)

    async def boot(self, names: Iterable[str]) -> list[Host]:
        """New hosts, running to the last unit. Two at a time: more only wait for each other's CPU."""
        new = []
        for name in names:
            if name in self.hosts:
                raise LabError(f"{name} exists; `start` powers it on again")
            self.hosts[name] = Host(self, name, self.address(name), self.data_disk_mb)
            new.append(self.hosts[name])
        gate = asyncio.Semaphore(max(2, os.cpu_count() or 2))

        async def one(host: Host) -> None:
            async with gate:
                await host.start()
                await host.settle()

        async with asyncio.TaskGroup() as group:
            for host in new:
                group.create_task(one(host))
        return new

    # -- programs of this machine within the lab's network

    def exec(self, argv: Sequence[str | Path], **popen: Any) -> subprocess.Popen[Any]:
        """A program of this machine that sees the hosts. It ends with the lab at the latest."""
        return subprocess.Popen([*self.within, *map(str, argv)], **popen)

    async def call(
        self, argv: Sequence[str | Path], stdin: str = "", timeout: float = 600, env: dict[str, str] | None = None
    ) -> Result:
        return await _call([*self.within, *map(str, argv)], stdin, timeout, env)

    @property
    def within(self) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.netns}", "--"]

    def socket(self) -> socket.socket:
        """A TCP socket of the lab for this process, for `sock=` of asyncssh or asyncio: a socket keeps its network."""
        made: list[socket.socket] = []

        def make() -> None:
            with Path("/run/netns", self.netns).open() as netns:
                if ctypes.CDLL(None, use_errno=True).setns(netns.fileno(), CLONE_NEWNET) == 0:
                    made.append(socket.socket())

        thread = threading.Thread(target=make)  # setns is for one thread: this one ends with it
        thread.start()
        thread.join()
        if not made:
            raise LabError(f"the network namespace {self.netns} cannot be entered")
        made[0].setblocking(False)
        return made[0]

    # -- faults

    def partition(
        self, *hosts: Host, direction: str = "both", against: Iterable[Host] | None = None, clients: bool = False
    ) -> Partition:
        """Drop packets between `hosts` and `against` (all others); within each group they flow.

        'in': nothing arrives at `hosts`; 'out': nothing leaves them. `clients` cuts them from this machine's programs too.
        By address in the lab's namespace, not on the hosts: their own firewall is the product's, which may flush it.
        """
        inner = [host.address for host in hosts]
        outer = [host.address for host in (self.hosts.values() if against is None else against) if host not in hosts]
        if clients:
            outer += [f"10.81.{number}.1" for number, _ in enumerate(self.datacenters, 1)]
        if not inner or not outer or direction not in {"both", "in", "out"}:
            raise LabError(f"a partition needs two sides and a direction: {inner} {direction} {outer}")
        a, b = f"{{ {', '.join(inner)} }}", f"{{ {', '.join(outer)} }}"
        rules = [f"ip saddr {b} ip daddr {a} counter name drops drop"] if direction != "out" else []
        rules += [f"ip saddr {a} ip daddr {b} counter name drops drop"] if direction != "in" else []
        self._cuts += 1
        name = f"cut{self._cuts}"
        # Hosts of one datacenter meet in the bridge, others in the router; clients are the router itself.
        script = ""
        for family, hooks in (("bridge", ["forward"]), ("ip", ["forward", "input", "output"])):
            chains = [
                f"chain {hook} {{\ntype filter hook {hook} priority 0;\n" + "\n".join(rules) + "\n}\n" for hook in hooks
            ]
            script += f"table {family} {name} {{\ncounter drops {{ }}\n{''.join(chains)}}}\n"
        self.nft("-f", "-", script=script)
        return Partition(self, name)

    def nft(self, *args: str, script: str = "") -> str:
        done = subprocess.run([*self.within, "nft", *args], input=script, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"nft {' '.join(args)}: {done.stderr}{script}")
        return done.stdout


def down(everything: bool = False) -> list[str]:
    """Remove the labs whose test process is gone (all of them with `everything`); their names."""
    removed = []
    for path in sorted((cache_dir() / "labs").glob("*")):
        owner = (path / "owner").read_text().split() if (path / "owner").exists() else []
        if everything or not owner or _birth(int(owner[0])) != owner[1]:
            _destroy(path.name, path)
            removed.append(path.name)
    return removed


def _destroy(netns: str, path: Path) -> None:
    """Its processes are those in its network namespace: the programs and systemd-nspawn, with which all else goes."""
    end = time.monotonic() + 20
    while Path("/run/netns", netns).exists():
        shown = subprocess.run(["ip", "netns", "pids", netns], capture_output=True, text=True, check=False)
        pids = {int(pid) for pid in shown.stdout.split()} - {os.getpid()}
        alive = [pid for pid in pids if not _zombie(pid)]
        if not alive:
            _sh(f"ip netns del {netns}")
        elif time.monotonic() > end:
            raise LabError(f"the lab {netns} does not end: {alive}")
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    while loops := _loops(path):  # they go with the last mount, soon after the last process
        if time.monotonic() > end:
            raise LabError(f"disks of the lab {netns} are held: {loops}")
        time.sleep(0.05)
        for loop in loops:  # of a `limit_disk` that was cut; in use or gone by itself it's no matter
            subprocess.run(["losetup", "-d", f"/dev/{loop}"], capture_output=True, check=False)
    if path.exists():
        shutil.rmtree(path)


def _loops(path: Path) -> list[str]:
    """Loop devices whose image is under `path`; a deleted image counts."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if file.read_text().startswith(f"{path}/"):
                found.append(file.parts[3])
    return found


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _stat(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _zombie(pid: int) -> bool:
    return _stat(pid)[:1] in ([], ["Z"])


def _birth(pid: int) -> str:
    """With the pid it names a process for good: pids are used again."""
    return "".join(_stat(pid)[19:20])


def _sh(script: str, netns: str | None = None) -> None:
    within = ["nsenter", f"--net=/run/netns/{netns}", "--"] if netns else []
    done = subprocess.run([*within, "/bin/sh", "-ec", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{script}: {done.stderr}")


async def _call(argv: Sequence[str], stdin: str = "", timeout: float = 60, env: dict[str, str] | None = None) -> Result:
    pipe = asyncio.subprocess.PIPE
    with tempfile.TemporaryFile() as file:  # not a pipe: uvloop fails on one whose reader has ended already
        file.write(stdin.encode())
        file.seek(0)
        process = await asyncio.create_subprocess_exec(*argv, stdin=file, stdout=pipe, stderr=pipe, env=env)
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate()
    except TimeoutError as error:
        raise LabError(f"{' '.join(argv)[-300:]} did not end in {timeout} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Result(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


async def _must(argv: Sequence[str]) -> str:
    done = await _call(argv)
    if done.code:
        raise LabError(f"{' '.join(argv)}: {done.stderr}{done.stdout}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.hosts")
    parser.add_argument(
        "what",
        choices=["down", "try"],
        help="down: remove what ended runs left; try: boot one host, say how long it took",
    )
    parser.add_argument("--all", action="store_true", help="down: also labs whose test process still runs")
    parser.add_argument("hosts", nargs="*", default=["fra-1"])
    arguments = parser.parse_args()
    if arguments.what == "down":
        print("\n".join(f"removed {name}" for name in down(arguments.all)) or "nothing was left")
        return 0
    asyncio.run(_try(arguments.hosts))
    return 0


async def _try(names: list[str]) -> None:
    async with Lab(prepare(print)) as lab:
        start = time.monotonic()
        for host in await lab.boot(names):
            print(host, (await host.run("podman --version; uname -n")).split())
        print(f"{time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
