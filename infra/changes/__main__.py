"""`python -m infra.changes VERB STACK KIND`: what an operation asks of a stack between one `up` and the next.

    next     the phase that comes next, as JSON; `{}` when nothing is left. Changes nothing
    plan     all phases, and what `pulumi preview` says of the next one, on a draft. Changes nothing
    begin    that phase's edit; where it was made already, nothing
    try      of `ssh`: every host takes the next key
    end      the phase is done
    told     `--peer NAME`: the operator of another region has its new entry
    host-key what answers at the address of `by` (STACK is of no matter)

What a change is about comes as `--variables` (JSON); nothing in it is secret.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from datetime import UTC, date, datetime
from itertools import dropwhile
from typing import Any

import asyncssh

from infra import up
from infra.changes import hosts, make, rotations
from infra.changes.forget import forgotten
from infra.changes.phase import CHANGE, TOLD, Config, Phase, Ups, begun, ended, following, key
from infra.changes.stack import StackFile
from infra.config import ConfigError, Region, Secrets, parse_region, parse_secrets
from infra.engine import pulumi_cli, stack_configuration, stack_file
from infra.new import host_key
from infra.peer import add_peer, peer_entry
from infra.plan import plan

__all__ = ["Change", "main"]

_SSH = ("nextSshPublic", "formerSshPublic")


class Change:
    """One change of one stack."""

    def __init__(self, stack: str, kind: str, variables: dict[str, str], by: str, today: date) -> None:
        self.file = StackFile.of(stack)
        self.stack, self.kind, self.variables, self.by, self.today = stack, kind, variables, by, today

    def phases(self, config: Config) -> list[Phase]:
        """All of them, from the configuration as it stands. ConfigError for what makes no sense."""
        value = config[key("region")]
        match self.kind:
            case "replace-host":
                old, text, host_key = make.given(self.variables, "host", "by", "host_key")
                new = hosts.new_host(text, host_key)
                noted = config.get(CHANGE, {}).get("alive")
                if noted is None and hosts.is_replaced(value, old, new):
                    return []
                return hosts.replace_host(old, new, alive=self._alive(value, old, new) if noted is None else noted)
            case "add-shard":
                (name,) = make.given(self.variables, "shard")
                known = [shard["name"] for shard in value["mongodb"].get("shards") or [{"name": "a"}]]
                if name in known and CHANGE not in config:
                    return []
                return hosts.add_shard(name, [one for one in self.variables.get("hosts", "").split(",") if one])
            case _:
                return rotations.phases(self.kind, config)

    def _alive(self, value: dict[str, Any], old: str, new: dict[str, Any]) -> bool:
        entry = hosts.stands(value, old)
        region, known = self._known()
        alive = asyncio.run(make.answers(region, next(h for h in region.hosts if h.name == old), known))
        if alive and new["name"] == old:
            raise ConfigError(
                f"{old} ({entry['address']}) still answers; a machine that takes its name while it does must wait until it is off. Switch it off, or give the new machine another name"
            )
        return alive

    def _known(self) -> tuple[Region, Secrets]:
        value, secrets = stack_configuration(self.stack)
        return parse_region(value), parse_secrets(secrets)

    def next(self, config: Config) -> Phase | None:
        """The phase that comes next."""
        again = self.variables.get("again") == "true"
        return following(config, self.kind, self.phases(config), self.by, self.today, again=again)

    def described(self) -> dict[str, Any]:
        """`next`: {} or `{phase, says, ups, begun, more}`; `ups` are stacks."""
        config = self.file.read()
        phase = self.next(config)
        if phase is None:
            return {}
        return {
            "phase": phase.name,
            "says": phase.says,
            "ups": [self.stack] if phase.ups is Ups.OWN else self._local(config) if phase.ups is Ups.PEERS else [],
            "first": CHANGE not in config,
            "begun": _is_begun(config, phase),
            "more": dict(phase.more),
        }

    def begin(self) -> str:
        """What was edited; "" where it was before. What an `up` would refuse is refused here, and nothing is edited."""
        config = self.file.read()
        phase = self.next(config)
        if phase is None:
            return ""
        done = _is_begun(config, phase)
        if not done:
            self.file.write(self._tried(phase)[0])
        if phase.ups is Ups.PEERS:
            self._tell(clients=bool(phase.more.get("clients")))
        if gone := phase.more.get("forget"):
            self._forget(gone)
        return "" if done else phase.says

    def _tried(self, phase: Phase) -> tuple[Config, str]:
        """(the configuration of a phase that was not begun, what `pulumi preview` says of it), made and looked at in a draft."""
        draft = self.file.draft()
        try:
            region, known = self._known()
            fresh = make.fresh(phase.makes, self.kind, draft, region, known, self.today)
            config = draft.read()  # with the secret that was made
            noted = {"alive": phase.name == "join"} if self.kind == "replace-host" and CHANGE not in config else {}
            edited = begun(config, self.kind, phase, fresh, **noted)
            hosts.checked(edited[key("region")])
            if phase.ups is not Ups.OWN:
                return edited, ""
            draft.write(edited)
            said = str(up.run("preview", self.stack, ["--diff", "--config-file", str(draft.path)]))
            if self.kind == "add-shard" and (
                lacks := asyncio.run(make.lacks(parse_region(edited[key("region")]), known))
            ):
                raise ConfigError("\n".join(lacks))
        finally:
            draft.path.unlink(missing_ok=True)
        return edited, said

    def _local(self, config: Config) -> list[str]:
        peers = (config[key("region")].get("ledger") or {}).get("peers", [])
        return [peer["name"] for peer in peers if stack_file(peer["name"]).exists()]

    def _entry(self) -> dict[str, Any]:
        region, known = self._known()
        return peer_entry(plan(region), known)

    def _tell(self, *, clients: bool) -> None:
        """The other stacks of this folder are given the entry as it is now; of others, and of clients, somebody must have said that they know."""
        config = self.file.read()
        peers = [peer["name"] for peer in (config[key("region")].get("ledger") or {}).get("peers", [])]
        local, said = self._local(config), config.get(TOLD, ())
        entry = self._entry() if peers else {}
        for stack in local:
            self._give(stack, entry)
        lacks = []
        if strangers := [name for name in peers if name not in (*local, *said)]:
            lacks.append(
                f"{', '.join(strangers)} is no stack of this folder: give its operator what `python -m infra.peer {self.stack}` prints now, for ledger.peers; "
                f"when their `pulumi up` has ended, go on with --told {strangers[0]}"
            )
        if clients and "clients" not in said:
            lacks.append(
                f"clients of the API need both authorities before the new one signs: `pulumi stack output authority --stack {self.stack}` has them; "
                "when all of them trust both, go on with --told clients"
            )
        if lacks:
            raise ConfigError(". ".join(lacks))

    def _give(self, stack: str, entry: dict[str, Any]) -> None:
        """To another stack of this folder, unless something else waits there for an `up`, which would come with it."""
        peers = (StackFile.of(stack).read()[key("region")].get("ledger") or {}).get("peers", [])
        if entry in peers:
            return
        if (waits := up.run("preview", stack, [])).changed:
            raise ConfigError(
                f"what is declared for {stack} is not what stands ({waits}); bring it there first: `pulumi up --stack {stack}`"
            )
        add_peer(stack, entry)

    def _forget(self, host: str) -> None:
        state = json.loads(pulumi_cli("stack", "export", "--stack", self.stack))
        after, gone = forgotten(state, host)
        if gone:
            pulumi_cli("stack", "import", "--stack", self.stack, stdin=json.dumps(after))

    def public(self) -> dict[str, str]:
        """Public halves of SSH keys, for the hosts."""
        config = self.file.read()
        return {name: config[key(name)] for name in _SSH if key(name) in config}

    def end(self) -> None:
        """Of the phase in progress."""
        config = self.file.read()
        phase = self.next(config)
        if phase is not None:
            edited = ended(config, self.kind, phase, self.phases(config), self.by, self.today)
            for name in _SSH if CHANGE not in edited else ():
                edited.pop(key(name), None)
            self.file.write(edited)

    def told(self, peer: str) -> None:
        """Remembered until the phase ends that waits for it."""
        config = self.file.read()
        if self.next(config) is not None:
            self.file.write(config | {TOLD: sorted({*config.get(TOLD, ()), peer})})

    def tried(self) -> None:
        """With the next SSH key, on every host."""
        said = json.loads(pulumi_cli("config", "--stack", self.stack, "--show-secrets", "--json"))
        asyncio.run(make.tried(self._known()[0], said[key("nextSshKey")]["value"]))

    def planned(self) -> dict[str, Any]:
        """All phases, and what the next one would change."""
        config = self.file.read()
        phase = self.next(config)
        if phase is None:
            return {"phases": [], "preview": "nothing to do"}
        left = dropwhile(lambda one: one.name != phase.name, self.phases(config))
        preview = "" if _is_begun(config, phase) else self._tried(phase)[1]
        return {"phases": [f"{one.name}: {one.says}" for one in left], "preview": preview}


def _is_begun(config: Config, phase: Phase) -> bool:
    at = config.get(CHANGE, {})
    return at.get("phase") == phase.name and not at["applied"]


def _host_key(text: str) -> dict[str, Any]:
    found = asyncio.run(host_key(hosts.new_host(text, "")["address"]))
    return {"key": " ".join(found.split()[:2]), "fingerprint": asyncssh.import_public_key(found).get_fingerprint()}


def _did(change: Change, verb: str, peer: str) -> dict[str, Any]:
    match verb:
        case "next":
            return change.described()
        case "plan":
            return change.planned()
        case "begin":
            said = change.begin()
            return {"changed": bool(said), "did": said, "more": change.public()}
        case "try":
            change.tried()
        case "end":
            change.end()
        case _:
            change.told(peer)
    return {}


def main(arguments: list[str] | None = None) -> None:
    """Exit code 2 with a sentence when it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.changes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["next", "plan", "begin", "try", "end", "told", "host-key"])
    parser.add_argument("stack")
    parser.add_argument("kind")
    parser.add_argument("--variables", type=json.loads, default={}, help="JSON")
    parser.add_argument("--by", default="", help="id of the operation")
    parser.add_argument("--peer", default="")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "host-key":
            answer = _host_key(options.variables.get("by", ""))
        else:
            change = Change(options.stack, options.kind, options.variables, options.by, datetime.now(UTC).date())
            answer = _did(change, options.verb, options.peer)
    except ConfigError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(2) from None
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
