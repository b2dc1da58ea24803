"""What the lab needs, prepared once and cached by version: Pulumi, a Debian 13 tar, the tree that hosts boot from.

`prepare()` makes in `~/.cache/heliograph-lab` (or HG_LAB_CACHE) whatever is missing, each thing in a temporary
place that is renamed when whole, so that a run that was cut leaves nothing half. `python -m tests.lab.tools` prints it.

Why the host tree is not plain Debian:

- `10-lab.network`: sorts before the vendor's `80-container-host0.network`, which would wait for DHCP.
- a runtime wrapper before crun: a cgroup v1 machine hands no controllers to the v2 tree, and a machine that is itself
  a small virtual machine may lack CAP_SYS_RESOURCE. crun then refuses `PidsLimit=`, `Memory=`, `Ulimit=` and
  `OOMScoreAdjust=` outright. The wrapper drops only what this machine cannot do, so production quadlets run unchanged;
  these limits are *not enforced* there. `pids_limit=0` is the same for containers that ask for nothing.
- timers off (fstrim, apt, podman auto-update): they would run in every host at once, minutes after the boot.
- empty `machine-id`, no SSH host keys, no resolver: each host has its own identity, and no host has a way out.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MACHINE_PACKAGES", "PULUMI", "Tools", "ToolsError", "cache_dir", "debian_mirror", "find_go", "prepare"]

PULUMI = "3.259.0"
LANGUAGE_HOST = "3.79.0"  # the last sdk module with cmd/pulumi-language-python; works with the newer CLI
PROGRAMS = ("pulumi", "pulumi-language-python", "pulumi-language-python-exec", "pulumi-resource-pulumi-python")
SUITE = "trixie"
HOST_PACKAGES = [
    *(
        "systemd-sysv",
        "udev",
        "dbus",
        "openssh-server",
        "sudo",
        "python3",
        "iproute2",
        "nftables",
        "procps",
        "tar",
        "xz-utils",
    ),
    *("podman", "crun", "netavark", "aardvark-dns", "catatonit", "ca-certificates", "openssl", "busybox-static"),
    *("libcurl4t64", "libssl3t64"),  # of mongod's wheel
]
MACHINE_PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "nft": "nftables",
    "ip": "iproute2",
    "podman": "podman",
    "crun": "crun",
    "mkfs.ext4": "e2fsprogs",
}
MASKED = [
    *("fstrim.timer", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "podman-auto-update.timer"),
    *("podman-auto-update.service", "console-getty.service", "getty@tty1.service", "systemd-pstore.service"),
]
_APT = ("apt-get", "-o", "DPkg::Lock::Timeout=300")  # another install may be at it
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

SOFTEN = r'''"""Takes out of a container's config what this machine cannot do; see tests/lab/tools.py."""
import json, pathlib, resource, sys

def soften(path, whole):
    config = json.loads(path.read_text())
    process = config.get("process", {}) if whole else config
    for limit in process.get("rlimits", []):
        number = getattr(resource, limit["type"])
        try:
            resource.setrlimit(number, (limit["soft"], limit["hard"]))
        except (OSError, ValueError):
            most = resource.getrlimit(number)[1]
            limit["soft"], limit["hard"] = min(limit["soft"], most), min(limit["hard"], most)
    if process.get("oomScoreAdj") is not None:
        score = pathlib.Path("/proc/self/oom_score_adj")
        try:
            score.write_text(str(process["oomScoreAdj"]))
        except OSError:
            process["oomScoreAdj"] = int(score.read_text())
    have = pathlib.Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    resources = config.get("linux", {}).get("resources", {})
    for key, controller in (("pids", "pids"), ("memory", "memory"), ("cpu", "cpu"), ("blockIO", "io"), ("hugepageLimits", "hugetlb")):
        if controller not in have:
            resources.pop(key, None)
    path.write_text(json.dumps(config))

for flag, value in zip(sys.argv, sys.argv[1:]):
    if flag in ("--bundle", "-b"):
        soften(pathlib.Path(value, "config.json"), True)
    elif flag in ("--process", "-p"):
        soften(pathlib.Path(value), False)
