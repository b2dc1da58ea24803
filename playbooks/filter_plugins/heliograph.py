"""The rules of the operations, for playbooks: the same modules that `pulumi preview` uses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra import quorum, steps

__all__ = ["FilterModule"]


def order(known: Sequence[Mapping[str, Any]], status: Mapping[str, Any], scope: str) -> list[dict[str, Any]]:
    """The steps of a scope, of each set the present primary last."""
    return steps.ordered(known, status["sets"], scope)


def planned(known: Sequence[Mapping[str, Any]], scope: str, host: str) -> list[Mapping[str, Any]]:
    """The steps of a scope of which this host can say what they would change."""
    return [one for one in known if one["host"] == host and one["verb"] != "run" and steps.in_scope(one, scope)]


def due(
    known: Sequence[Mapping[str, Any]], scope: str, asked: Sequence[Mapping[str, Any]], left: Sequence[str]
) -> list[str]:
    """Names of those that would change something, that only their own command can compare, or that a run before `left` open. `asked`: of the module, for each host."""
    changing = {
        one["name"]
        for found in asked
        for one, plan in zip(planned(known, scope, found["steps_host"]), found["answer"], strict=True)
        if plan["change"]
    }
    return [
        one["name"]
        for one in known
        if steps.in_scope(one, scope) and (one["verb"] == "run" or one["name"] in changing or one["name"] in left)
    ]


def refusals(status: Mapping[str, Any], step: Mapping[str, Any]) -> list[str]:
    """Why the step must not be taken now: the live sets would lose a majority."""
    return quorum.refusals(status["sets"], [step["endpoint"]]) if step["kind"] == "member" else []


def node_refusals(answers: Sequence[Mapping[str, Any]], stopped: Sequence[str]) -> list[str]:
    """Why these nodes must not be stopped now. `answers`: of the `uri` module to /readyz, one for each node."""
    refused = quorum.node_refusal(
        {one["heliograph_node"]["name"]: one.get("status") == 200 for one in answers}, stopped
    )
    return [refused] if refused else []


def unwell(status: Mapping[str, Any]) -> list[str]:
    """What is wrong with the replica sets themselves: members that are away, behind, or in another state; sets without a primary."""
    found = [f"{one['set']} has no primary" for one in status["sets"] if not one["primary"]]
    return found + [
        f"{one['set']}: {member['host']} is {member['why'] or member['state']}"
        for one in status["sets"]
        for member in one["members"]
        if not (member["healthy"] and member["answers"])
    ]


def unwell_beside(status: Mapping[str, Any], away: Sequence[str]) -> list[str]:
    """As `unwell`, whatever these members are."""
    rest = [{**one, "members": [m for m in one["members"] if m["host"] not in away]} for one in status["sets"]]
    return unwell({**status, "sets": rest})


def chunks(status: Mapping[str, Any], shard: str) -> int:
    """How many a shard has, of all collections."""
    return sum(one["chunks"].get(shard, 0) for one in status["cluster"]["collections"])


def arguments(change: Mapping[str, Any]) -> list[str]:
    """Of `python -m infra.changes VERB`."""
    return [change["stack"], change["kind"], "--by", change["by"], "--variables", change["variables"]]


def chosen(nodes: Sequence[Mapping[str, Any]], host: str, node: str) -> list[str]:
    """Names of the nodes of a host, or of one node."""
    return [one["name"] for one in nodes if (host and one["host"] == host) or (node and one["name"] == node)]


def keyed(run: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The specification of a run, its document with the API key."""
    return {**run, "stdin": json.dumps(json.loads(run["stdin"]) | {"api_key": key})}


def report(status: Mapping[str, Any], facts: Sequence[Mapping[str, Any]], sent: Mapping[str, Any]) -> dict[str, Any]:
    """`{problems: sentences, messages, sets}` of the cluster's description, each host's facts, and what became of the messages."""
    problems = []
    for one in facts:
        name = one["verify_host"]
        if "answer" not in one:
            problems.append(f"{name}: {one.get('msg', 'does not answer')}")
            continue
        for resource, found in one["answer"]["installed"].items():
            problems += [f"{name}: {resource}: {what}" for what in found["drift"]]
    problems += status["problems"]
    messages = sent.get("answer", [])
    if sent.get("msg") and not messages:
        problems.append(f"no message could be sent: {sent['msg']}")
    problems += [
        f"a message through {one['url']} is {one['status']}: {one.get('why', '')}"
        for one in messages
        if one["status"] != "delivered"
    ]
    sets = {one["set"]: {m["host"]: m["state"] for m in one["members"]} for one in status["sets"]}
    return {"problems": problems, "messages": messages, "sets": sets}


def backup(run: Mapping[str, Any], *arguments: str) -> dict[str, Any]:
    """The specification of `heliograph backup …`."""
    return {**run, "argv": [*run["argv"], *arguments]}


def old_backups(found: Sequence[Mapping[str, Any]], keep: int) -> list[str]:
    """Which directories of backups go: all but the newest, and what was cut. `found`: of the `find` module; a directory's age is that of its last entry."""
    paths = [one["path"] for one in sorted(found, key=lambda one: (one["mtime"], one["path"]))]
    whole = [path for path in paths if not path.endswith(".partial")]
    return [path for path in paths if path.endswith(".partial")] + whole[: max(0, len(whole) - keep)]


def newest_backup(found: Sequence[Mapping[str, Any]]) -> str:
    """The name of the backup whose manifest is the newest; "" for none. What is still on its way has another name."""
    whole = [one for one in found if not one["path"].split("/")[-2].endswith((".partial", ".incoming"))]
    return str(max(whole, key=lambda one: one["mtime"])["path"].split("/")[-2]) if whole else ""


def leads(answer: Mapping[str, Any]) -> bool:
    """Whether a ledger leads and may sign. `answer`: of the `uri` module to its /readyz."""
    checks = (answer.get("json") or {}).get("checks", {})
    return answer.get("status") == 200 and (checks.get("role"), checks.get("sequencing")) == ("leads", "ok")


def drill_problems(said: str, errors: str) -> str:
    """Why a drill failed: what it found, or why it could not be tried."""
    try:
        return "; ".join(json.loads(said)["problems"])
    except (ValueError, KeyError, TypeError):
        return errors.strip()[-2000:]


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name → filter."""
        return {
            "heliograph_order": order,
            "heliograph_planned": planned,
            "heliograph_due": due,
            "heliograph_refusals": refusals,
            "heliograph_node_refusals": node_refusals,
            "heliograph_unwell": unwell,
            "heliograph_unwell_beside": unwell_beside,
            "heliograph_chunks": chunks,
            "heliograph_arguments": arguments,
            "heliograph_chosen": chosen,
            "heliograph_keyed": keyed,
            "heliograph_report": report,
            "heliograph_backup": backup,
            "heliograph_old_backups": old_backups,
            "heliograph_newest_backup": newest_backup,
            "heliograph_leads": leads,
            "heliograph_drill_problems": drill_problems,
        }
