"""The double of plugin `command` as the engine sees it: a subprocess over gRPC, against a real SSH server that runs real commands."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # uvloop forks; gRPC's fork handlers crash such a child

import asyncssh
import grpc
import pytest
import pytest_asyncio
from google.protobuf import empty_pb2, struct_pb2
from google.protobuf.json_format import MessageToDict
from pulumi.runtime import rpc
from pulumi.runtime.proto import engine_pb2_grpc, provider_pb2, provider_pb2_grpc

DOUBLE = Path(__file__).parents[2] / "lab" / "command_provider.py"
SIGNATURE, SECRET = rpc._special_sig_key, rpc._special_secret_sig
COMMAND, COPY, LOCAL = "command:remote:Command", "command:remote:CopyToRemote", "command:local:Command"
ROOMY = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 1 << 20),
    ("grpc.absolute_max_metadata_size", 1 << 20),
]
KINDS = provider_pb2.PropertyDiff


def urn(kind, name="it"):
    return f"urn:pulumi:lab::heliograph::{kind}::{name}"


def secret(value):
    return {SIGNATURE: SECRET, "value": value}


def asset(path=None, text=None):
    content = Path(path).read_bytes() if path else text.encode()
    where = {"path": str(path)} if path else {"text": text}
    return {SIGNATURE: rpc._special_asset_sig, "hash": hashlib.sha256(content).hexdigest(), **where}


def struct(values):
    made = struct_pb2.Struct()
    made.update(values)
    return made


class Engine(engine_pb2_grpc.EngineServicer):
    """What the engine would show: (severity, message) of each log request."""

    def __init__(self):
        self.lines = []

    async def Log(self, request, context):
        self.lines.append((request.severity, request.message))
        return empty_pb2.Empty()


class Plugin:
    """Drives the double as the engine does: Check before each step, state and inputs kept between them."""

    def __init__(self, channel, engine, connection):
        self.stub, self.engine, self.connection = provider_pb2_grpc.ResourceProviderStub(channel), engine, connection

    def inputs(self, kind, inputs):
        return (
            inputs
            if kind.startswith("command:local") or "connection" in inputs
            else {"connection": secret(self.connection), **inputs}
        )

    async def check(self, kind, **inputs):
        answer = await self.stub.Check(provider_pb2.CheckRequest(urn=urn(kind), news=struct(self.inputs(kind, inputs))))
        assert not answer.failures, answer.failures
        return MessageToDict(answer.inputs)

    async def failures(self, kind, **inputs):
        answer = await self.stub.Check(provider_pb2.CheckRequest(urn=urn(kind), news=struct(self.inputs(kind, inputs))))
        return [failure.reason for failure in answer.failures]

    async def create(self, kind, preview=False, **inputs):
        checked = await self.check(kind, **inputs)
        answer = await self.stub.Create(
            provider_pb2.CreateRequest(urn=urn(kind), properties=struct(checked), preview=preview)
        )
        return Resource(self, kind, answer.id, checked, MessageToDict(answer.properties))

    async def error(self, kind, **inputs):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.create(kind, **inputs)
        assert caught.value.code() == grpc.StatusCode.UNKNOWN
        return caught.value.details()


class Resource:
    def __init__(self, plugin, kind, key, inputs, state):
        self.plugin, self.kind, self.id, self.inputs, self.state = plugin, kind, key, inputs, state

    async def diff(self, **inputs):
        news = await self.plugin.check(self.kind, **inputs)
        answer = await self.plugin.stub.Diff(
            provider_pb2.DiffRequest(
                urn=urn(self.kind),
                id=self.id,
                olds=struct(self.state),
                news=struct(news),
                old_inputs=struct(self.inputs),
            )
        )
        assert answer.hasDetailedDiff
        assert (answer.changes == provider_pb2.DiffResponse.DIFF_SOME) == bool(answer.detailedDiff)
        return {path: item.kind for path, item in answer.detailedDiff.items()}

    async def update(self, preview=False, **inputs):
        news = await self.plugin.check(self.kind, **inputs)
        answer = await self.plugin.stub.Update(
            provider_pb2.UpdateRequest(
                urn=urn(self.kind),
                olds=struct(self.state),
                news=struct(news),
                old_inputs=struct(self.inputs),
                preview=preview,
            )
        )
        return Resource(self.plugin, self.kind, self.id, news, MessageToDict(answer.properties))

    async def delete(self):
        await self.plugin.stub.Delete(
            provider_pb2.DeleteRequest(
                urn=urn(self.kind), properties=struct(self.state), old_inputs=struct(self.inputs)
            )
        )


@contextlib.asynccontextmanager
async def started(host, **environment):
    """The double as a subprocess with the address of a real engine server."""
    engine, server = Engine(), grpc.aio.server()
    engine_pb2_grpc.add_EngineServicer_to_server(engine, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        DOUBLE,
        "--logtostderr",
        f"127.0.0.1:{port}",
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        address = f"127.0.0.1:{int(await process.stdout.readline())}"
        async with grpc.aio.insecure_channel(address, options=ROOMY) as channel:
            yield Plugin(channel, engine, host.connection)
    finally:
        process.terminate()
        assert await process.wait() == 0
        await server.stop(None)


class Host:
    """An SSH server on loopback that runs commands in `root`, serves SFTP of the machine and takes the variables in `accepted`."""

    def __init__(self):
        self.host_key, self.user_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        self.authorized = asyncssh.import_authorized_keys(self.user_key.export_public_key().decode())

    async def run(self, process):
        child = await asyncio.create_subprocess_shell(
            process.command,
            cwd=self.root,
            env={**os.environ, **process.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

        async def feed():
            with contextlib.suppress(
                BrokenPipeError, ConnectionResetError, RuntimeError
            ):  # RuntimeError: uvloop's closed pipe
                while data := await process.stdin.read(65536):
                    child.stdin.write(data)
                    await child.stdin.drain()
            child.stdin.close()

        async def show(reader, writer):
            while data := await reader.read(65536):
                writer.write(data)

        feeding = asyncio.ensure_future(feed())
        await asyncio.gather(show(child.stdout, process.stdout), show(child.stderr, process.stderr))
        code = await child.wait()
        feeding.cancel()
        process.exit(code) if code >= 0 else process.exit_with_signal(signal.Signals(-code).name[3:])

    async def forward(self, reader, writer):
        async def pump(source, sink):
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
            sink.close()

        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.connection["port"])
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        await inner_writer.wait_closed()

    @contextlib.asynccontextmanager
    async def serve(self):
        host = self

        class Server(asyncssh.SSHServer):
            def connection_made(self, conn):
                self.conn, host.dials = conn, host.dials + 1

            def begin_auth(self, username):
                return True

            def password_auth_supported(self):
                return True

            def validate_password(self, username, password):
                return password == "letmein"

            def connection_requested(self, to, port, *args):
                if port != host.connection["port"]:
                    raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "Connection refused")
                return host.forward

            def session_requested(self):
                chan = self.conn.create_server_channel(encoding=None)
                take = chan._process_env_request

                def only_accepted(packet):
                    take(packet)
                    key = next(reversed(chan._env))
                    return key.decode() in host.accepted or not chan._env.pop(key, True)

                chan._process_env_request = only_accepted
                return chan, asyncssh.SSHServerProcess(host.run, asyncssh.SFTPServer, 3, False)

        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Server,
            server_host_keys=[self.host_key],
            authorized_client_keys=self.authorized,
        )
        async with server:
            self.connection = {
                "host": "127.0.0.1",
                "port": server.get_port(),
                "user": "deployer",
                "privateKey": self.user_key.export_private_key().decode(),
                "hostKey": self.host_key.export_public_key().decode(),
                "dialErrorLimit": 0,
            }
            yield self


pytestmark = pytest.mark.asyncio(loop_scope="module")  # the double takes a second to start, so one serves all


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_double():
    async with Host().serve() as host, started(host) as plugin:
        yield host, plugin


@pytest.fixture
def host(one_double, tmp_path):
    host, _ = one_double
    host.root, host.dials, host.accepted = (
        tmp_path / "host",
        0,
        {"PLAIN", "PULUMI_COMMAND_STDOUT", "PULUMI_COMMAND_STDERR"},
    )
    host.root.mkdir()
    return host


@pytest.fixture
def plugin(one_double, host):
    _, plugin = one_double
    plugin.connection, plugin.engine.lines = host.connection, []
    return plugin


class TestRemoteCommand:
    """A command runs once, over one connection to a pinned host, with what it was given and nothing else."""

    async def test_create_update_and_delete(self, plugin, host):
        made = await plugin.create(COMMAND, create="echo up | tee state; echo hm >&2", delete="rm state")
        assert made.id.startswith("it")
        assert len(made.id) == len("it") + 8
        assert (made.state["stdout"], made.state["stderr"]) == ("up", "hm")
        assert host.dials == 1
        changed = {"create": "echo new > state; echo $PULUMI_COMMAND_STDOUT", "delete": "rm state"}
        assert await made.diff(**changed) == {"create": KINDS.UPDATE}
        made = await made.update(**changed)
        assert ((host.root / "state").read_text(), made.state["stdout"]) == ("new\n", "up")
        made = await made.update(**changed, update="echo -n updated", addPreviousOutputInEnv=False)
        assert ((host.root / "state").read_text(), made.state["stdout"]) == ("new\n", "updated")
        await made.delete()
        assert not (host.root / "state").exists()
        assert host.dials == 4

    async def test_delete_uses_what_is_stored(self, plugin, host):
        made = await plugin.create(COMMAND, create="cat > a; cp a b", delete="cat > deleted; rm a", stdin="first")
        plugin.connection = {"host": "127.0.0.1", "port": 1, "dialErrorLimit": 0}  # the program has moved on
        await made.delete()
        assert [path.name for path in sorted(host.root.iterdir())] == ["b", "deleted"]
        assert (host.root / "deleted").read_text() == "first"

    async def test_no_commands_do_nothing(self, plugin, host):
        made = await plugin.create(COMMAND, stdin="x")
        assert (made.state["stdout"], made.state["stderr"]) == ("", "")
        await (await made.update(stdin="y")).delete()
        assert host.dials == 0

    async def test_stdin_is_delivered_whole_and_shown_nowhere(self, plugin, host):
        text = "heliograph-" * 95325 + "end"  # 1 MB
        made = await plugin.create(COMMAND, create="cat > received; wc -c < received", stdin=secret(text))
        assert (host.root / "received").read_text() == text
        assert made.state["stdout"].strip() == str(len(text))
        assert made.state["stdin"] == secret(text)
        failed = await plugin.error(COMMAND, create="cat > /dev/null; exit 3", stdin=secret(text))
        assert "heliograph-heliograph" not in failed + str(plugin.engine.lines)

    async def test_stdin_that_is_not_taken_is_an_error(self, plugin):
        assert await plugin.error(COMMAND, create="exec true", stdin="x" * (6 << 20)) == 'EOF: running "exec true":\n'

    async def test_a_failure_gives_the_command_and_what_it_wrote(self, plugin):
        error = await plugin.error(COMMAND, create='echo "half done"; echo broken >&2; exit 7')
        start, _, written = error.partition("\n")
        assert start == r'Process exited with status 7: running "echo \"half done\"; echo broken >&2; exit 7":'
        assert sorted(written.splitlines()) == ["broken", "half done"]
        error = await plugin.error(COMMAND, create="kill -9 $$")
        assert error == 'Process exited with status 137 from signal KILL: running "kill -9 $$":\n'

    async def test_environment_needs_accept_env(self, plugin):
        assert (await plugin.create(COMMAND, create="echo $PLAIN", environment={"PLAIN": "v"})).state["stdout"] == "v"
        error = await plugin.error(COMMAND, create="true", environment={"OTHER": "token"})
        assert error == 'could not set environment variable "OTHER": ssh: setenv failed'
        [(severity, message)] = [line for line in plugin.engine.lines if "OTHER" in line[1]]
        assert (severity, "AcceptEnv" in message, "token" in message) == (3, True, False)

    async def test_a_refused_previous_output_is_a_warning(self, plugin, host):
        made = await plugin.create(COMMAND, create="echo one; echo two >&2")
        host.accepted = set()
        made = await made.update(create="echo [$PULUMI_COMMAND_STDOUT]")
        assert made.state["stdout"] == "[]"
        assert [message[:37] for severity, message in plugin.engine.lines if severity == 2] == [
            "Unable to set 'PULUMI_COMMAND_STDOUT'",
            "Unable to set 'PULUMI_COMMAND_STDERR'",
        ]

    @pytest.mark.parametrize(
        ("logging", "lines"),
        [
            (None, ["out", "err"]),
            ("stdout", ["out"]),
            ("stderr", ["err"]),
            ("stdoutAndStderr", ["out", "err"]),
            ("none", []),
        ],
    )
    async def test_logging(self, plugin, logging, lines):
        made = await plugin.create(
            COMMAND, create="echo out; echo err >&2", **({"logging": logging} if logging else {})
        )
        assert (made.state["stdout"], made.state["stderr"]) == ("out", "err")
        assert sorted(message for _, message in plugin.engine.lines) == sorted(lines)

    async def test_a_line_that_hangs_the_original_is_an_error(self, plugin):
        long = "head -c 70000 /dev/zero | tr '\\0' x"
        assert (await plugin.error(COMMAND, create=f"{long} | tee f | head -c 65536 >&2")).startswith(
            "a logged line of 64 KiB"
        )
        assert len((await plugin.create(COMMAND, create=long, logging="none")).state["stdout"]) == 70000


class TestConnection:
    """A host that is not the pinned one gets nothing; what is refused says why."""

    async def test_another_host_key_is_refused(self, plugin, host):
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        error = await plugin.error(COMMAND, connection={**host.connection, "hostKey": other}, create="touch reached")
        assert error == "after 0 failed attempts: ssh: handshake failed: ssh: host key mismatch"
        assert not (host.root / "reached").exists()
        rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048).export_public_key().decode()
        error = await plugin.error(COMMAND, connection={**host.connection, "hostKey": rsa}, create="true")
        assert error.startswith("after 0 failed attempts: ssh: handshake failed: ")  # either side may see it first
        error = await plugin.error(COMMAND, connection={**host.connection, "hostKey": "AAAA"}, create="true")
        assert error.startswith("failed to parse host key")

    async def test_without_a_host_key_any_is_taken(self, plugin, host):
        connection = {key: value for key, value in host.connection.items() if key != "hostKey"}
        assert (await plugin.create(COMMAND, connection=connection, create="echo hi")).state["stdout"] == "hi"

    async def test_dial_error_limit_counts_retries(self, plugin, unused_tcp_port):
        connection = {"host": "127.0.0.1", "port": unused_tcp_port, "dialErrorLimit": 2}
        error = await plugin.error(COMMAND, connection=connection, create="true")
        assert error == f"after 2 failed attempts: dial tcp 127.0.0.1:{unused_tcp_port}: connect: connection refused"
        assert [message for _, message in plugin.engine.lines] == [
            "Dial 1/2 failed: retrying",
            "Dial 2/2 failed: retrying",
        ]

    async def test_ways_in(self, plugin, host):
        base = {key: value for key, value in host.connection.items() if key != "privateKey"}
        run = {"create": "echo in"}
        assert (await plugin.create(COMMAND, connection={**base, "password": "letmein"}, **run)).state["stdout"] == "in"
        locked = host.user_key.export_private_key("pkcs8-pem", passphrase="pass").decode()
        unlocked = {**base, "privateKey": locked, "privateKeyPassword": "pass"}
        assert (await plugin.create(COMMAND, connection=unlocked, **run)).state["stdout"] == "in"
        error = await plugin.error(COMMAND, connection={**base, "privateKey": locked}, **run)
        assert error.startswith("ssh: cannot use privateKey: ")
        assert "letmeout" not in (
            error := await plugin.error(COMMAND, connection={**base, "password": "letmeout"}, **run)
        )
        assert "ssh: unable to authenticate" in error
        error = await plugin.error(COMMAND, connection={**base, "agentSocketPath": "/x"}, **run)
        assert error.startswith("agentSocketPath is not supported")

    async def test_proxy(self, plugin, host):
        connection = {**host.connection, "proxy": host.connection}
        assert (await plugin.create(COMMAND, connection=connection, create="echo through")).state["stdout"] == "through"
        assert host.dials == 2
        error = await plugin.error(COMMAND, connection={**connection, "port": 1}, create="true")
        assert error.startswith("proxy: after 0 failed attempts: ssh: rejected: connect failed")

    async def test_defaults(self, plugin):
        checked = await plugin.check(COMMAND, connection={"host": "fra-1", "proxy": {"host": "jump"}})
        defaults = {"user": "root", "port": 22, "dialErrorLimit": 10, "perDialTimeout": 15}
        assert checked["connection"] == secret({"host": "fra-1", **defaults, "proxy": {"host": "jump", **defaults}})


class TestDiff:
    """Only a dropped or added trigger list replaces; the SDK's replace_on_changes does the rest."""

    async def test_same_inputs_are_no_change(self, plugin):
        inputs = {"create": "true", "environment": {"PLAIN": "v"}, "triggers": ["a", 1, {"b": [True]}]}
        assert await (await plugin.create(COMMAND, **inputs)).diff(**inputs) == {}

    async def test_triggers_and_others(self, plugin):
        made = await plugin.create(LOCAL, create="true", triggers=["a", "b"], environment={"A": "1", "B-C": "2"})
        same = {"create": "true", "environment": {"A": "1", "B-C": "2"}}
        assert await made.diff(**same, triggers=["a", "c"]) == {"triggers[1]": KINDS.UPDATE}
        assert await made.diff(**same, triggers=["a", "b"], update="true") == {"update": KINDS.ADD}
        assert await made.diff(**same, triggers=["a"], update="true") == {
            "triggers[1]": KINDS.DELETE,
            "update": KINDS.ADD,
        }
        assert await made.diff(**same) == {"triggers": KINDS.DELETE_REPLACE}
        changed = await made.diff(create="true", environment={"A": "1", "B-C": "3", "D": "4"}, triggers=["a", "b"])
        assert changed == {'environment["B-C"]': KINDS.UPDATE, "environment.D": KINDS.ADD}
        made = await plugin.create(LOCAL, create="true")
        assert await made.diff(create="true", triggers=["a"]) == {"triggers": KINDS.ADD_REPLACE}

    async def test_a_changed_connection_is_one_update(self, plugin, host):
        made = await plugin.create(COMMAND, create="true")
        assert await made.diff(create="true", connection=secret({**host.connection, "user": "x"})) == {
            "connection": KINDS.UPDATE
        }

    async def test_refresh_sees_nothing(self, plugin):
        made = await plugin.create(LOCAL, create="echo x")
        request = provider_pb2.ReadRequest(
            id=made.id, urn=urn(LOCAL), properties=struct(made.state), inputs=struct(made.inputs)
        )
        answer = await plugin.stub.Read(request)
        assert (answer.id, MessageToDict(answer.properties)) == (made.id, made.state)


