"""The operations that there are: one table for the command line, the API and the console. Pure.

A kind is a playbook, what it takes, and what it is worth knowing before it is asked for. No variable may hold a secret: what is asked for is stored, shown and
written to the audit log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["KINDS", "Kind", "Variable", "Wrong", "refusals", "without_secrets"]

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""Of a host, a node, a shard or a backup."""
_SECRETS = re.compile(
    r"\bhg_(?:live|test)_[A-Za-z0-9_-]+"
    r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)",
    re.DOTALL,
)
"""API keys, private keys, and a user with a password in an address."""


@dataclass(frozen=True, slots=True)
class Variable:
    """Something that a kind may be told. The playbook knows it as `heliograph_<name>`."""

    name: str
    about: str
    """What it means, in a few words."""
    pattern: str = _NAME
    """What a value must match as a whole; at most 200 characters in any case."""
    choices: tuple[str, ...] = ()
    """Where there are few; instead of `pattern`."""
    required: bool = False
    expected: str = "a name: letters, digits, `.`, `_` and `-`"
    """What `pattern` takes, for people."""

    def refusal(self, value: str) -> str:
        """What is wrong with a value; "" if nothing is."""
        if self.choices:
            return "" if value in self.choices else f"{value[:60]!r} is not one of {', '.join(self.choices)}"
        fits = len(value) <= 200 and re.fullmatch(self.pattern, value, re.ASCII)
        return "" if fits else f"{value[:60]!r} is not {self.expected}"


@dataclass(frozen=True, slots=True)
class Kind:
    """One operation."""

    name: str
    playbook: str
    does: str
    """A sentence: what happens."""
    changes: bool = False
    """It may leave something to be taken back, or to be gone on with: a second one is not begun while one is unfinished."""
    counted: bool = False
    """Test messages are sent all the while, and counted."""
    irreversible: bool = False
    """There is no way back: people type the region's name first."""
    variables: tuple[Variable, ...] = ()
    one_of: tuple[str, ...] = ()
    """Exactly one of these variables must be there."""
    check: bool = False
    """In Ansible's check mode: it tells what would change."""
    phases: bool = False
    """It goes through several declared states, an `up` each: `controlplane.ops.phases`."""
    opens: bool = False
    """It opens what is encrypted under the region's secret key on the machine where it runs, which is given the key for it."""
    asked: bool = True
    """It can be asked for as it is, over the API too."""


_SCOPE = Variable(
    "scope", "what is upgraded; everything where it is not said", choices=("everything", "nodes", "mongodb")
)
_AGAIN = Variable("again", "true: also where it was done today", choices=("true",))
_WHERE = (Variable("host", "all nodes of this host"), Variable("node", "this node alone"))

