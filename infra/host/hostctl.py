#!/usr/bin/env python3
"""What `pulumi up` runs on a host: puts a resource's files in place, starts its units, remembers both, and can take everything back.

    hostctl VERB < spec.json        facts | keys | image | install | plan | remove | run

Python's standard library only; each verb reads one JSON document from stdin, may be cut at any point and repeated, and does nothing the second time.
Every resource has a record in `/var/lib/heliograph/installed/`: the token of the run that installed it, a hash of each file, and what stood there before.
`facts` compares records and files, so that a hand-edited file is seen. Nothing here prints a file's content.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import platform
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STATE = Path("/var/lib/heliograph")
RECORDS = STATE / "installed"
KEYS = Path("/etc/heliograph/keys")
QUADLETS = Path("/etc/containers/systemd")
GENERATOR = Path("/usr/lib/systemd/system-generators/podman-system-generator")
IMAGE_FILE = Path("/etc/heliograph/controlplane.image")
START_SECONDS = 300
AT_LEAST = {"vm.max_map_count", "net.core.somaxconn"}
_TRIES = 3
_TRY_SECONDS = 120
_PODMAN_FAILED = 125


class HostError(Exception):
    """Shown to the operator as it is."""


def attempt(
    argv: Sequence[str], *, stdin: str | None = None, timeout: int = START_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a program, whatever its exit code. HostError when it is not there or does not end."""
    try:
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise HostError(f"{argv[0]} is not installed on {platform.node()}") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"`{' '.join(argv[:4])} …` did not end within {timeout} s") from None


def tell(text: str) -> None:
    """For the operator: Pulumi shows stderr beside the resource."""
    print(text, file=sys.stderr, flush=True)


def tries() -> Iterator[bool]:
    """Whether another try follows this one: three in all, a second apart, and none that would begin later than two minutes after the first."""
    begun = time.monotonic()
    for number in range(1, _TRIES + 1):
        more = number < _TRIES and time.monotonic() - begun < _TRY_SECONDS
        yield more
        if not more:
            return
        time.sleep(1)


def run(argv: Sequence[str], *, timeout: int = START_SECONDS, again: bool = False) -> str:
    """A program's stdout. HostError has what it said when it fails. `again`: it may be repeated; what failed first is told."""
    for more in tries() if again else [False]:
        done = attempt(argv, timeout=timeout)
        if not done.returncode:
            break
        why = f"`{' '.join(argv[:6])}` failed ({done.returncode}): {(done.stderr or done.stdout).strip()[-2000:]}"
        if not more:
            raise HostError(why)
        tell(f"{why}; trying again")
    return done.stdout


