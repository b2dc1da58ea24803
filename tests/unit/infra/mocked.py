"""Runs the Pulumi program against a monitor that only writes down what is registered: no engine, no provider, no host.

The whole run has its own thread, context and event loop, and ends with them: nothing of Pulumi's settings or tasks reaches another test.
"""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

import asyncssh
import pulumi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from pulumi.runtime import mocks, rpc, stack
from pulumi.runtime.proto import resource_pb2

with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore", DeprecationWarning
    )  # pulumi-command's own, of CopyFile, as soon as `remote` is touched
    from pulumi_command import remote

    assert remote.Command

from infra import program
from infra.policy import Resource
from tests.unit.infra.pki import authority_pair
from tests.unit.infra.sample import LEDGER_KEY

__all__ = ["Run", "Seen", "run", "run_region", "sample_secrets"]

COMMAND = "command:remote:Command"
_ONE_AT_A_TIME = threading.Lock()


@cache
def sample_secrets() -> dict[str, str | None]:
    """Real keys, made for this run."""
    certificate, key = authority_pair()
    return {
        "sshKey": asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode(),
        "authorityCertificate": certificate,
        "authorityKey": key,
        "secretKey": "5ec4e7" * 10,
        "adminKey": "hg_live_a_key_that_nobody_else_has_0123456789",
        "ledgerKey": LEDGER_KEY,
    }


@dataclass(frozen=True)
class Seen:
    """One registration."""

    urn: str
    type: str
    name: str
    parent: str
    dependencies: frozenset[str]
    inputs: dict[str, Any]
    secrets: frozenset[str]


@dataclass
class Run:
    """What a program registered."""

    result: Any = None
    constructed: list[str] = field(default_factory=list)
    """Resources that the program itself constructed, before any output was known."""
    seen: dict[str, Seen] = field(default_factory=dict)
    """URN → registration."""

    def find(self, kind: str, name: str) -> Seen:
        """The one resource whose type ends with `kind`."""
        (found,) = [one for one in self.seen.values() if one.type.endswith(kind) and one.name == name]
        return found

    def command(self, name: str) -> Seen:
        return self.find(":Command", name)

    def parents(self, one: Seen) -> list[str]:
        """`type name` of those above, the nearest first, without the stack."""
        found = []
        while one.parent in self.seen:
            one = self.seen[one.parent]
            found.append(f"{one.type.rpartition(':')[2]} {one.name}")
        return found

    def before(self, one: Seen) -> set[str]:
        """Names of all commands that are done when this one begins."""
        todo, done = [one.urn], set()
        while todo:
            for urn in self.seen[todo.pop()].dependencies - done:
                done.add(urn)
                todo.append(urn)
        return {self.seen[urn].name for urn in done if "command:" in self.seen[urn].type}

    def resources(self) -> list[Resource]:
        """For the policies."""
        return [Resource(one.type, one.name, one.inputs, one.secrets) for one in self.seen.values()]


def _plain(value: Any, path: str, secrets: set[str]) -> Any:
    """Wire form → values, with the paths that are marked secret."""
    if isinstance(value, dict):
        signature = value.get(rpc._special_sig_key)
        if signature == rpc._special_secret_sig:
            secrets.add(path)
            return _plain(value["value"], path, secrets)
        return {key: _plain(inner, f"{path}.{key}" if path else key, secrets) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, f"{path}.{index}", secrets) for index, inner in enumerate(value)]
    return value


@cache
def request_for(role: str) -> str:
    """A certificate request as a host would send it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
    key = ec.generate_private_key(ec.SECP256R1())
    signed = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


class _Monitor(mocks.MockMonitor):
    """Keeps what Pulumi's own mock drops: parents, dependencies, what is marked secret. Runs on Pulumi's worker threads and needs no loop there."""

    def __init__(self, run: Run, preview: bool) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.run = run
        self.preview = preview

    def RegisterResource(self, request: Any) -> Any:
        urn = self.make_urn(request.parent, request.type, request.name)
        if request.type == "pulumi:pulumi:Stack":
            return resource_pb2.RegisterResourceResponse(urn=urn)
        secrets: set[str] = set()
        inputs = _plain(MessageToDict(request.object), "", secrets)
        assert urn not in self.run.seen, f"{urn} is there twice"
        self.run.seen[urn] = Seen(
            urn,
            request.type,
            request.name,
            request.parent,
            frozenset(request.dependencies),
            inputs,
            frozenset(secrets),
        )
        state = dict(inputs)
        if request.type == COMMAND and not self.preview:
            state["stdout"] = self._stdout(inputs)
        return resource_pb2.RegisterResourceResponse(urn=urn, id=request.name, object=ParseDict(state, Struct()))

    @staticmethod
    def _stdout(inputs: dict[str, Any]) -> str:
        if inputs["create"].endswith(" keys"):
            with _ONE_AT_A_TIME:  # the monitor is called on several threads, and each role has one key
                return json.dumps({role: request_for(role) for role in json.loads(inputs["stdin"])["roles"]})
        return "{}"


def run(build: Callable[[], Any], *, preview: bool = False) -> Run:
    """Run `build` as a Pulumi program to its end. What it raises is raised here."""
    done = Run()
    failure: list[BaseException] = []
    begin = pulumi.Resource.__init__

    def construct(self: pulumi.Resource, t: str, name: str, *rest: Any, **named: Any) -> None:
        done.constructed.append(f"{t} {name}")
        begin(self, t, name, *rest, **named)

    async def main() -> None:
        mocks.set_mocks(
            None,  # type: ignore[arg-type]
            project="heliograph",
            stack="fra",
            preview=preview,
            monitor=_Monitor(done, preview),
        )
        done.constructed.clear()

        def body() -> None:
            done.result = build()
            done.constructed = list(done.constructed)  # what comes later is seen, and not in this list

        await stack.run_pulumi_func(body)

    def thread() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failure.append(error)

    with mock.patch.object(pulumi.Resource, "__init__", construct):
        worker = threading.Thread(target=thread)
        worker.start()
        worker.join()
    if failure:
        raise failure[0]
    return done


def run_region(value: dict[str, Any], *, preview: bool = False) -> Run:
    """The real program, for a region without hosts."""
    return run(lambda: program.build(value | {"offline": True}, sample_secrets()), preview=preview)
