"""`python -m infra.up STACK`: `pulumi up`, or with `--preview` what it would do, for programs that may be cut.

Prints `{"changed": bool, "did": "3 updated, 40 unchanged"}`. An `up` whose caller is killed ends in good order: the engine, in a session of its own, is told to
stop (SIGINT), lets what is under way come to its end, and writes its state. The next one waits for it; the lock of an engine that is no more is broken.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from infra.config import ConfigError
from infra.engine import pulumi_cli

__all__ = ["Ran", "counted", "main", "owner", "run"]

_LOCKED = "the stack is currently locked"
_WAIT_SECONDS = 600.0
_PAUSE_SECONDS = 3.0
_SAID = 4000
_COUNT = re.compile(
    r"^\s+[-+~!=]* ?(\d+) (created|updated|deleted|replaced|unchanged|to create|to update|to delete|to replace|to same|imported)$",
    re.MULTILINE,
)
_OWNER = re.compile(r"created by \S*?@(\S+) \(pid (\d+)\)")


class Ran(dict[str, int]):
    """How many resources were created, updated …, or are to be."""

    @property
    def changed(self) -> bool:
        """Anything."""
        return any(count for what, count in self.items() if what not in ("unchanged", "to same"))

    def __str__(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in self.items())


def counted(text: str) -> Ran:
    """From the `Resources:` that pulumi ends with."""
    return Ran({what: int(count) for count, what in _COUNT.findall(text.rpartition("Resources:")[2])})


def owner(text: str) -> tuple[str, int] | None:
    """(host, process) that holds the lock which pulumi complains of; None where the backend tells neither."""
    found = _OWNER.search(text)
    return (found[1], int(found[2])) if found else None


def _argv(verb: str, stack: str, options: list[str]) -> list[str]:
    program, setpriv = shutil.which("pulumi"), shutil.which("setpriv")
    if program is None:
        raise ConfigError("pulumi is not on PATH; https://www.pulumi.com/docs/install says how to get it")
    argv = [program, verb, "--stack", stack, "--non-interactive", "--color=never", "--suppress-progress", *options]
    return [setpriv, "--pdeathsig", "INT", *argv] if setpriv else argv


def run(verb: str, stack: str, options: list[str]) -> Ran:
    """`pulumi up` or `preview`. ConfigError with what it said."""
    argv = _argv(verb, stack, options)
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        code, said = _engine(argv)
        if not code:
            return counted(said)
        if _LOCKED not in said or time.monotonic() > end:
            raise ConfigError(f"pulumi {verb} of {stack}: {said.strip()[-_SAID:]}")
        holder = owner(said)
        if holder is not None and holder[0] == platform.node() and not Path(f"/proc/{holder[1]}").exists():
            pulumi_cli("cancel", "--yes", "--stack", stack)
            continue
        time.sleep(_PAUSE_SECONDS)


def _engine(argv: list[str]) -> tuple[int, str]:
    """(exit code, what it said). Into a file without a name: a pipe that breaks with its reader would end the engine in the middle."""
    with tempfile.TemporaryFile() as out:
        done = subprocess.run(  # noqa: S603 - pulumi
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, check=False, start_new_session=True
        )
        out.seek(0)
        return done.returncode, out.read().decode(errors="replace")


def main(arguments: list[str] | None = None) -> None:
    """Exit code 2 with what pulumi said when it failed."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.up", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stack")
    parser.add_argument("--preview", action="store_true", help="change nothing")
    parser.add_argument("--expect-no-changes", action="store_true", help="with --preview: fail where there are some")
    options = parser.parse_args(arguments)
    try:
        if options.preview:
            found = run("preview", options.stack, ["--diff"])
        else:
            found = run("up", options.stack, ["--yes", "--skip-preview"])
    except ConfigError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(2) from None
    if options.expect_no_changes and found.changed:
        sys.stderr.write(
            f"Error: what is declared for {options.stack} is not what stands ({found}); bring it there first: `pulumi up --stack {options.stack}`, or `heliograph ops upgrade`\n"
        )
        raise SystemExit(2)
    sys.stdout.write(json.dumps({"changed": found.changed, "did": str(found)}) + "\n")


if __name__ == "__main__":
    main()
