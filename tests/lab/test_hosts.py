"""The lab itself: what the tests of the deployment take for granted about their hosts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import asyncssh
import pytest
import pytest_asyncio

from tests.lab.doctor import require_lab
from tests.lab.hosts import Host, Lab, LabError
from tests.lab.tools import prepare

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What production units ask for, and this machine may be unable to enforce: it has to start all the same.
QUADLET = """
[Container]
Image=localhost/tiny:1
Network=host
Pull=never
Exec=/bin/busybox httpd -f -p 8000 -h /www
Volume=/var/lib/heliograph/www:/www:ro
ReadOnly=true
NoNewPrivileges=true
DropCapability=all
PidsLimit=256
Ulimit=nofile=64000:64000
PodmanArgs=--memory=256m --oom-score-adj=-500
Notify=healthy
HealthCmd=["/bin/busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8000/"]
HealthInterval=2s
HealthStartupCmd=["/bin/busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8000/"]
HealthStartupInterval=1s

[Service]
TimeoutStopSec=20
TimeoutStartSec=30

[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/srv/images of the hosts: a container's file system with nothing but Debian's static busybox."""
    require_lab()
    folder = tmp_path_factory.mktemp("images")
    with tarfile.open(folder / "tiny.tar", "w") as tar:
        tar.add(prepare().golden / "usr/bin/busybox", "bin/busybox")
        empty = tarfile.TarInfo("www")
        empty.type, empty.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(empty, BytesIO())
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(images: Path) -> AsyncIterator[Lab]:
    async with Lab(prepare(), images=images) as lab:
        await lab.boot(["fra-1", "fra-2", "iad-1"])
        yield lab


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def web(lab: Lab) -> Host:
    """fra-1 with a quadlet that answers on port 8000."""
    host = lab.hosts["fra-1"]
    await host.run("podman import -q /srv/images/tiny.tar localhost/tiny:1; mkdir -p /var/lib/heliograph/www")
    await host.run(
        "echo first > /var/lib/heliograph/www/index.html; cat > /etc/containers/systemd/web.container", stdin=QUADLET
    )
    await host.run("systemctl daemon-reload; systemctl start web")
    return host


async def ssh(lab: Lab, host: Host, host_key: str, user: str, command: str) -> str:
    sock = lab.socket()
    await asyncio.get_running_loop().sock_connect(sock, (host.address, 22))
    pinned = asyncssh.import_known_hosts(f"{host.address} {host_key}\n")
    keys = [asyncssh.import_private_key(lab.private_key)]
    options = asyncssh.SSHClientConnectionOptions(
        known_hosts=pinned, client_keys=keys, username=user, config=None, agent_path=None
    )
    async with asyncssh.connect(host.address, sock=sock, options=options) as connection:
        return str((await connection.run(command, check=True)).stdout).strip()


async def fetch(lab: Lab, host: Host) -> str | None:
    done = await lab.call(["curl", "-s", "--max-time", "2", f"http://{host.address}:8000/"])
    return done.stdout.strip() if done.code == 0 else None


async def reaches(one: Host, other: Host) -> bool:
    done = await one.call(f"timeout 1 bash -c 'exec 3<>/dev/tcp/{other.name}/22 && head -c 4 <&3'")
    return done.stdout == "SSH-"


class TestSsh:
    """A host is who its key says, and lets in the lab's key only."""

    async def test_root_and_operator_get_in(self, lab: Lab):
        host = lab.hosts["fra-1"]
        assert await ssh(lab, host, host.host_key, "root", "id -un; uname -n") == "root\nfra-1"
        assert await ssh(lab, host, host.host_key, "operator", "id -un; sudo -n id -un") == "operator\nroot"

    async def test_another_hosts_key_is_refused(self, lab: Lab):
        with pytest.raises(asyncssh.HostKeyNotVerifiable):
            await ssh(lab, lab.hosts["fra-1"], lab.hosts["fra-2"].host_key, "root", "true")

    async def test_openssh_agrees(self, lab: Lab, tmp_path: Path):
        host = lab.hosts["iad-1"]
        (tmp_path / "known").write_text(f"{host.address} {host.host_key}\n")
        (tmp_path / "key").write_text(lab.private_key)
        (tmp_path / "key").chmod(0o600)
        options = [
            "-F",
            "/dev/null",
            "-o",
            f"UserKnownHostsFile={tmp_path}/known",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "BatchMode=yes",
        ]
        process = lab.exec(
            ["ssh", *options, "-i", tmp_path / "key", f"root@{host.address}", "uname -n"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.communicate(timeout=20)[0] == "iad-1\n"


class TestHost:
    """Units and containers run as on a production host; a failed command says what it said."""

    async def test_a_quadlet_answers(self, lab: Lab, web: Host):
        assert await fetch(lab, web) == "first"
        assert await web.run("podman exec --env A=b systemd-web /bin/busybox env | grep ^A=") == "A=b\n"

    async def test_killed_unit_is_seen_in_the_journal(self, web: Host):
        await web.kill_unit("web", "SIGKILL")
        await web.run("until systemctl is-failed -q web; do sleep 0.1; done")
        assert "status=9/KILL" in await web.journal("web")
        await web.run("systemctl reset-failed web; systemctl start web")

    async def test_failure_is_told(self, lab: Lab):
        with pytest.raises(LabError, match=r"fra-2: 'echo out; echo no >&2; exit 3' ended with 3\nout\nno"):
            await lab.hosts["fra-2"].run("echo out; echo no >&2; exit 3")

    async def test_clock_and_kernel_are_out_of_reach(self, lab: Lab):
        assert "not permitted" in (await lab.hosts["fra-2"].call("date -s '+1 day'")).stderr


class TestPartition:
    """A partition drops what it says, counts it, and heals."""

    @pytest.mark.parametrize("other", ["fra-2", "iad-1"], ids=["bridged", "routed"])
    async def test_drops_counts_heals(self, lab: Lab, other: str):
        one, two = lab.hosts["fra-1"], lab.hosts[other]
        assert await reaches(one, two)
        with lab.partition(one) as cut:
            assert cut.counter() == 0
            assert not await reaches(one, two)
            assert not await reaches(two, one)
            assert cut.counter() > 0
            assert await reaches(lab.hosts["fra-2"], lab.hosts["iad-1"]), "the others go on"
        assert await reaches(one, two)

    async def test_one_way(self, lab: Lab):
        sender, receiver = lab.hosts["fra-1"], lab.hosts["fra-2"]
        listen = "import socket; s = socket.socket(2, 2); s.bind(('', 9000)); heard = s.recv(99); open('/run/heard', 'wb').write(heard)"
        for host in (sender, receiver):
            await host.run("cat > /run/listen.py; systemd-run -q python3 /run/listen.py", stdin=listen)
            await host.run("until ss -lnu | grep -q :9000; do sleep 0.05; done", timeout=10)
        with lab.partition(sender, direction="in", against=[receiver]) as cut:
            # Datagrams need no answer, and ARP is not cut: what leaves the sender arrives, nothing comes back.
            await sender.run(f"echo there > /dev/udp/{receiver.address}/9000")
            await receiver.run(f"echo back > /dev/udp/{sender.address}/9000")
            await receiver.run("until grep -q there /run/heard; do sleep 0.05; done", timeout=10)
            assert cut.counter() == 1
            assert (await sender.call("test -e /run/heard")).code == 1
        await receiver.run(f"echo healed > /dev/udp/{sender.address}/9000")
        await sender.run("until grep -q healed /run/heard; do sleep 0.05; done", timeout=10)

    async def test_from_clients(self, lab: Lab, web: Host):
        with lab.partition(web, clients=True):
            assert await fetch(lab, web) is None
        assert await fetch(lab, web) == "first"


class TestPower:
    """A power cut ends everything at once; what was on the disk is there afterwards, what was only in memory is not."""

    async def test_data_and_enabled_units_come_back(self, lab: Lab, web: Host):
        await web.run("echo second > /var/lib/heliograph/www/index.html; touch /run/volatile; sync")
        await web.power_off()
        assert await fetch(lab, web) is None
        with pytest.raises(LabError, match="fra-1 is off"):
            await web.run("true")
        await web.start()
        await web.run("systemctl is-system-running --wait")
        assert await fetch(lab, web) == "second"
        assert (await web.call("test -e /run/volatile")).code == 1

    async def test_disk_of_its_own_fills_and_loses_unsynced_writes(self, lab: Lab):
        host = lab.hosts["fra-2"]
        await host.run("mkdir /srv/data; echo before > /srv/data/old")
        await host.limit_disk("/srv/data", 32)
        assert "No space left" in (await host.call("dd if=/dev/zero of=/srv/data/filler bs=1M")).stderr
        await host.run("rm /srv/data/filler; cd /srv/data; echo kept > synced; sync synced; echo gone > unsynced")
        await host.power_off()
        await host.start()
        assert (await host.run("cd /srv/data; cat old synced")).split() == ["before", "kept"]
        assert (await host.call("cat /srv/data/unsynced")).stdout == ""
        assert "ext4" in await host.run("findmnt -n -o FSTYPE /srv/data")

    async def test_orderly(self, lab: Lab):
        host = lab.hosts["iad-1"]
        await host.run(
            "echo 1 > /var/lib/heliograph/x; systemd-run -q -p 'ExecStop=/bin/rm /var/lib/heliograph/x' sleep 100"
        )
        await host.shut_down()
        await host.start()
        assert (await host.call("test -e /var/lib/heliograph/x")).code == 1, "the unit was stopped, not killed"


CRASH = """
import asyncio, os, sys
from tests.lab.hosts import Lab
from tests.lab.tools import prepare

async def main():
    lab = Lab(prepare(), name=sys.argv[1])
    await lab.__aenter__()
    await lab.boot(["fra-1"])
    lab.exec(["sleep", "1000"], stdout=-3, stderr=-3)  # not our pipes, which it would keep open
    print(lab.hosts["fra-1"].leader, flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def traces(name: str) -> list[str]:
    """What a lab of that name has left on this machine."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if name in line]
    loops = subprocess.run(
        ["losetup", "-l", "-n", "-O", "BACK-FILE"], capture_output=True, text=True, check=True
    ).stdout
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"/{name}" in command:
            processes.append(command)
    return (
        mounts
        + [line for line in loops.splitlines() if name in line]
        + processes
        + [str(p) for p in Path("/run/netns").glob(name)]
    )


class TestTeardown:
    """No lab outlives its test: no namespace, mount, loop device, process or file."""

    async def test_after_a_failure(self):
        require_lab()
        name = "heliograph-lab-failing"
        lab = Lab(prepare(), name=name)
        with pytest.raises(RuntimeError, match="a test fails"):
            await self.fail(lab)
        assert traces(name) == []
        assert not lab.path.exists()

    async def fail(self, lab: Lab) -> None:
        async with lab:
            (host,) = await lab.boot(["iad-9"])
            await host.limit_disk("/srv/data", 16)
            lab.exec(["sleep", "1000"]).returncode = 0  # nobody waits for it
            assert traces(lab.name)
            raise RuntimeError("a test fails")

    async def test_after_a_crash(self):
        require_lab()
        name = "heliograph-lab-crashing"
        crashed = subprocess.run([sys.executable, "-c", CRASH, name], capture_output=True, text=True, check=False)
        assert crashed.returncode == -9, crashed.stderr
        assert traces(name)
        down = subprocess.run(
            [sys.executable, "-m", "tests.lab.hosts", "down"], capture_output=True, text=True, check=True
        )
        assert f"removed {name}" in down.stdout
        assert traces(name) == []
        assert not Path("/proc", crashed.stdout.strip()).exists(), "the container's PID 1 is gone"