'''
RUNTIME = r"""#!/bin/sh
case " $* " in *" --bundle "*|*" -b "*|*" --process "*|*" -p "*)
  /usr/bin/python3 /usr/local/lib/lab/soften.py "$@" || exit 1;;
esac
exec /usr/bin/crun "$@"
"""
CONTAINERS = """[containers]
pids_limit=0
[engine]
runtime="crun"
[engine.runtimes]
crun=["/usr/local/bin/lab-crun"]
"""
SSHD = """HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
# A region's resources connect all at once.
MaxStartups 200:30:400
MaxSessions 100
"""
FILES = {
    "usr/local/lib/lab/soften.py": (0o644, SOFTEN),
    "usr/local/bin/lab-crun": (0o755, RUNTIME),
    "etc/containers/containers.conf": (0o644, CONTAINERS),
    "etc/ssh/sshd_config.d/10-lab.conf": (0o644, SSHD),
    "etc/systemd/journald.conf.d/10-lab.conf": (0o644, "[Journal]\nStorage=persistent\nSystemMaxUse=32M\n"),
    "etc/sudoers.d/operator": (0o440, "operator ALL=(ALL) NOPASSWD: ALL\n"),
    "etc/machine-id": (0o644, ""),
    "etc/resolv.conf": (0o644, ""),
}


class ToolsError(Exception):
    """Something cannot be prepared: what, and the next step."""


@dataclass(frozen=True)
class Tools:
    """Where things are: `bin` goes first on PATH after the virtual environment's, `golden` is never written to."""

    cache: Path
    bin: Path
    pulumi: Path
    base: Path
    golden: Path


def cache_dir() -> Path:
    return Path(os.environ.get("HG_LAB_CACHE") or Path.home() / ".cache" / "heliograph-lab")


def prepare(say: Callable[[str], None] = lambda line: None) -> Tools:
    """Everything the lab needs; seconds when cached, else minutes. Two at a time wait for each other."""
    cache = cache_dir()
    (cache / "bin").mkdir(parents=True, exist_ok=True)
    recipe = hashlib.sha256(repr((SUITE, HOST_PACKAGES)).encode()).hexdigest()[:10]
    tree = hashlib.sha256(repr((recipe, MASKED, FILES, inspect.getsource(_golden))).encode()).hexdigest()[:10]
    base, golden, pulumi = cache / f"base-{recipe}.tar", cache / f"golden-{tree}", cache / f"pulumi-{PULUMI}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _machine_packages(say)
        if not any((cache / "labs").glob("*")):  # an old tree may be under a running lab's hosts
            _prune(cache, {base.name, golden.name, pulumi.name})
        _step(base, _base, say)
        _step(golden, lambda into: _golden(base, into), say)
        _step(pulumi, _pulumi, say)
        for program in PROGRAMS:
            _replace(cache / "bin" / program, lambda at, name=program: at.symlink_to(pulumi / name))
        _replace(cache / "bin" / "pulumi-resource-command", _command_plugin)
    return Tools(cache, cache / "bin", cache / "bin" / "pulumi", base, golden)


def debian_mirror() -> str:
    """The mirror this machine uses itself (it may be the only one within reach), else Debian's own."""
    for pattern in ("sources.list", "sources.list.d/*.list", "sources.list.d/*.sources", "mirrors/*.list"):
        for path in sorted(Path("/etc/apt").glob(pattern)):
            lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
            if found := re.search(r"https?://\S+/debian/?(?=\s|$)", "\n".join(lines)):
                return found[0]
    return "http://deb.debian.org/debian"


def find_go() -> str | None:
    return shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin:/usr/lib/go/bin")


def _step(path: Path, make: Callable[[Path], None], say: Callable[[str], None]) -> None:
    if path.exists():
        say(f"{path.name:24} cached")
        return
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".making-", dir=path.parent) as work:
        made = Path(work) / path.name
        make(made)
        made.rename(path)
    say(f"{path.name:24} {time.monotonic() - start:6.1f} s")


def _prune(cache: Path, keep: set[str]) -> None:
    for path in [*cache.glob("base-*"), *cache.glob("golden-*"), *cache.glob("pulumi-*"), *cache.glob(".making-*")]:
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _replace(path: Path, make: Callable[[Path], None]) -> None:
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    make(new)
    new.rename(path)


def _run(*argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, hint: str = "") -> str:
    done = subprocess.run(
        [str(a) for a in argv], cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise ToolsError(
            f"{argv[0]} failed ({done.returncode}): {(done.stderr or done.stdout)[-1500:].strip()}\n{hint}".strip()
        )
    return done.stdout


def _machine_packages(say: Callable[[str], None]) -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for program, package in MACHINE_PACKAGES.items() if not shutil.which(program, path=path)]
    if not KEYRING.exists():
        missing.append("debian-archive-keyring")
    if not missing:
        return
    command = f"apt-get install {' '.join(missing)}"
    if os.geteuid() or not shutil.which("apt-get"):
        raise ToolsError(f"The lab needs {', '.join(missing)}. As root: {command}")
    start = time.monotonic()
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _run("apt-get", "update", "-qq", env=env, hint="Is the package mirror reachable?")
    _run(
        *_APT,
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
        *missing,
        env=env,
        hint=f"Try it by hand: {command}",
    )
    say(f"{'apt: ' + ' '.join(missing):24} {time.monotonic() - start:6.1f} s")


def _base(into: Path) -> None:
    source = f"deb [signed-by={KEYRING}] {debian_mirror()} {SUITE} main"
    _run("mmdebstrap", "--variant=minbase", "--format=tar", f"--include={','.join(HOST_PACKAGES)}", SUITE, into, source,
         hint=f"Does the mirror have {SUITE}? It was read from /etc/apt: {debian_mirror()}")  # fmt: skip


def _golden(base: Path, into: Path) -> None:
    into.mkdir(mode=0o755)
    _run("tar", "-C", into, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", base)
    for key in into.glob("etc/ssh/ssh_host_*"):
        key.unlink()
    (into / "etc/resolv.conf").unlink(missing_ok=True)
    for name, (mode, text) in FILES.items():
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    # Debian has a group `operator` but no such user; an unusable password does not lock the account for keys.
    _run("chroot", into, "useradd", "-m", "-s", "/bin/bash", "-u", "1000", "-g", "operator", "-p", "*", "operator")
    _run("systemctl", f"--root={into}", "enable", "systemd-networkd.service", "ssh.service")
    for unit in MASKED:
        (into / "etc/systemd/system" / unit).unlink(missing_ok=True)
        (into / "etc/systemd/system" / unit).symlink_to("/dev/null")


def _pulumi(into: Path) -> None:
    into.mkdir()
    if not _from_path(into) and not _download(into):
        _build(into)
    for program in PROGRAMS:
        if not (into / program).exists():
            raise ToolsError(f"{program} is missing after the preparation of Pulumi {PULUMI}")


def _from_path(into: Path) -> bool:
    found = shutil.which("pulumi")
    if not found or PULUMI not in _run(found, "version"):
        return False
    beside = {program: Path(found).parent / program for program in PROGRAMS}
    if not all(path.exists() for path in beside.values()):
        return False
    for program, path in beside.items():
        (into / program).symlink_to(path)
    return True


def _download(into: Path) -> bool:
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    url = f"https://get.pulumi.com/releases/sdk/pulumi-v{PULUMI}-linux-{machine}.tar.gz"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer, tarfile.open(fileobj=answer, mode="r|gz") as archive:
            for member in archive:
                name = Path(member.name).name
                if name in PROGRAMS and (content := archive.extractfile(member)):
                    (into / name).write_bytes(content.read())
                    (into / name).chmod(0o755)
    except (OSError, tarfile.TarError):  # no way out of here: the Go module proxy may be reachable all the same
        return False
    return True


def _build(into: Path) -> None:
    go = find_go()
    if not go and not os.geteuid() and shutil.which("apt-get"):
        _run(*_APT, "install", "-y", "-qq", "--no-install-recommends", "golang-go")
        go = find_go()
    if not go:
        raise ToolsError(
            f"Pulumi {PULUMI} is not on PATH and cannot be downloaded; Go would build it. Install Go 1.25 or newer: https://go.dev/dl"
        )
    with _module(go, PULUMI, "github.com/pulumi/pulumi/pkg/v3", "cmd/pulumi") as (work, package):
        version = f"github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v{PULUMI}"
        _run(go, "build", "-tags", "osusergo,grpcnotrace", "-trimpath", "-ldflags", f"-s -w -X {version}", "-o", into / "pulumi", package, cwd=work,
             hint=f"{_run(go, 'version').strip()}; Pulumi needs Go 1.25 or newer")  # fmt: skip
        sdk = (
            Path(_run(go, "list", "-m", "-f", "{{.Dir}}", "github.com/pulumi/pulumi/sdk/v3", cwd=work).strip())
            / "python"
        )
        for script in (sdk / "cmd" / "pulumi-language-python-exec", sdk / "dist" / "pulumi-resource-pulumi-python"):
            shutil.copyfile(script, into / script.name)
            (into / script.name).chmod(0o755)
    with _module(go, LANGUAGE_HOST, "github.com/pulumi/pulumi/sdk/v3", "python/cmd/pulumi-language-python") as (
        work,
        package,
    ):
        _run(go, "build", "-trimpath", "-ldflags", "-s -w", "-o", into / "pulumi-language-python", package, cwd=work)


@contextmanager
def _module(go: str, version: str, module: str, package: str) -> Iterator[tuple[Path, str]]:
    """A throw-away module that imports one program: `go install` refuses modules with `replace`."""
    with tempfile.TemporaryDirectory(prefix="heliograph-go-") as work:
        both = {module, "github.com/pulumi/pulumi/sdk/v3"}
        clipboard = "github.com/atotto/clipboard => github.com/tgummerer/clipboard v0.0.0-20241001131231-d02d263e614e"
        lines = [
            "module tools",
            "go 1.21",
            *(f"require {name} v{version}" for name in sorted(both)),
            f"replace {clipboard}",
        ]
        Path(work, "go.mod").write_text("\n".join(lines) + "\n")
        Path(work, "tools.go").write_text(f'//go:build tools\n\npackage tools\n\nimport _ "{module}/{package}"\n')
        _run(go, "mod", "tidy", "-e", cwd=Path(work), hint="Is a Go module proxy reachable?")
        yield Path(work), f"{module}/{package}"


def _command_plugin(path: Path) -> None:
    """Pulumi finds `pulumi-resource-command` on PATH before it looks for an installed plugin."""
    provider = Path(__file__).with_name("command_provider.py")
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{provider}" "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def main() -> int:
    start = time.monotonic()
    try:
        tools = prepare(lambda line: print(line, flush=True))
    except ToolsError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{'ready':24} {time.monotonic() - start:6.1f} s  PATH={tools.bin}:$PATH")
    return 0


if __name__ == "__main__":
    sys.exit(main())