class TestSecretsAndUnknowns:
    """What is secret stays so in inputs and state; a preview runs nothing and promises nothing."""

    async def test_secrets(self, plugin, host):
        made = await plugin.create(
            COMMAND, connection=host.connection, create=secret("echo -n token"), environment={"PLAIN": secret("v")}
        )
        for kept in (made.inputs, made.state):
            assert kept["create"] == secret("echo -n token")
            assert kept["environment"] == {"PLAIN": secret("v")}
            assert kept["connection"][SIGNATURE] == SECRET
            assert kept["connection"]["value"]["privateKey"] == secret(host.connection["privateKey"])
        assert made.state["stdout"] == "token"
        assert host.connection["privateKey"] not in json.dumps(plugin.engine.lines)

    async def test_preview(self, plugin, host):
        made = await plugin.create(
            COMMAND, preview=True, create=rpc.UNKNOWN, connection=secret({**host.connection, "host": rpc.UNKNOWN})
        )
        assert (made.state["stdout"], made.state["stderr"], made.state["create"]) == (rpc.UNKNOWN,) * 3
        assert made.state["connection"]["value"]["host"] == rpc.UNKNOWN
        assert (await plugin.create(COMMAND, preview=True, connection=rpc.UNKNOWN)).state["connection"] == secret(
            rpc.UNKNOWN
        )
        assert (await plugin.create(COPY, preview=True, source=asset(text="x"), remotePath=rpc.UNKNOWN)).id == ""
        assert host.dials == 0

    async def test_preview_of_an_update(self, plugin, host):
        made = await plugin.create(LOCAL, create="echo here")
        assert (await made.update(preview=True, create="echo here")).state["stdout"] == "here"
        assert (await made.update(preview=True, create=rpc.UNKNOWN)).state["stdout"] == rpc.UNKNOWN
        assert (await made.update(preview=True, create="echo there")).state["stdout"] == rpc.UNKNOWN

    async def test_check_refuses(self, plugin):
        assert await plugin.failures(COMMAND, connection={"user": "x"}) == ["Missing required field 'host'"]
        assert await plugin.failures(LOCAL, created="true") == ["Unrecognized field 'created'"]
        assert await plugin.failures(COPY, source=rpc.UNKNOWN, remotePath="/x") == [
            "either asset or archive must be set"
        ]


