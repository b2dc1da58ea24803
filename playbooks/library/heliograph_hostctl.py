#!/usr/bin/python
"""The host's own tool as an Ansible module: check mode, diffs, and one word for whether anything changed."""

from __future__ import annotations

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: heliograph_hostctl
short_description: Run a verb of hostctl, the tool that `pulumi up` installs on a host
description:
  - Gives the specification to hostctl on stdin. C(install) and C(image) are asked first what they would do, so that check mode and diffs are honest.
  - C(run) changes what its own answer says it changed (lines of JSON with C(change)).
options:
  verb:
    description: What to do.
    type: str
    required: true
    choices: [facts, plan, install, image, run]
  spec:
    description: The specification, as C(infra) makes it.
    type: dict
    required: true
  specs:
    description: With C(plan), many specifications at once; C(spec) is then of no matter.
    type: list
    elements: dict
  reads:
    description: The C(run) changes nothing; it also runs in check mode.
    type: bool
    default: false
author: Heliograph
"""

EXAMPLES = r"""
- name: Ask the host what it is and has
  heliograph_hostctl:
    verb: facts
    spec: {}
"""

RETURN = r"""
answer:
  description: What the verb answers, a list for C(specs); of C(run) the documents on its stdout.
  returned: success
  type: raw
plan:
  description: What C(install) or C(image) found to do.
  returned: for these two
  type: dict
"""

TOOL = "/usr/local/lib/heliograph/hostctl"


def call(module: AnsibleModule, verb: str, spec: dict) -> str:
    """The verb's stdout; the module fails with what it said."""
    if not Path(TOOL).is_file():
        module.fail_json(msg=f"{TOOL} is not there: this host was never set up. Run `pulumi up` first.")
    code, out, err = module.run_command(["python3", TOOL, verb], data=json.dumps(spec))
    if code:
        module.fail_json(msg=err.strip()[-3000:] or f"hostctl {verb} ended with {code}")
    return out


def documents(text: str) -> list:
    """JSON documents, one a line, or one over many lines; [] where it is neither."""
    try:
        return [json.loads(text)] if text.strip() else []
    except ValueError:
        pass
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def shown(path: str) -> str:
    """A file as it stands, where everybody may read it: what is in others is nobody's business."""
    try:
        return Path(path).read_text(encoding="utf-8") if Path(path).stat().st_mode & 0o004 else "(not shown)\n"
    except (OSError, ValueError):
        return ""


def diff_of(plan: dict, spec: dict) -> list[dict]:
    """Before and after of each file that would change, then the units and the image."""
    coming = {file["path"]: file for file in spec.get("files", [])}
    found = []
    for path in plan["paths"]:
        file = coming.get(path)
        secret = file is not None and (file.get("prepend") or int(file.get("mode", "644"), 8) & 0o004 == 0)
        after = "" if file is None else "(not shown)\n" if secret else file["content"]
        found.append({"before_header": path, "after_header": path, "before": shown(path), "after": after})
    if plan["units"]:
        found.append({"prepared": "".join(f"(re)start {unit}\n" for unit in plan["units"])})
    if plan.get("absent") or plan.get("turned"):
        found.append({"prepared": f"image {spec['reference']}\n"})
    return found


def main() -> None:
    """One verb."""
    options = {
        "verb": {"type": "str", "required": True, "choices": ["facts", "plan", "install", "image", "run"]},
        "spec": {"type": "dict", "required": True},
        "specs": {"type": "list", "elements": "dict"},
        "reads": {"type": "bool", "default": False},
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    verb, spec = module.params["verb"], module.params["spec"]
    if verb == "plan" and module.params["specs"] is not None:
        answers = [json.loads(call(module, verb, one)) for one in module.params["specs"]]
        module.exit_json(changed=False, answer=answers)
    if verb in ("facts", "plan"):
        module.exit_json(changed=False, answer=json.loads(call(module, verb, spec)))
    if verb == "run":
        if module.check_mode and not module.params["reads"]:
            module.exit_json(changed=False, answer=[], skipped=True)
        answer = documents(call(module, verb, spec))
        changed = not module.params["reads"] and any(isinstance(one, dict) and "change" in one for one in answer)
        module.exit_json(changed=changed, answer=answer)
    plan = json.loads(call(module, "plan", spec))
    result = {"changed": plan["change"], "plan": plan, "diff": diff_of(plan, spec)}
    if plan["change"] and not module.check_mode:
        result["answer"] = json.loads(call(module, verb, spec))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
