"""What must hold for every resource of a stack, whatever the region looks like. Pure: resources → sentences; an empty list = all is well.

`hostctl` reads each resource's data from stdin, so the rules look into these documents too. They are tested against all resources of a sample region, and each
against a resource that breaks it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["RULES", "Resource", "broken", "secret_problems"]

_COMMAND = "command:remote:Command"
_REMOTE = (_COMMAND, "command:remote:CopyToRemote")
_SHOWN = ("create", "update", "delete", "triggers")
_PRIVATE = "PRIVATE KEY"
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_TOOL = "/usr/local/lib/heliograph"
_DELETES = re.compile(r"\brm\s|\brmdir\b|\bshred\b|\bmkfs|\bdd\s|\bfind\b.*-delete|\bpodman\s+(volume|system)\s")


class Resource(NamedTuple):
    """One resource as it is registered."""

    type: str
    """Such as `command:remote:Command`."""
    name: str
    inputs: Mapping[str, Any]
    """By the names of the provider's schema (`hostKey`), secrets in clear."""
    secrets: frozenset[str] = frozenset()
    """Paths of the inputs that are marked secret: `stdin`, `connection.privateKey`."""

    def is_secret(self, path: str) -> bool:
        """Whether an input, or something that holds it, is marked."""
        return any(path == marked or path.startswith(f"{marked}.") for marked in self.secrets)

    def document(self) -> dict[str, Any]:
        """What `hostctl` reads; {} for a command that reads something else."""
        try:
            value = json.loads(self.inputs.get("stdin") or "")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def verb(self) -> str:
        """Of hostctl; empty for a command that is not one."""
        match = re.search(rf"{_TOOL}/hostctl (\w+)$", str(self.inputs.get("create", "")))
        return match[1] if match else ""


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield path, value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _commands(resources: Iterable[Resource]) -> list[Resource]:
    return [one for one in resources if one.type == _COMMAND]


def pinned_host_keys(resources: Sequence[Resource]) -> list[str]:
    """Each connection, a proxy's too, knows the key of the host that it means."""
    found = []
    for one in resources:
        if one.type not in _REMOTE:
            continue
        connection = one.inputs.get("connection") or {}
        found += [
            f"{one.name}: {where} does not pin hostKey"
            for where, value in (("connection", connection), ("connection.proxy", connection.get("proxy", connection)))
            if not value.get("hostKey") and (where == "connection" or "proxy" in connection)
        ]
    return found


def never_replaced(resources: Sequence[Resource]) -> list[str]:
    """The SDK replaces a command whose trigger changes: create of the new one first, then delete of the old, which takes away what was just installed."""
    found = []
    for one in _commands(resources):
        if one.inputs.get("triggers"):
            found.append(f"{one.name}: has triggers; a change would run delete after create")
        if one.inputs.get("delete") and not one.inputs.get("update"):
            found.append(f"{one.name}: has a delete and no update")
    return found


def undo(resources: Sequence[Resource]) -> list[str]:
    """What `up` puts onto a host `destroy` takes back."""
    return [
        f"{one.name}: installs and has no delete"
        for one in _commands(resources)
        if (one.verb() in ("install", "image") or re.search(r"\binstall -D\b", str(one.inputs.get("create", ""))))
        and not one.inputs.get("delete")
    ]


def no_previous_output(resources: Sequence[Resource]) -> list[str]:
    """The output of one run is not in the environment of the next, where every process of the user sees it."""
    return [
        f"{one.name}: addPreviousOutputInEnv is not false"
        for one in _commands(resources)
        if one.inputs.get("addPreviousOutputInEnv") is not False
    ]


def quiet_stdout(resources: Sequence[Resource]) -> list[str]:
    """What a command answers is data, and may hold what nobody should read in a log."""
    return [
        f"{one.name}: logs stdout ({one.inputs.get('logging', 'by default')}); use stderr or none"
        for one in _commands(resources)
        if one.inputs.get("logging") not in ("stderr", "none")
    ]


_DISPOSABLE = {"/var/lib/heliograph/ledger", "/var/lib/heliograph/node", "/var/lib/heliograph/carrier"}
"""Locks, and what the simulator remembers."""


def data_kept(resources: Sequence[Resource]) -> list[str]:
    """No command deletes anything but our own tool, and no specification asks for it. Not for a region with `purge: true`."""
    found = []
    for one in _commands(resources):
        for field in ("create", "update", "delete"):
            text = str(one.inputs.get(field) or "")
            if _DELETES.search(text) and not re.fullmatch(rf"(sudo -n )?rm -rf {_TOOL}", text):
                found.append(f"{one.name}: {field} deletes: {text}")
        if purged := [path for path in one.document().get("purge", []) if path not in _DISPOSABLE]:
            found.append(f"{one.name}: purges {', '.join(purged)}")
    return found


def images_by_digest(resources: Sequence[Resource]) -> list[str]:
    """What runs is what was meant: no tag, in no image step and in no unit."""
    found = []
    for one in _commands(resources):
        document = one.document()
        images = [document.get("reference", "")] if one.verb() == "image" else []
        for file in document.get("files", []):
            images += re.findall(r"^Image=(.*)$", file.get("content", ""), re.MULTILINE)
        found += [f"{one.name}: image {image} has no digest" for image in images if not _DIGEST.search(image)]
    return found


def odd_voters(resources: Sequence[Resource]) -> list[str]:
    """A replica set never has an even number of votes."""
    found = []
    for one in _commands(resources):
        try:
            spec = json.loads(one.document().get("stdin") or "")
        except ValueError:
            continue
        if isinstance(spec, dict) and "set" in spec and all(isinstance(m, dict) for m in spec.get("members", [])):
            votes = sum(member.get("votes", 1) for member in spec["members"])
            if votes % 2 == 0:
                found.append(f"{one.name}: {spec['set']} has {votes} votes")
    return found


RULES = (
    pinned_host_keys,
    never_replaced,
    undo,
    no_previous_output,
    quiet_stdout,
    data_kept,
    images_by_digest,
    odd_voters,
)
"""Those that need nothing but the resources."""


def _fragments(secrets: Iterable[str]) -> list[str]:
    """What gives a secret away: itself, or a line of it (PEM in JSON has no line breaks)."""
    lines = [line.strip() for secret in secrets for line in secret.splitlines()]
    return [line for line in lines if len(line) >= 8 and not line.startswith("-----")]


def secret_problems(resources: Sequence[Resource], secrets: Iterable[str]) -> list[str]:
    """Where a secret, or any private key, stands in a command line or trigger, or in an input that is not marked secret. Never repeats it."""
    known = [*_fragments(secrets), _PRIVATE]
    found = []
    for one in resources:
        for path, value in _leaves(one.inputs):
            if not any(fragment in str(value) for fragment in known):
                continue
            if path.partition(".")[0] in _SHOWN:
                found.append(f"{one.name}: a secret stands in {path}, which process lists and errors show")
            elif not one.is_secret(path):
                found.append(f"{one.name}: {path} carries a secret and is not marked secret")
    return found


def broken(resources: Sequence[Resource], secrets: Iterable[str] = (), *, purge: bool = False) -> list[str]:
    """All rules. `purge`: the region's, which allows deleting data."""
    rules = [rule for rule in RULES if not (purge and rule is data_kept)]
    return [problem for rule in rules for problem in rule(resources)] + secret_problems(resources, secrets)