class TestCopy:
    """A copy follows the content: again when hash or path changed, never otherwise, and nothing is deleted."""

    async def test_a_file_again_only_when_changed(self, plugin, host, tmp_path):
        source, target = tmp_path / "unit.container", host.root / "etc" / "systemd" / "it.container"
        source.write_text("[Container]\n")
        inputs = {"source": asset(source), "remotePath": str(target)}
        made = await plugin.create(COPY, **inputs)
        assert (len(made.id), target.read_text(), host.dials) == (8, "[Container]\n", 1)
        assert await made.diff(**inputs) == {}
        moved = tmp_path / "moved"
        moved.write_text("[Container]\n")
        assert await made.diff(**{**inputs, "source": asset(moved)}) == {}
        target.write_text("drifted")
        made = await made.update(**inputs, triggers=[1])
        assert (target.read_text(), host.dials) == ("drifted", 1)
        source.write_text("[Container]\nImage=x\n")
        inputs["source"] = asset(source)
        assert await made.diff(**inputs, triggers=[1]) == {"source": KINDS.UPDATE}
        made = await made.update(**inputs)
        assert target.read_text() == "[Container]\nImage=x\n"
        made = await made.update(**inputs | {"remotePath": str(host.root)})
        assert (host.root / "unit.container").read_text() == "[Container]\nImage=x\n"
        await made.delete()
        assert target.exists()

    async def test_text(self, plugin, host):
        target = host.root / "a" / "b"
        await plugin.create(COPY, source=secret(asset(text="secret text")), remotePath=str(target))
        assert target.read_text() == "secret text"
        error = await plugin.error(COPY, source=asset(text="x"), remotePath=str(host.root))
        assert error.endswith("is a directory; when using a text asset, remotePath must be a file path")

    async def test_a_directory(self, plugin, host, tmp_path):
        (tmp_path / "tree" / "sub").mkdir(parents=True)
        (tmp_path / "tree" / "sub" / "leaf").write_bytes(os.urandom(300_000))
        for given, leaf in (("tree", "there/tree/sub/leaf"), ("tree/", "whole/sub/leaf")):
            archive = {SIGNATURE: rpc._special_archive_sig, "path": f"{tmp_path}/{given}", "hash": "1"}
            await plugin.create(COPY, source=archive, remotePath=str(host.root / leaf.split("/")[0]))
            assert (host.root / leaf).read_bytes() == (tmp_path / "tree/sub/leaf").read_bytes()

    async def test_what_cannot_be_copied(self, plugin, host):
        gone = {**asset(text=""), "path": "/nowhere/file"}
        assert (
            await plugin.error(COPY, source=gone, remotePath=str(host.root / "x"))
            == "open /nowhere/file: no such file or directory"
        )
        error = await plugin.error(COPY, source=asset(text="x"), remotePath="/proc/nowhere/x")
        assert error.startswith("failed to create parent directories for /proc/nowhere/x: ")


