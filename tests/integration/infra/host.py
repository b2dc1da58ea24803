"""A host for `hostctl`: the real program as root in its own mount namespace, with an /etc, a /var/lib and a /var/log of its own.

useradd, openssl, mount and the file system are real. What a build machine lacks (systemd, podman, apt) are small scripts on PATH that keep their state in files,
so that it can be seen what was called, and with which configuration a unit runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["HOSTCTL", "SandboxHost", "why_not"]

HOSTCTL = Path(__file__).parents[3] / "infra" / "host" / "hostctl.py"
_BASE = ("passwd", "group", "shadow", "gshadow", "login.defs", "nsswitch.conf", "ld.so.cache", "ssl/openssl.cnf")
_GENERATORS = "/usr/lib/systemd/system-generators"
_ENTER = f"""
mount --bind "$1/etc" /etc && mount --bind "$1/var-lib" /var/lib && mount --bind "$1/var-log" /var/log &&
mount --bind "$1/generators" {_GENERATORS} || exit 99
shift
exec "$@"
"""

# Each stands for the program of its name. $S is where it keeps what it knows.
_PROGRAMS = {
    "systemctl": """
echo "systemctl $*" >> $S/calls
case "$1" in
is-active) [ -e "$S/active/$2" ] && echo active && exit 0; echo inactive; exit 3;;
start|restart|reload-or-restart)
  if [ -e "$S/fail/$2" ]; then  # for ever, or as often as it says
    left=$(cat "$S/fail/$2")
    case "$left" in ""|0) ;; 1) rm "$S/fail/$2";; *) echo $((left - 1)) > "$S/fail/$2";; esac
    echo "Job for $2 failed" >&2; exit 1
  fi
  echo "begin $2" >> $S/restarts; sleep "$(cat $S/slow 2>/dev/null || echo 0)"; echo "end $2" >> $S/restarts
  # What it runs with: the files as they are now.
  cat /etc/demo/*.conf > "$S/active/$2" 2>/dev/null; exit 0;;
stop) rm -f "$S/active/$2";;
esac""",
    "podman": """
echo "podman $*" >> $S/calls
case "$1 $2" in
"--version "*) echo "podman version 5.4.2";;
"image exists") grep -qxF "$3" $S/images;;
"load -q") cat "$4" >> $S/images;;
"pull -q") cat $S/registry >> $S/images;;
"rmi "*) grep -vxF "$2" $S/images > $S/images.new; mv $S/images.new $S/images;;
"run "*)
  cat > $S/stdin
  [ -s $S/podman-fails ] && { sed -i 1d $S/podman-fails; echo "OCI runtime error" >&2; exit 125; }
  cat $S/answer; cat $S/complaint >&2; exit "$(cat $S/code)";;
esac""",
    "dpkg-query": '[ -e "$S/missing/$4" ] || echo "install ok installed"',
    "apt-get": """
echo "apt-get $*" >> $S/calls
case " $* " in *" install "*) rm -f $S/missing/*;; esac""",
    "journalctl": 'echo "the journal of $2"',
    "ss": "cat $S/listeners",
    "systemd-detect-virt": "cat $S/virt",
    "timedatectl": "echo yes",
}
# Kills itself, with SIGKILL, before or after the n-th thing that it does to the file system or has another program do.
_CUT = """
import os, pathlib, runpy, subprocess, sys
counter, left = sys.argv[1], int(sys.argv[2])
sys.argv = sys.argv[3:]
done = 0
def step():
    global done
    done += 1
    if done == left:
        os.kill(os.getpid(), 9)
def cut(owner, name):
    real = getattr(owner, name)
    def wrapped(*args, **kwargs):
        step()
        result = real(*args, **kwargs)
        step()
        return result
    setattr(owner, name, wrapped)
for owner, names in ((os, ("fsync", "chown", "fchmod")), (pathlib.Path, ("replace", "unlink", "mkdir", "chmod")), (subprocess, ("run",))):
    for name in names:
        cut(owner, name)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    pathlib.Path(counter).write_text(str(done))
"""


def why_not() -> str:
    """Why there can be no such host here; empty when there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root"
    absent = [name for name in ("unshare", "mount", "useradd", "userdel", "openssl") if not shutil.which(name)]
    if absent or not Path(_GENERATORS).is_dir():
        return f"needs {', '.join(absent) or _GENERATORS}"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"no mount namespace: {done.stderr.strip()}" if done.returncode else ""


class SandboxHost:
    """One host below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.etc, self.lib, self.state = root / "etc", root / "var-lib", root / "state"
        for folder in (self.etc, self.lib, root / "var-log", root / "bin", root / "generators", self.state):
            folder.mkdir(parents=True)
        for name in ("active", "fail", "missing"):
            (self.state / name).mkdir()
        for name in ("calls", "restarts", "images", "registry", "listeners", "answer", "complaint"):
            (self.state / name).touch()
        (self.state / "virt").write_text("none\n")
        (self.state / "code").write_text("0")
        for name in _BASE:
            if (source := Path("/etc", name)).exists():
                (self.etc / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, self.etc / name)
        (self.etc / "os-release").write_text('ID=debian\nVERSION_ID="13"\n')
        for name, body in _PROGRAMS.items():
            self._program(root / "bin" / name, body)
        self._program(
            root / "generators" / "podman-system-generator",
            'if grep -q "^Broken=" $QUADLET_UNIT_DIRS/*; then echo "unsupported key Broken" >&2; exit 1; fi',
        )
        (root / "cut.py").write_text(_CUT)

    def _program(self, path: Path, body: str) -> None:
        path.write_text(f"#!/bin/sh\nS={self.state}\n{body}\n")
        path.chmod(0o755)

    def start(self, verb: str, cut: int | None = None) -> subprocess.Popen[str]:
        """The program, waiting for its specification. `cut`: the step at which it is killed."""
        program = [str(HOSTCTL)]
        if cut is not None:
            program = [str(self.root / "cut.py"), str(self.state / "steps"), str(cut), *program]
        return subprocess.Popen(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                _ENTER,
                "sh",
                str(self.root),
                sys.executable,
                "-IS",
                *program,
                *verb.split(),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": f"{self.root}/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )

    def ask(self, verb: str, spec: dict[str, Any] | str, cut: int | None = None) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        process = self.start(verb, cut)
        out, err = process.communicate(spec if isinstance(spec, str) else json.dumps(spec), timeout=60)
        return process.returncode, out, err

    def do(self, verb: str, spec: dict[str, Any]) -> Any:
        """The answer of a verb that must succeed."""
        code, out, err = self.ask(verb, spec)
        assert code == 0, err
        return json.loads(out)

    def refused(self, verb: str, spec: dict[str, Any] | str) -> str:
        """What a verb that must fail says. One message, no traceback."""
        code, _, err = self.ask(verb, spec)
        assert code == 1, err
        assert "Traceback" not in err
        return err.strip()

    def record(self, name: str) -> dict[str, Any]:
        return json.loads((self.lib / "heliograph/installed" / f"{name}.json").read_text())

    def restarts(self) -> list[str]:
        return (self.state / "restarts").read_text().splitlines()

    def calls(self) -> list[str]:
        return (self.state / "calls").read_text().splitlines()

    def tree(self) -> dict[str, tuple[str, int, int, str]]:
        """Everything on the host's disk: path → mode, owner, group, hash. Without the copies that useradd makes."""
        found = {}
        for base in (self.etc, self.lib):
            for path in sorted(base.rglob("*")):
                if path.parent == self.etc and (path.name.endswith("-") or path.name == ".pwd.lock"):
                    continue
                stat = path.lstat()
                digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                found[str(path.relative_to(self.root))] = (f"{stat.st_mode:o}", stat.st_uid, stat.st_gid, digest)
        return found
