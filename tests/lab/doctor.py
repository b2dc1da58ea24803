"""What of the lab this machine can do, found by doing it: `python -m tests.lab.doctor`.

`can_run()` gives the reasons why not; `require_lab()` skips a test with them, or fails it where CI is set: a lab that
is missing there must not look like a lab that passed.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.tools import KEYRING, MACHINE_PACKAGES, PULUMI, cache_dir, debian_mirror, find_go

__all__ = ["Check", "can_run", "examine", "require_lab"]

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
OVERLAY = "mkdir -p lower upper work root; mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root; touch root/x"
BRIDGE = "ip link add br-probe type bridge && ip link add v0 type veth peer name v1 && ip link set v0 master br-probe"
DROPS = """
table bridge probe {
  counter drops { }
  chain forward { type filter hook forward priority 0; ip saddr 10.81.1.11 counter name drops drop; }
}
table ip probe {
  chain forward { type filter hook forward priority 0; ip saddr 10.81.1.11 counter drop; }
}
"""


class Check(NamedTuple):
    what: str
    found: str
    ok: bool
    mend: str
    needed: bool = True  # without it no lab


def examine() -> list[Check]:
    root = os.geteuid() == 0
    apt = root and shutil.which("apt-get") is not None
    checks = [
        Check("Linux on x86-64", f"{platform.system()} {platform.machine()}", (platform.system(), platform.machine()) == ("Linux", "x86_64"),
              "the lab's mongod is built for x86-64 Linux"),
        Check("root", "yes" if root else f"uid {os.geteuid()}", root, "run as root, best in a virtual machine of its own"),
    ]  # fmt: skip
    for program, package in MACHINE_PACKAGES.items():
        found = shutil.which(program, path=PATH)
        checks.append(
            Check(
                program,
                found or "missing",
                bool(found) or apt,
                f"apt-get install {package} (tests.lab.tools does it as root)",
            )
        )
    checks.append(
        Check(
            "Debian keyring",
            str(KEYRING) if KEYRING.exists() else "missing",
            KEYRING.exists() or apt,
            "apt-get install debian-archive-keyring",
        )
    )
    if root:
        checks += _namespaces()
    checks += _resources()
    checks.append(Check("Debian mirror", debian_mirror(), True, "it is read from /etc/apt"))
    go, ready = find_go(), (cache_dir() / f"pulumi-{PULUMI}").exists()
    checks.append(Check("Pulumi", f"cached {PULUMI}" if ready else f"to be prepared; Go: {go or 'none'}", bool(ready or go or shutil.which("pulumi")),
                        f"install Pulumi {PULUMI}, or Go 1.25 to build it", needed=False))  # fmt: skip
    return checks


def _namespaces() -> list[Check]:
    cgroups = "cgroup2" in Path("/proc/filesystems").read_text()
    mounted = [
        line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"
    ]
    controllers = Path(mounted[0], "cgroup.controllers").read_text().split() if mounted else []
    container = "run it in a virtual machine or a privileged container: the lab makes namespaces and mounts"
    return [
        Check("cgroup v2", mounted[0] if mounted else "not mounted", cgroups and bool(mounted), "boot with cgroup v2, or mount it at /sys/fs/cgroup/unified"),
        Check("cgroup controllers", " ".join(controllers) or "none: limits are not enforced in the lab", bool(controllers),
              "boot with systemd.unified_cgroup_hierarchy=1", needed=False),
        _try("overlayfs", OVERLAY, container),
        _try("network namespace", "ip link set lo up", container, "--net"),
        _try("bridge, veth", BRIDGE, "the kernel needs CONFIG_BRIDGE and CONFIG_VETH", "--net"),
        _try("nftables, bridge too", f"nft -f - <<'END'\n{DROPS}\nEND", "the kernel needs CONFIG_NF_TABLES_BRIDGE and _IPV4", "--net"),
        Check("loop devices", "yes" if Path("/dev/loop-control").exists() else "missing", Path("/dev/loop-control").exists(),
              "modprobe loop; without it no disk can be filled or lose unsynced writes"),
    ]  # fmt: skip


def _try(what: str, script: str, mend: str, *unshare: str) -> Check:
    """In namespaces that end with it. The directory is beside the cache: overlay depends on the file system."""
    place = next(path for path in (cache_dir(), *cache_dir().parents) if path.exists())
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=place) as work:
        argv = ["unshare", "--mount", "--propagation", "private", *unshare, "/bin/sh", "-ec", f"PATH={PATH}\n{script}"]
        done = subprocess.run(argv, cwd=work, capture_output=True, text=True, check=False)
    problem = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    missing = done.returncode == 127 or "not found" in problem  # a package that tools.py installs
    return Check(what, "works" if not done.returncode else problem, not done.returncode or missing, mend)


def _resources() -> list[Check]:
    place = next(path for path in (cache_dir(), *cache_dir().parents) if path.exists())
    disk = shutil.disk_usage(place).free / 2**30
    memory = (
        next(
            int(line.split()[1])
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemAvailable")
        )
        / 2**20
    )
    cores = os.cpu_count() or 1
    return [
        Check("disk", f"{disk:.0f} GiB free at {place}", disk >= 10, "10 GiB: set HG_LAB_CACHE to a larger disk"),
        Check("memory", f"{memory:.0f} GiB available", memory >= 6, "6 GiB for one region, 14 for two"),
        Check("cores", str(cores), cores >= 2, "2"),
    ]


@functools.cache
def can_run() -> list[str]:
    """Why the lab cannot run here; empty when it can."""
    return [f"{check.what}: {check.found} ({check.mend})" for check in examine() if check.needed and not check.ok]


def require_lab() -> None:
    """In a fixture: skip with the reasons, or fail where CI is set."""
    if reasons := can_run():
        text = "the lab cannot run on this machine: " + "; ".join(reasons)
        if os.environ.get("CI"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)


def main() -> int:
    checks = examine()
    for check in checks:
        mark = "ok" if check.ok else "MISSING" if check.needed else "without"
        print(f"{check.what:22} {mark:8} {check.found}" + ("" if check.ok else f"\n{'':31} → {check.mend}"))
    print("\nThe lab can run here." if not can_run() else "\nThe lab cannot run here.")
    return 1 if can_run() else 0


if __name__ == "__main__":
    sys.exit(main())