@contextmanager
def lock(name: str) -> Iterator[None]:
    """One hostctl at a time for a resource: a run that was cut on the operator's side may still be at work here."""
    while True:
        RECORDS.mkdir(parents=True, exist_ok=True)
        STATE.chmod(0o711)
        with (RECORDS / f".{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else a removal took the file away while this run waited for it
                yield
                return


def read_record(name: str) -> dict[str, Any]:
    """The record of a resource, {} when there is none."""
    try:
        return dict(json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def write_record(name: str, record: Mapping[str, Any]) -> None:
    """Replace the record, durably."""
    write(RECORDS / f"{name}.json", json.dumps(record, indent=1).encode(), 0o600)


def draft_of(path: Path) -> Path:
    """Where a file's next content is written. One name, so that what a cut run left is found again."""
    return path.with_name(f".{path.name}.heliograph-draft")


def write(path: Path, content: bytes, mode: int, uid: int = 0, gid: int = 0) -> None:
    """Replace a file in one step: a reader sees the old or the new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchown(handle, uid, gid)
            os.fchmod(handle, mode)
            file.write(content)
            file.flush()
            os.fsync(handle)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def owner(text: str) -> tuple[int, int]:
    """`(uid, gid)` of a user's name; root when empty."""
    if not text:
        return 0, 0
    try:
        found = pwd.getpwnam(text)
    except KeyError:
        raise HostError(
            f"there is no user {text} on {platform.node()}; the host's own resource creates it, run `pulumi up` again"
        ) from None
    return found.pw_uid, found.pw_gid


def fingerprint(path: Path) -> str:
    """Hash, mode and owner of a file as one text; "" when it is not there."""
    try:
        stat = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
    return f"{digest} {stat.st_mode & 0o7777:o} {stat.st_uid}:{stat.st_gid}"


# -- facts ---------------------------------------------------------------------------------------------------------------


def drift(record: Mapping[str, Any]) -> list[str]:
    """What differs on this host from what was installed, in words."""
    found = []
    for path, expected in record.get("files", {}).items():
        actual = fingerprint(Path(path))
        if actual != expected:
            found.append(f"{path} {'is gone' if not actual else 'was changed'}")
    for unit in record.get("units", []):
        state = attempt(["systemctl", "is-active", unit]).stdout.strip()
        if state != "active":
            found.append(f"{unit} is {state or 'unknown'}")
    if record.get("image") and attempt(["podman", "image", "exists", record["image"]]).returncode:
        found.append(f"the image {record['image']} is gone")
    found += [f"`{' '.join(probe)}` fails" for probe in record.get("probes", []) if attempt(probe).returncode]
    if record.get("pending"):
        found.append("an earlier run was cut while it installed this")
    return found


def listeners(ports: set[int]) -> dict[int, str]:
    """Port → the unit or program that listens on it, for those of `ports` that are taken."""
    found: dict[int, str] = {}
    if not shutil.which("ss"):  # iproute2 comes with the host's packages
        return found
    for line in attempt(["ss", "-Hltnp"]).stdout.splitlines():
        fields = line.split()
        port = int(fields[3].rpartition(":")[2])
        if port not in ports:
            continue
        match = re.search(r'\("([^"]+)",pid=(\d+)', line)
        found[port] = match[1] if match else "another program"
        if match:
            try:
                cgroup = Path(f"/proc/{match[2]}/cgroup").read_text(encoding="utf-8")
            except OSError:
                cgroup = ""
            unit = re.search(r"heliograph-[a-z0-9@-]+\.service", cgroup)
            found[port] = unit[0] if unit else found[port]
    return found


def free_bytes(path: str) -> int:
    """Free space of the file system that will hold `path`."""
    place = Path(path)
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def tool() -> dict[str, str]:
    """Hash and last line of this program as it is installed; empty when it is not."""
    try:
        text = Path("/usr/local/lib/heliograph/hostctl").read_bytes()
    except OSError:
        return {"sha256": "", "last": ""}
    return {"sha256": hashlib.sha256(text).hexdigest(), "last": text.decode(errors="replace").splitlines()[-1]}


def trusts(path: Path) -> list[str]:
    """SHA-256 of each certificate (DER) in a PEM file; [] when it is not there."""
    text = path.read_text(encoding="ascii", errors="replace") if path.is_file() else ""
    found = re.findall(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", text, re.DOTALL)
    return [hashlib.sha256(base64.b64decode("".join(body.split()))).hexdigest() for body in found]


def facts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What this host is and has: for preflight and `verify`. Changes nothing."""
    release = dict(
        line.partition("=")[::2]
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
        if "=" in line
    )
    podman = attempt(["podman", "--version"]).stdout if shutil.which("podman") else ""
    records = {path.stem: read_record(path.stem) for path in sorted(RECORDS.glob("*.json"))} if RECORDS.is_dir() else {}
    certificates, signed_by = {}, set()
    for path in sorted(Path("/etc/heliograph/tls").glob("*.pem")) if Path("/etc/heliograph/tls").is_dir() else []:
        said = attempt(["openssl", "x509", "-noout", "-enddate", "-in", str(path)]).stdout
        certificates[path.name] = said.strip().removeprefix("notAfter=")
        if path.name != "ca.pem":
            said = attempt(["openssl", "x509", "-noout", "-ext", "authorityKeyIdentifier", "-in", str(path)]).stdout
            signed_by |= {
                found.replace(":", "").lower() for found in re.findall(r"(?:[0-9A-F]{2}:){15,}[0-9A-F]{2}", said)
            }
    data = {}
    for name, folder in spec.get("data", {}).items():
        marker = Path(folder) / "heliograph.json"
        data[name] = {
            "used": (Path(folder) / "WiredTiger").exists(),
            "marker": json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None,
        }
    return {
        "hostname": platform.node(),
        "os": {"id": release.get("ID", "").strip('"'), "version": release.get("VERSION_ID", "").strip('"')},
        "podman": podman.split()[-1] if podman else "",
        "systemd": Path("/run/systemd/system").is_dir(),
        "cgroup2": Path("/sys/fs/cgroup/cgroup.procs").exists(),
        "container": attempt(["systemd-detect-virt", "--container"]).stdout.strip() not in ("", "none"),
        "root": os.geteuid() == 0,
        "time": time.time(),
        "time_kept": attempt(["timedatectl", "show", "--property=NTPSynchronized", "--value"]).stdout.strip() == "yes",
        "cpus": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "free": {path: free_bytes(path) for path in spec.get("paths", [])},
        "ports": {str(port): who for port, who in listeners(set(spec.get("ports", []))).items()},
        "data": data,
        "certificates": certificates,
        "authority": fingerprint(Path("/etc/heliograph/tls/ca.pem")).partition(" ")[0],
        "trusts": trusts(Path("/etc/heliograph/tls/ca.pem")),
        "signed_by": sorted(signed_by),
        "tool": tool(),
        "installed": {name: {"token": r.get("token", ""), "drift": drift(r)} for name, r in records.items()},
    }


# -- keys ----------------------------------------------------------------------------------------------------------------


def keys(spec: Mapping[str, Any]) -> dict[str, str]:
    """Role → certificate request. Private keys are made here, once for each generation, and never leave the host; those of others go."""
    requests = {}
    files = {}
    with lock("keys"):
        KEYS.mkdir(parents=True, exist_ok=True)
        KEYS.chmod(0o700)
        for role in spec["roles"]:
            path = KEYS / f"{role}.{spec['generation']}.key"
            if not path.exists():
                text = run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
                write(path, text.encode(), 0o600)
            requests[role] = run(["openssl", "req", "-new", "-key", str(path), "-subj", f"/CN={role}"])
            files[str(path)] = fingerprint(path)
        for path in KEYS.glob("*.key"):
            if str(path) not in files:
                path.unlink()
        write_record("keys", {"token": spec["token"], "files": files, "units": []})
    return requests


# -- images --------------------------------------------------------------------------------------------------------------


def image(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Have an image by digest: loaded from the archive that was copied here, or pulled."""
    name, reference = spec["name"], spec["reference"]
    with lock(name):
        changed = attempt(["podman", "image", "exists", reference]).returncode != 0
        archive = Path(spec["archive"]) if spec.get("archive") else None
        if changed:
            if archive:
                if not archive.is_file():
                    raise HostError(f"{archive} is not there; it is copied before this step, run `pulumi up` again")
                run(["podman", "load", "-q", "-i", str(archive)], timeout=1800, again=True)
            else:
                run(["podman", "pull", "-q", reference], timeout=1800, again=True)
            if attempt(["podman", "image", "exists", reference]).returncode:
                raise HostError(
                    f"the image that was {'loaded' if archive else 'pulled'} is not {reference}; correct the digest in the stack's configuration"
                )
        if archive:
            archive.unlink(missing_ok=True)
        files: dict[str, str] = {}
        if spec.get("current"):
            write(IMAGE_FILE, reference.encode(), 0o644)
            files[str(IMAGE_FILE)] = fingerprint(IMAGE_FILE)
        images = [*(known for known in read_record(name).get("images", []) if known != reference), reference]
        for old in images[:-2]:  # the one before stays, for the way back
            attempt(["podman", "rmi", old])
        token = spec.get("token", read_record(name).get("token", ""))
        record = {"token": token, "image": reference, "images": images[-2:], "files": files, "units": []}
        write_record(name, record)
    return {"changed": changed}


# -- install and remove --------------------------------------------------------------------------------------------------


def absent_users(users: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that this host does not have."""
    known = {user.pw_name for user in pwd.getpwall()}
    return [user for user in users if user["name"] not in known]


def make_users(users: Iterable[Mapping[str, Any]]) -> None:
    """System users without login, for the containers' processes and their files."""
    for user in absent_users(users):
        number = str(user["uid"])
        attempt(["groupadd", "--system", "--gid", number, user["name"]])  # a cut run may have made it already
        options = ["--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        run(["useradd", "--uid", number, "--gid", number, *options, user["name"]])


def absent_folders(spec: Mapping[str, Any]) -> list[str]:
    """The directories that this host does not have and that the spec's directories and files bring with them."""
    wanted = [Path(folder["path"]) for folder in spec.get("directories", [])]
    wanted += [Path(file["path"]).parent for file in spec.get("files", [])]
    return [str(path) for folder in wanted for path in (folder, *folder.parents) if not path.exists()]


def add_packages(packages: Iterable[str]) -> list[str]:
    """Install what is missing."""
    missing = [p for p in packages if "ok installed" not in attempt(["dpkg-query", "-W", "-f", "${Status}", p]).stdout]
    if missing:
        # A fresh host is often busy with its own first upgrade.
        apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]
        apt += ["-o", "Acquire::Retries=3"]
        run([*apt, "update", "-qq"], timeout=600)
        run([*apt, "install", "-y", "-qq", "--no-install-recommends", *missing], timeout=1800)
    return missing


def set_kernel(settings: Mapping[str, int], name: str, record: dict[str, Any]) -> list[str]:
    """sysctl values that the running kernel does not have yet; the former ones are remembered. A container cannot change its host's: said, not failed."""
    cannot = []
    former = record.setdefault("kernel", {})
    for setting, value in settings.items():
        path = Path("/proc/sys") / setting.replace(".", "/")
        remembered = setting in former
        try:
            now = path.read_text(encoding="ascii").split()
            if now == str(value).split() or (setting in AT_LEAST and int(now[0]) >= value):
                continue
            if not remembered:
                former[setting] = " ".join(now)
                write_record(name, record | {"pending": True})
            path.write_text(str(value), encoding="ascii")
        except OSError as error:
            if not remembered:
                former.pop(setting, None)
            cannot.append(f"{setting}={value} ({error.strerror})")
    if cannot and attempt(["systemd-detect-virt", "--container"]).stdout.strip() in ("", "none"):
        raise HostError(
            f"the kernel refuses {', '.join(cannot)}; set it by hand, or allow it, and run `pulumi up` again"
        )
    return cannot


def check_quadlets(files: Iterable[Mapping[str, str]]) -> None:
    """The real generator must accept every quadlet before any file is replaced."""
    quadlets = {Path(f["path"]).name: f["content"] for f in files if Path(f["path"]).parent == QUADLETS}
    if not quadlets:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, text in quadlets.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        done = subprocess.run(
            [str(GENERATOR), "--dryrun"],
            env={"QUADLET_UNIT_DIRS": folder, "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or "unsupported key" in done.stderr:
            raise HostError(f"podman's generator refuses the quadlet: {done.stderr.strip()[-1500:]}")


def content_of(file: Mapping[str, str]) -> bytes:
    """The bytes of a file: as given, behind the private key that `prepend` names on this host."""
    text = file["content"].encode()
    return Path(file["prepend"]).read_bytes() + text if file.get("prepend") else text


def place(spec: Mapping[str, Any], record: dict[str, Any]) -> list[str]:
    """Write the files that differ; those that no longer belong go. Returns the paths that changed.

    What stood there, and what comes, is in the record before the first file is replaced: a run that is cut in between loses neither.
    """
    changed = []
    drafts = []
    for file in spec.get("files", []):
        path = Path(file["path"])
        uid, gid = owner(file.get("owner", ""))
        content, mode = content_of(file), int(file.get("mode", "644"), 8)
        expected = f"{hashlib.sha256(content).hexdigest()} {mode:o} {uid}:{gid}"
        if fingerprint(path) != expected:
            if path.exists() and str(path) not in record["files"]:
                keep(path, record)
            drafts.append((path, content, mode, uid, gid))
            changed.append(str(path))
        record["files"][str(path)] = expected
    write_record(spec["name"], record | {"pending": True})
    for path, content, mode, uid, gid in drafts:
        write(path, content, mode, uid, gid)
    for dropped in dropped_files(spec, record):
        put_back(dropped, record)
        changed.append(dropped)
    return changed


def dropped_files(spec: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """What the record has and the spec does not. `keep` of the spec: paths that stay as they are, whose content the caller does not have (keys)."""
    named = {file["path"] for file in spec.get("files", [])} | set(spec.get("keep", []))
    return [path for path in record["files"] if path not in named]


def keep(path: Path, record: dict[str, Any]) -> None:
    """Remember a file of somebody else that stands where ours goes."""
    stat = path.stat()
    record.setdefault("before", {})[str(path)] = {
        "content": base64.b64encode(path.read_bytes()).decode(),
        "mode": f"{stat.st_mode & 0o7777:o}",
        "uid": stat.st_uid,
        "gid": stat.st_gid,
    }


def put_back(path: str, record: dict[str, Any]) -> None:
    """Remove our file; restore the one that was there."""
    record["files"].pop(path, None)
    draft_of(Path(path)).unlink(missing_ok=True)
    before = record.get("before", {}).pop(path, None)
    if before:
        write(Path(path), base64.b64decode(before["content"]), int(before["mode"], 8), before["uid"], before["gid"])
    else:
        Path(path).unlink(missing_ok=True)


def start(units: Iterable[str], spec: Mapping[str, Any], how: str) -> None:
    """`start` or `restart` units and wait until they say that they are ready; on failure, with the end of their journal."""
    guard = spec.get("guard") if how == "restart" else None
    for unit in units:
        verb = "reload-or-restart" if how == "restart" and unit in spec.get("reloadable", []) else how
        running = attempt(["systemctl", "is-active", unit]).stdout.strip() == "active"
        if running and guard:
            controlplane(guard["before"])
        bring_up(unit, verb)
        if running and guard:
            controlplane(guard["after"])


def bring_up(unit: str, verb: str) -> None:
    """Until it says that it is ready. A start may fail for a moment's reason (an election, a systemd that is out of something): it is tried again, and told."""
    for more in tries():
        done = attempt(["systemctl", verb, unit])
        if not done.returncode:
            return
        reason = done.stderr.strip()
        if not more:
            raise HostError(f"{unit} does not start: {reason}\n{journal(unit, 25)}")
        tell(f"{journal(unit, 5)}\n{unit} is started again, since it failed: {' '.join(reason.split())}")
        verb = "restart" if verb == "reload-or-restart" else verb


def journal(unit: str, lines: int) -> str:
    """The end of what a unit said, without podman's own events (they have a monotonic clock)."""
    said = attempt(["journalctl", "-u", unit, "-n", "100", "--no-pager", "-o", "cat"]).stdout.splitlines()
    return "\n".join([line for line in said if " UTC m=+" not in line and line.strip()][-lines:])[-3000:]


def install(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Bring one resource's users, packages, directories, files, kernel settings and units to what the spec says."""
    name = spec["name"]
    check_quadlets(spec.get("files", []))
    with lock(name):
        record = {"files": {}, "units": []} | read_record(name)
        installed = add_packages(spec.get("packages", []))
        users = [user["name"] for user in absent_users(spec.get("users", []))]
        record["users"] = sorted({*record.get("users", []), *users})
        record["directories"] = sorted({*record.get("directories", []), *absent_folders(spec)})
        write_record(name, record | {"pending": True})
        make_users(spec.get("users", []))
        for folder in spec.get("directories", []):
            path = Path(folder["path"])
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, *owner(folder.get("owner", "")))
            path.chmod(int(folder.get("mode", "755"), 8))
        for marker, content in spec.get("markers", {}).items():
            if not Path(marker).exists():
                write(Path(marker), json.dumps(content).encode(), 0o644)
        changed = place(spec, record)
        interrupted = record.pop("pending", False)
        record["units"] = spec.get("units", [])
        record["purge"] = spec.get("purge", [])
        record["probes"] = spec.get("probes", [])
        write_record(name, record | {"pending": True})
        cannot = set_kernel(spec.get("kernel", {}), name, record)
        if changed or interrupted:
            run(["systemctl", "daemon-reload"], again=True)
        record["enable"] = spec.get("enable", [])
        if record["enable"]:
            run(["systemctl", "enable", "-q", *record["enable"]], again=True)
        for unit in spec.get("reload", []) if changed else []:
            run(["systemctl", "try-reload-or-restart", unit], again=True)
        record["reload"] = spec.get("reload", [])
        if changed or interrupted:
            start(record["units"], spec, "restart")
        else:
            stopped = [u for u in record["units"] if attempt(["systemctl", "is-active", u]).stdout.strip() != "active"]
            start(stopped, spec, "start")
        write_record(name, record | {"token": spec.get("token", record.get("token", ""))})
    return {"changed": changed, "packages": installed, "kernel_cannot": cannot}


def plan(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What `install`, or `image` for a spec with a reference, would do. Changes nothing. Paths: whose files differ, units: which would be started."""
    if "reference" in spec:
        absent = attempt(["podman", "image", "exists", spec["reference"]]).returncode != 0
        current = IMAGE_FILE.read_text(encoding="ascii") if IMAGE_FILE.is_file() else ""
        turned = bool(spec.get("current")) and current != spec["reference"]
        return {"paths": [], "units": [], "absent": absent, "turned": turned, "change": absent or turned}
    record = {"files": {}, "units": []} | read_record(spec["name"])
    paths = []
    for file in spec.get("files", []):
        uid, gid = owner(file.get("owner", ""))
        wanted = f"{hashlib.sha256(content_of(file)).hexdigest()} {int(file.get('mode', '644'), 8):o} {uid}:{gid}"
        if fingerprint(Path(file["path"])) != wanted:
            paths.append(file["path"])
    paths += dropped_files(spec, record)
    units = spec.get("units", [])
    restarted = paths or record.get("pending")
    stopped = [u for u in units if restarted or attempt(["systemctl", "is-active", u]).stdout.strip() != "active"]
    return {"paths": paths, "units": stopped, "change": bool(paths or stopped or record.get("pending"))}


def remove(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Take a resource back: units stopped, files gone or as they were, users and kernel settings of ours too. Data stays unless `purge` named it."""
    name = spec["name"]
    with lock(name):
        record = {"files": {}, "units": []} | read_record(name)
        for unit in record["units"]:
            attempt(["systemctl", "stop", unit])
        if record.get("enable"):
            attempt(["systemctl", "disable", "-q", *record["enable"]])
        for path in list(record["files"]):
            put_back(path, record)
        attempt(["systemctl", "daemon-reload"])
        for unit in record["units"]:
            attempt(["systemctl", "reset-failed", unit])
        for unit in record.get("reload", []):
            attempt(["systemctl", "try-reload-or-restart", unit])
        for setting, value in record.get("kernel", {}).items():
            with suppress(OSError):  # of a container: it was its host's, and never changed
                (Path("/proc/sys") / setting.replace(".", "/")).write_text(value, encoding="ascii")
        for folder in record.get("purge", []):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in sorted(record.get("directories", []), key=len, reverse=True):
            try:
                Path(folder).rmdir()
            except OSError:
                continue
        for user in record.get("users", []):
            attempt(["userdel", user])
        for image_known in record.get("images", []):
            attempt(["podman", "rmi", image_known])
        (RECORDS / f"{name}.json").unlink(missing_ok=True)
        (RECORDS / f".{name}.lock").unlink(missing_ok=True)
    sweep()
    return {}


def sweep() -> None:
    """Remove our own empty directories once the last resource is gone."""
    if any(RECORDS.glob("*.json")):
        return
    shutil.rmtree(KEYS, ignore_errors=True)
    IMAGE_FILE.unlink(missing_ok=True)
    shutil.rmtree(RECORDS, ignore_errors=True)
    for folder in (
        "/etc/heliograph/tls",
        "/etc/heliograph/mongod",
        "/etc/heliograph/node",
        "/etc/heliograph/ledger",
        "/etc/heliograph",
        str(STATE),
    ):
        try:
            Path(folder).rmdir()
        except OSError:
            continue


# -- run -----------------------------------------------------------------------------------------------------------------


def controlplane(spec: Mapping[str, Any]) -> str:
    """Run the control plane's image once: {argv, user, volumes, environment, stdin, timeout, accept (exit codes besides 0)}. Its stdout."""
    argv = [
        "podman",
        "run",
        "--rm",
        "-i",
        "--network=host",
        "--read-only",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--pull=never",
    ]
    uid, gid = owner(spec.get("user", "heliograph"))
    argv += [f"--user={uid}:{gid}"]
    for volume in spec.get("volumes", []):
        argv += ["--volume", volume]
    for name, value in spec.get("environment", {}).items():
        argv += ["--env", f"{name}={value}"]
    argv += [IMAGE_FILE.read_text(encoding="ascii"), *spec["argv"]]
    for more in tries():
        done = attempt(argv, stdin=spec.get("stdin", ""), timeout=spec.get("timeout", 600))
        if done.returncode != _PODMAN_FAILED or not more:
            break
        tell(f"podman could not run {' '.join(spec['argv'][:2])}: {done.stderr.strip()[-2000:]}; trying again")
    if done.returncode not in (0, *spec.get("accept", [])):
        raise HostError((done.stderr.strip() or done.stdout.strip())[-3000:])
    if done.stderr.strip():
        tell(done.stderr.strip())
    return done.stdout


VERBS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "facts": facts,
    "keys": keys,
    "image": image,
    "install": install,
    "plan": plan,
    "remove": remove,
}


def read_spec() -> dict[str, Any]:
    """The JSON object on stdin. HostError says where it breaks off, never what it holds."""
    try:
        spec = json.load(sys.stdin)
    except ValueError as error:
        raise HostError(f"the specification on stdin is not JSON ({error}); was the run cut?") from None
    if not isinstance(spec, dict):
        raise HostError("the specification on stdin is not a JSON object")
    return spec


def main(arguments: Sequence[str]) -> None:
    """Exit code 1 and one message on stderr when something is not as it must be."""
    if len(arguments) != 1 or arguments[0] not in {*VERBS, "run"}:
        raise SystemExit(f"usage: hostctl {' | '.join([*VERBS, 'run'])} < spec.json")
    try:
        spec = read_spec()
        print(controlplane(spec).strip() if arguments[0] == "run" else json.dumps(VERBS[arguments[0]](spec)))
    except KeyError as error:
        raise SystemExit(f"{platform.node()}: the specification lacks {error}") from None
    except (HostError, OSError) as error:
        raise SystemExit(f"{platform.node()}: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
