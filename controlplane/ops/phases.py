"""Operations that go through several declared states: `python -m infra.changes` says which comes next, one run of the playbook brings it.

Between two phases everything is read anew, since a phase may change what there is to be read: hosts, the SSH key, the API key, the authority.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from controlplane.errors import ConfigError
from controlplane.ops.desired import Desired, desired
from controlplane.ops.runner import Done, Event, play

__all__ = ["ask", "perform"]

_SAID = 4000


def ask(verb: str, stack: str, kind: str, *, by: str = "", peer: str = "", variables: Mapping[str, str]) -> Any:
    """What `infra.changes` answers. ConfigError with its sentence."""
    argv = [sys.executable, "-m", "infra.changes", verb, stack, kind, "--by", by, "--peer", peer]
    argv += ["--variables", json.dumps(dict(variables))]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    if done.returncode:
        raise ConfigError(done.stderr.strip().removeprefix("Error: ")[-_SAID:])
    return json.loads(done.stdout)


def perform(
    stack: str,
    playbook: str,
    kind: str,
    by: str,
    given: Mapping[str, str],
    variables: Mapping[str, Any],
    *,
    tell: Callable[[Event], None],
    canceled: Callable[[], bool],
    turned: Callable[[Desired], None],
) -> Done:
    """Phase after phase, then a last run that looks at what became of them. `turned` hears what is declared before each. Blocks, as `play`."""
    changed, last = 0, ""
    while True:
        try:
            phase = ask("next", stack, kind, by=by, variables=given)
            known = desired(stack)
        except ConfigError as error:
            return Done("failed", changed, str(error))
        turned(known)
        name = phase.get("phase", "")
        if name and name == last:
            return Done(
                "failed", changed, f"The phase {name} was taken, and {kind} does not go on from it. Run it again."
            )
        if name:
            tell(Event("ok", f"{name}: {phase['says']}", stack))
        state = {
            "heliograph_change": {"stack": stack, "kind": kind, "by": by, "variables": json.dumps(dict(given))},
            "heliograph_phase": phase,
            "heliograph_project": str(Path.cwd()),
        }
        done = play(known, playbook, {**variables, **state}, tell=tell, canceled=canceled)
        changed, last = changed + done.changed, name
        if done.status != "successful" or not name:
            return replace(done, changed=changed)
        if canceled():
            return Done("canceled", changed)