class TestLocalCommand:
    """A local command sees its directory, interpreter, variables and stdin."""

    async def test_create_update_and_delete(self, plugin, tmp_path):
        inputs = {"dir": str(tmp_path), "environment": {"WHO": "you"}, "stdin": "fed"}
        made = await plugin.create(
            LOCAL, **inputs, create="cat > f; echo $WHO >> f; echo done; echo hm >&2", delete="rm f; exit 0"
        )
        assert ((tmp_path / "f").read_text(), made.state["stdout"], made.state["stderr"]) == ("fedyou\n", "done", "hm")
        made = await made.update(
            **inputs, interpreter=[sys.executable, "-c"], update="import os; print(os.environ['PULUMI_COMMAND_STDOUT'])"
        )
        assert made.state["stdout"] == "done"
        made = await made.update(**inputs, create="false", update="echo $PULUMI_COMMAND_STDERR", delete="rm f")
        await made.delete()
        assert not (tmp_path / "f").exists()

    async def test_failures(self, plugin):
        assert (
            await plugin.error(LOCAL, create="echo why; exit 4") == 'exit status 4: running "echo why; exit 4":\nwhy\n'
        )
        assert await plugin.error(LOCAL, create="kill -9 $$") == 'signal: killed: running "kill -9 $$":\n'
        assert "no such file or directory" in await plugin.error(LOCAL, create="true", dir="/nowhere")
        assert (await plugin.error(LOCAL, create="true", assetPaths=["*"])).startswith("assetPaths is not supported")

    async def test_run(self, plugin):
        answer = await plugin.stub.Invoke(
            provider_pb2.InvokeRequest(
                tok="command:local:run", args=struct({"command": "cat; echo hm >&2", "stdin": secret("in")})
            )
        )
        assert MessageToDict(getattr(answer, "return")) == {
            "command": "cat; echo hm >&2",
            "stdin": secret("in"),
            "stdout": "in",
            "stderr": "hm",
        }