_TABLE = (
    Kind(
        "site",
        "site.yml",
        "Brings everything to what is declared, one step after another.",
        changes=True,
        counted=True,
    ),
    Kind(
        "verify",
        "verify.yml",
        "Reports drift and health, and sends a message through each node. Changes nothing.",
    ),
    Kind(
        "plan",
        "upgrade.yml",
        "Tells what an upgrade of this scope would change, host by host. Changes nothing.",
        check=True,
        variables=(_SCOPE,),
    ),
    Kind(
        "upgrade",
        "upgrade.yml",
        "Brings nodes, MongoDB or both to the declared images and settings, one after another, without a message lost.",
        changes=True,
        counted=True,
        variables=(_SCOPE,),
    ),
    Kind(
        "features",
        "features.yml",
        "Raises MongoDB's feature compatibility version. Older programs do not open the data any more: there is no way back.",
        changes=True,
        counted=True,
        irreversible=True,
        variables=(
            Variable(
                "confirm",
                "the version, such as 8.0",
                pattern=r"[1-9][0-9]?\.[0-9]",
                expected="a version such as 8.0",
                required=True,
            ),
        ),
    ),
    Kind(
        "drain",
        "drain.yml",
        "Stops nodes in good order: they take no more, and the others adopt what is open. Undrain starts them again.",
        changes=True,
        counted=True,
        variables=_WHERE,
        one_of=("host", "node"),
    ),
    Kind(
        "undrain",
        "undrain.yml",
        "Starts drained nodes again.",
        variables=_WHERE,
        one_of=("host", "node"),
    ),
    Kind(
        "rotate-certificates",
        "rotate-certificates.yml",
        "New keys and certificates on every host, one service after another; with the scope authority of a new authority, and the old one ends.",
        changes=True,
        counted=True,
        phases=True,
        variables=(
            Variable(
                "scope",
                "certificates: from the same authority; authority: a new one, and all certificates",
                choices=("certificates", "authority"),
                required=True,
            ),
            _AGAIN,
        ),
    ),
    Kind(
        "rotate-keys",
        "rotate-keys.yml",
        "A new first API key, key of the log, or SSH key; the old one ends when the new one has proven itself.",
        changes=True,
        counted=True,
        phases=True,
        variables=(
            Variable(
                "scope",
                "api: the first API key; ledger: the key that signs the log; ssh: the operator's key to the hosts",
                choices=("api", "ledger", "ssh", "secret"),
                required=True,
            ),
            _AGAIN,
        ),
    ),
    Kind(  # never over the API: whoever could name a machine there would be given the region's keys
        "replace-host",
        "replace-host.yml",
        "Another machine takes the place of a host that is dead or to be retired; its members get their data from the others.",
        changes=True,
        counted=True,
        phases=True,
        asked=False,
        variables=(
            Variable("host", "the host that goes", required=True),
            Variable(
                "by",
                "the new machine, name=address",
                pattern=r"[a-z][a-z0-9-]{0,23}=[0-9]{1,3}(\.[0-9]{1,3}){3}",
                expected="name=address, such as fra-4=10.0.0.14",
                required=True,
            ),
            Variable(
                "host_key",
                "the new machine's public SSH key, as its own console shows it",
                pattern=r"(ssh-ed25519|ecdsa-sha2-[a-z0-9-]+) [A-Za-z0-9+/=]{40,180}",
                expected="a public SSH key: cat /etc/ssh/ssh_host_ed25519_key.pub",
                required=True,
            ),
        ),
    ),
    Kind(
        "add-shard",
        "add-shard.yml",
        "Adds a shard behind the others. There is no way back: a shard is emptied before it goes, which no operation does.",
        changes=True,
        counted=True,
        irreversible=True,
        phases=True,
        variables=(
            Variable(
                "shard",
                "its name",
                pattern=r"[a-z][a-z0-9]*(-[a-z0-9]+)*",
                expected="lower-case letters and digits",
                required=True,
            ),
            Variable(
                "hosts",
                "where its members stand, separated by commas; none where there are as many hosts as members",
                pattern=r"[a-z0-9-]+(,[a-z0-9-]+)*",
                expected="hosts separated by commas",
            ),
        ),
    ),
    Kind(
        "backup",
        "backup.yml",
        "Backs the database up as of one instant while messages go on, and brings the encrypted archive to the operator's machine.",
        changes=True,
        counted=True,
        variables=(
            Variable("host", "where it is made, a host that has a node; the first such one where it is not said"),
            Variable("backup", "its name; that of the operation where it is not said"),
        ),
    ),
    Kind(
        "restore",
        "restore.yml",
        "Puts a backup into the region's empty database, then starts ledgers and nodes. What the database held is lost.",
        changes=True,
        irreversible=True,
        variables=(
            Variable("backup", "which backup of those on the operator's machine", required=True),
            Variable("confirm", "the region's name, once more", required=True),
            Variable("host", "from where it is put back, a host that has a node"),
            Variable(
                "discard",
                "true: stop nodes and ledgers, and delete what the database holds, first",
                choices=("true",),
            ),
        ),
    ),
    Kind(
        "drill",
        "drill.yml",
        "Restores a backup on the operator's machine, and looks for every accepted message. Asks nothing of the region, and changes nothing.",
        opens=True,
        variables=(Variable("backup", "which backup; the newest where it is not said"),),
    ),
    Kind(
        "abort",
        "abort.yml",
        "Ends the operation that was cut, and takes back what it owes.",
        asked=False,
    ),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _TABLE}
"""Name → kind. A new operation is a row more, a playbook, and a command in `controlplane.ops_command`."""


class Wrong(NamedTuple):
    """Something wrong with what is asked for: `where` is `kind`, or `variables/<name>`."""

    where: str
    what: str


def refusals(kind: str, variables: Mapping[str, str], *, here: bool = False) -> list[Wrong]:
    """Everything that is wrong with asking for this; nothing where it may be begun. `here`: by somebody at the machine where the stack is."""
    known = KINDS.get(kind)
    if known is None or not (known.asked or here):
        there = ", ".join(name for name, found in KINDS.items() if found.asked)
        return [Wrong("kind", f"{kind[:60]!r} is not one of {there}")]
    takes = {variable.name: variable for variable in known.variables}
    wrong = [
        Wrong(f"variables/{name[:60]}", f"{kind} takes no such variable; it takes {', '.join(takes) or 'none'}")
        for name in variables
        if name not in takes
    ]
    for name, variable in takes.items():
        if name in variables:
            if said := variable.refusal(variables[name]):
                wrong.append(Wrong(f"variables/{name}", said))
        elif variable.required:
            wrong.append(Wrong(f"variables/{name}", f"is needed: {variable.about}"))
    if known.one_of and sum(name in variables for name in known.one_of) != 1:
        wrong.append(Wrong("variables", f"exactly one of {', '.join(known.one_of)} is needed"))
    return wrong


def without_secrets(text: str, known: Iterable[str] = ()) -> str:
    """A text that may be kept and shown: what looks like a key or a password, and what is `known` to be one, is left out."""
    for secret in known:
        if secret.strip():
            text = text.replace(secret, "[secret]")
    return _SECRETS.sub("[secret]", text)
