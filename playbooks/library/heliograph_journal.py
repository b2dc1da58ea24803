#!/usr/bin/python
"""One line in an operation's journal, on the disk before the step goes on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: heliograph_journal
short_description: Write down that a step begins, is done, or must be taken back
description:
  - Appends one line of JSON and syncs it, so that whoever comes after a cut knows what was under way and what is to be taken back.
options:
  path:
    description: The journal; "" keeps none.
    type: str
    required: true
  entry:
    description: "What: C(begun) or C(done) of a step, C(owed) or C(settled) of something to be taken back, C(expected) so many steps, C(passed) one of them."
    type: str
    required: true
    choices: [begun, done, owed, settled, expected, passed]
  step:
    description: Its name. What is owed has the name by which abort knows what to do. Of C(expected) the number.
    type: str
    required: true
author: Heliograph
"""

EXAMPLES = r"""
- name: Write down that the balancer must run again
  heliograph_journal:
    path: "{{ heliograph_journal }}"
    entry: owed
    step: balancer
"""

RETURN = "# nothing"


def main() -> None:
    """One line."""
    options = {
        "path": {"type": "str", "required": True},
        "entry": {
            "type": "str",
            "required": True,
            "choices": ["begun", "done", "owed", "settled", "expected", "passed"],
        },
        "step": {"type": "str", "required": True},
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    if module.params["path"] and not module.check_mode:
        line = {"at": time.time(), "entry": module.params["entry"], "step": module.params["step"]}
        handle = os.open(Path(module.params["path"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, b"\n" + json.dumps(line).encode() + b"\n")  # the first one ends a line that was cut
            os.fsync(handle)
        finally:
            os.close(handle)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