class TestEnds:
    """Cancel ends what the original's ends; the journal tells how far each step came."""

    async def test_cancel(self, host, unused_tcp_port):
        nowhere = {**host.connection, "port": unused_tcp_port, "dialErrorLimit": -1}
        async with started(host) as plugin, asyncio.TaskGroup() as group:
            local = group.create_task(plugin.error(LOCAL, create="touch began; exec sleep 60", dir=str(host.root)))
            dialing = group.create_task(plugin.error(COMMAND, connection=nowhere, create="true"))
            remote = group.create_task(
                plugin.create(COMMAND, create="touch there; while [ ! -e go ]; do sleep 0.05; done; echo whole")
            )
            while not all((host.root / name).exists() for name in ("began", "there")):
                await asyncio.sleep(0.02)
            await plugin.stub.Cancel(empty_pb2.Empty())
            assert await plugin.error(COMMAND, create="true") == "context canceled"
            (host.root / "go").touch()
            await asyncio.gather(local, dialing, remote)
        assert local.result() == 'signal: killed: running "touch began; exec sleep 60":\n'
        assert dialing.result() == "context canceled"
        assert remote.result().state["stdout"] == "whole"

    async def test_timeout(self, plugin, host):
        inputs = struct(await plugin.check(LOCAL, create="exec sleep 60"))
        with pytest.raises(grpc.aio.AioRpcError, match="signal: killed"):
            await plugin.stub.Create(provider_pb2.CreateRequest(urn=urn(LOCAL), properties=inputs, timeout=0.3))

    async def test_journal(self, host, tmp_path):
        async with started(host, HG_LAB_CUT=str(tmp_path / "cut")) as plugin:
            await plugin.create(LOCAL, preview=True, create="true")
            made = await plugin.create(LOCAL, create="true")
            await plugin.error(LOCAL, create="false")
            await made.delete()
        steps = [line.rsplit(" ", 1) for line in (tmp_path / "cut.journal").read_text().splitlines()]
        assert steps == [[urn(LOCAL), step] for step in ("start", "done", "start", "start", "done")]

    async def test_many_at_once(self, plugin, host):
        meet = "touch {}; while [ $(ls | wc -l) -lt 12 ]; do sleep 0.05; done; echo {}"
        async with asyncio.TaskGroup() as group:
            made = [group.create_task(plugin.create(COMMAND, create=meet.format(n, n))) for n in range(12)]
        assert [task.result().state["stdout"] for task in made] == [str(n) for n in range(12)]
