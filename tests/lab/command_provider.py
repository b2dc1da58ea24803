#!/usr/bin/env python3
"""Test double of the Pulumi plugin `command` 1.2.1, for places where its binary cannot be downloaded.

The engine and the programs use it unchanged: it serves `command:local:Command`, `command:remote:Command`, `command:remote:CopyToRemote` and
`command:local:run` over the provider protocol and prints its port. It follows pulumi-command v1.2.1 (`provider/pkg/provider`) and the default Check, Diff
and Read of pulumi-go-provider v1.3.0 (`infer/resource.go`), also where that surprises:

- A changed trigger is an update to the provider (only adding or dropping the whole list replaces). It is the SDK's `replace_on_changes=["triggers[*]"]`
  that makes the engine replace, with or without an `update` command.
- `dialErrorLimit` counts retries: 10 means 11 dials, after any error, a wrong host key included. `perDialTimeout` bounds the TCP dial, not the handshake.
- A pinned RSA host key is asked for as `ssh-rsa` alone, which sshd since 8.8 refuses.
- Cancel and timeouts end local commands and waiting dials; a remote command that runs is waited for.
- Read answers the stored state, so a refresh sees nothing. A source that is unknown in a preview fails Check.

Where it differs from the original:

- No SSH agent: `agentSocketPath` is an error and SSH_AUTH_SOCK is not read. No `assetPaths`, `archivePaths` (errors), no `remote:CopyFile`, no schema.
- `accept_outputs` is off: the engine sends plain values, secrets and unknowns, so dependencies of single properties are not kept.
- Check refuses missing and unrecognized properties, but not values of a wrong type. A private key that OpenSSH encrypted needs the package `bcrypt`.
- A command's lines are logged when it ends. A logged line of 64 KiB, which hangs the original, is an error.
- Each operation closes its connection (remote.Command of the original leaves it open). Over a proxy a failed handshake dials through it again.
- Errors of keys, authentication and SFTP begin as the original's and end in asyncssh's words; commands are quoted as JSON does; output that is not UTF-8 is
  replaced by U+FFFD.
- It outlives a killed engine only until its running operations are done.

For tests of interrupted deployments: where the environment variable HG_LAB_CUT names a file, each create, update and delete (not previews) appends
`<urn> start` and, once it has succeeded, `<urn> done` to `<file>.journal`. Secrets are in neither journal nor log.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
from pathlib import Path

import asyncssh
import grpc
from google.protobuf import empty_pb2, struct_pb2
from google.protobuf.json_format import MessageToDict
from pulumi.runtime import rpc
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc, plugin_pb2, provider_pb2, provider_pb2_grpc

SIGNATURE, SECRET = rpc._special_sig_key, rpc._special_secret_sig
ASSET, ARCHIVE = rpc._special_asset_sig, rpc._special_archive_sig
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
LONGEST_LINE = 64 * 1024  # bufio.MaxScanTokenSize

_SHARED = {"triggers", "create", "update", "delete", "stdin", "logging", "environment", "addPreviousOutputInEnv"}
_LOCAL = {"interpreter", "dir", "assetPaths", "archivePaths"}
INPUTS = {
    "command:local:Command": _SHARED | _LOCAL,
    "command:remote:Command": _SHARED | {"connection"},
    "command:remote:CopyToRemote": {"connection", "triggers", "source", "remotePath"},
    "command:local:run": _SHARED - {"triggers", "create", "update", "delete"} | _LOCAL | {"command"},
}
REQUIRED = {"connection", "source", "remotePath", "command"}
CONNECTION_DEFAULTS = {"user": "root", "port": 22, "dialErrorLimit": 10, "perDialTimeout": 15}
CONNECTION_SECRETS = {"password", "privateKey", "privateKeyPassword"}


class OperationError(Exception):
    """An operation failed; the text goes to the engine as it is."""


# Property values: JSON shapes in which secrets, assets and archives are signed objects and unknowns a reserved string.


def load(struct):
    """Give the values of a Struct, without nulls (the original skips them)."""

    def known(value):
        if isinstance(value, dict):
            return {key: known(item) for key, item in value.items() if item is not None}
        return [known(item) for item in value] if isinstance(value, list) else value

    return known(MessageToDict(struct))


def dump(values):
    struct = struct_pb2.Struct()
    struct.update(values)
    return struct


def signed(value, *signatures):
    return isinstance(value, dict) and value.get(SIGNATURE) in signatures


def secret(value):
    return value if signed(value, SECRET) else {SIGNATURE: SECRET, "value": value}


def bare(value):
    """Give the value that commands and connections use: secrets unwrapped."""
    if signed(value, SECRET):
        return bare(value["value"])
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items()}
    return [bare(item) for item in value] if isinstance(value, list) else value


def comparable(value):
    """Give what equality looks at: of an asset or archive only the hash."""
    if signed(value, ASSET, ARCHIVE):
        return value[SIGNATURE], value.get("hash")
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    return [comparable(item) for item in value] if isinstance(value, list) else value


def differences(old, new, path=""):
    """Yield (path, kind) of each change, as resource.ObjectDiff does: into lists and objects, not into secrets."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = ({f"[{i}]": item for i, item in enumerate(side)} for side in (old, new))
    elif all(isinstance(side, dict) and SIGNATURE not in side for side in (old, new)):
        plain = {key: key.isascii() and key.replace("_", "a").isalnum() for key in {*old, *new}}
        step = {
            key: ("." if path else "") + key if plain[key] else '["' + key.replace('"', '\\"') + '"]' for key in plain
        }
        old, new = ({step[key]: item for key, item in side.items()} for side in (old, new))
    else:
        if comparable(old) != comparable(new):
            yield path, provider_pb2.PropertyDiff.UPDATE
        return
    for key in sorted({*old, *new}):
        if key not in old:
            yield path + key, provider_pb2.PropertyDiff.ADD
        elif key not in new:
            yield path + key, provider_pb2.PropertyDiff.DELETE
        else:
            yield from differences(old[key], new[key], path + key)


def check(kind, inputs):
    """Give the inputs with defaults and secrets, and the failures as (property, reason)."""
    failures = [(key, f"Missing required field '{key}'") for key in sorted(REQUIRED & INPUTS[kind] - inputs.keys())]
    failures += [(key, f"Unrecognized field '{key}'") for key in sorted(inputs.keys() - INPUTS[kind])]
    if "source" in inputs:
        source = bare(inputs["source"])
        if signed(source, ASSET):
            is_text = not source.get("uri") and (source.get("text") or source.get("hash", "") in {"", EMPTY_SHA256})
            if not (source.get("path") or is_text):
                failures.append(("asset", "asset must be a path-based file asset or a text asset"))
        elif signed(source, ARCHIVE):
            if not source.get("path"):
                failures.append(("archive", "archive must be a path to a file or directory"))
        else:
            failures.append(("asset", "either asset or archive must be set"))
    if "connection" in inputs:
        inputs = {**inputs, "connection": secret(check_connection(inputs["connection"], failures))}
    return inputs, failures


def check_connection(connection, failures):
    if signed(connection, SECRET):
        return secret(check_connection(connection["value"], failures))
    if not isinstance(connection, dict):
        return connection  # unknown yet
    known = {"host", "hostKey", "agentSocketPath", "proxy", *CONNECTION_DEFAULTS, *CONNECTION_SECRETS}
    failures += [(key, f"Unrecognized field '{key}'") for key in sorted(connection.keys() - known)]
    if "host" not in connection:
        failures.append(("host", "Missing required field 'host'"))
    checked = {**CONNECTION_DEFAULTS, **connection}
    for key in CONNECTION_SECRETS & checked.keys():
        checked[key] = secret(checked[key])
    if "proxy" in checked:
        checked["proxy"] = check_connection(checked["proxy"], failures)
    return checked


# Commands


class Call:
    """One request of the engine: its log, and what Cancel and its timeout end."""

    def __init__(self, provider, urn="", timeout=0):
        self.provider, self.urn = provider, urn
        self.deadline = asyncio.get_running_loop().time() + timeout if timeout else None

    async def log(self, text, severity=engine_pb2.INFO, status=False):
        if self.provider.engine:
            request = engine_pb2.LogRequest(severity=severity, message=text, urn=self.urn, ephemeral=status)
            with contextlib.suppress(grpc.aio.AioRpcError):  # the engine is gone
                await self.provider.engine.Log(request)

    @contextlib.asynccontextmanager
    async def stoppable(self):
        if self.provider.cancelled:
            raise OperationError("context canceled")
        task = asyncio.current_task()
        self.provider.stoppable.add(task)
        try:
            async with asyncio.timeout_at(self.deadline):
                yield
        except TimeoutError:
            raise OperationError("context deadline exceeded") from None
        except asyncio.CancelledError:
            task.uncancel()
            raise OperationError("context canceled") from None
        finally:
            self.provider.stoppable.discard(task)


class Output:
    """What a command wrote: each stream, both in the order of arrival, and the lines to log."""

    def __init__(self, logging):
        self.stdout, self.stderr, self.both, self.logged = bytearray(), bytearray(), bytearray(), bytearray()
        self.log_streams = {None: "stdoutAndStderr", "none": ""}.get(logging, logging).lower()

    def feed(self, stream, data):
        getattr(self, stream).extend(data)
        self.both.extend(data)
        if stream in self.log_streams:
            self.logged.extend(data)

    async def finish(self, call, command, error):
        """Log the lines; give the outputs, or fail with the error, the command and what it wrote."""
        for line in self.logged.splitlines():
            if len(line) >= LONGEST_LINE:
                error = (
                    error or "a logged line of 64 KiB, which hangs the original (shorten it, or set logging to none)"
                )
                break
            await call.log(line.decode(errors="replace"), status=True)
        if error:
            quoted = json.dumps(command, ensure_ascii=False)
            raise OperationError(f"{error}: running {quoted}:\n{self.both.decode(errors='replace')}")
        return {
            "stdout": self.stdout.decode(errors="replace").removesuffix("\n"),
            "stderr": self.stderr.decode(errors="replace").removesuffix("\n"),
        }


def previous_output(props):
    if not props.get("addPreviousOutputInEnv", True):
        return {}
    return {f"PULUMI_COMMAND_{key.upper()}": props[key] for key in ("stdout", "stderr") if props.get(key)}


async def run_local(call, props, command):
    for key in ("assetPaths", "archivePaths"):
        if key in props:
            raise OperationError(
                f"{key} is not supported by this double of plugin command: write the file's content to stdout"
            )
    args = [*(props.get("interpreter") or ["/bin/sh", "-c"]), command]
    output, stdin, error = Output(props.get("logging")), props.get("stdin", "").encode(), ""
    environment = {**os.environ, **props.get("environment", {}), **previous_output(props)}
    pipe = asyncio.subprocess.PIPE
    async with call.stoppable():
        pass  # cancelled before it began
    try:
        process = await asyncio.create_subprocess_exec(
            *args,
            cwd=props.get("dir"),
            env=environment,
            stdin=pipe if stdin else asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )
    except OSError as exc:
        return await output.finish(call, command, f"fork/exec {args[0]}: {exc.strerror.lower()}: {exc.filename}")

    async def read(stream, reader):
        while data := await reader.read(65536):
            output.feed(stream, data)

    async def write():
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # os/exec ignores it as well
            process.stdin.write(stdin)
            await process.stdin.drain()
        process.stdin.close()

    async def wait():
        try:
            async with call.stoppable():
                await process.wait()
        except OperationError:
            process.kill()

    async with asyncio.TaskGroup() as group:
        group.create_task(read("stdout", process.stdout))
        group.create_task(read("stderr", process.stderr))
        group.create_task(wait())
        if stdin:
            group.create_task(write())
    if code := await process.wait():
        error = f"exit status {code}" if code > 0 else f"signal: {signal.strsignal(-code).lower()}"
    return await output.finish(call, command, error)


class Session(asyncssh.SSHClientSession):
    def __init__(self, output):
        self.output, self.error = output, "wait: remote command exited without exit status or exit signal"
        self.closed, self.taken = asyncio.get_running_loop().create_future(), True

    def connection_made(self, chan):
        self.chan = chan

    def data_received(self, data, datatype):
        self.output.feed("stderr" if datatype else "stdout", data)

    def eof_received(self):
        return True  # keep the channel for the exit status

    def exit_status_received(self, status):
        self.error = f"Process exited with status {status}" if status else ""
        self.taken = not self.chan.get_write_buffer_size()

    def exit_signal_received(self, name, core_dumped, msg, lang):
        number = getattr(signal, f"SIG{name}", 0)
        self.error = f"Process exited with status {128 + number} from signal {name}" + (
            f". Reason was: {msg}" if msg else ""
        )

    def connection_lost(self, exc):
        self.closed.set_result(None)


class Channel(asyncssh.SSHClientChannel):
    """A session channel that waits for the answer to each variable, as Setenv does (asyncssh asks for none)."""

    call, environment, optional = None, {}, {}

    async def _open(self, chantype, *args):
        packet = await super()._open(chantype, *args)
        for key, value in [*self.environment.items(), *self.optional.items()]:
            if await self._make_request(b"env", asyncssh.packet.String(key), asyncssh.packet.String(value)):
                continue
            hint = f"""Unable to set '{key}'. This only works if your SSH server is configured to accept
	these variables via AcceptEnv. Alternatively, if a Bash-like shell runs the command on the remote host, you could
	prefix the command itself with the variables in the form 'VAR=value command'"""
            if key in self.optional:
                await self.call.log(hint, engine_pb2.WARNING)
            else:
                await self.call.log(hint, engine_pb2.ERROR)
                raise OperationError(f'could not set environment variable "{key}": ssh: setenv failed')
        return packet


async def run_remote(call, props, command):
    output = Output(props.get("logging"))
    async with dial(call, props["connection"]) as connection:
        chan = Channel(connection, asyncio.get_running_loop(), "strict", None, "strict", 2 << 20, 32 << 10)
        chan.call, chan.environment, chan.optional = call, props.get("environment", {}), previous_output(props)
        session = Session(output)
        try:
            await chan.create(lambda: session, command, None, {}, False, None, (), {}, False, None, None, False, False)
        except asyncssh.ChannelOpenError:
            return await output.finish(call, command, f"ssh: command {command} failed")
        stdin, taken = props.get("stdin", "").encode(), True
        try:
            chan.write(stdin)
            chan.write_eof()
        except OSError:  # it has ended already
            taken = not stdin
        await session.closed
    return await output.finish(call, command, session.error or ("" if taken and session.taken else "EOF"))


# Connections


@contextlib.asynccontextmanager
async def dial(call, connection):
    options, proxy = ssh_options(connection), connection.get("proxy")
    async with contextlib.AsyncExitStack() as stack, contextlib.AsyncExitStack() as waiting:
        await waiting.enter_async_context(call.stoppable())
        try:
            tunnel = None
            if proxy:
                tunnel = await retrying(call, "Dial proxy", proxy, ssh_options(proxy))
                await stack.enter_async_context(tunnel)
            client = await retrying(call, "Dial", connection, options, tunnel)
        except OperationError as exc:
            raise OperationError(f"proxy: {exc}" if proxy else str(exc)) from None
        await stack.enter_async_context(client)
        await waiting.aclose()
        yield client


def ssh_options(connection):
    """Give asyncssh's options: nothing from files, agent or environment; without a host key none is checked."""
    if "agentSocketPath" in connection:
        raise OperationError(
            "agentSocketPath is not supported by this double of plugin command: give privateKey or password"
        )
    host_key, key, password = (connection.get(name) for name in ("hostKey", "privateKey", "password"))
    try:
        pinned = asyncssh.import_public_key(host_key) if host_key is not None else None
    except asyncssh.KeyImportError as exc:
        raise OperationError(f"failed to parse host key: ssh: no key found ({exc})") from None
    try:
        keys = [asyncssh.import_private_key(key, connection.get("privateKeyPassword"))] if key is not None else None
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as exc:
        raise OperationError(f"ssh: cannot use privateKey: {exc}") from None

    class Client(asyncssh.SSHClient):
        submethods = iter([] if password is None else [""])

        def kbdint_auth_requested(self):
            return next(self.submethods, None)  # once

        def kbdint_challenge_received(self, name, instructions, lang, prompts):
            return [password] * len(prompts)

    return {
        "username": connection["user"],
        "client_factory": Client,
        "client_keys": keys,
        "password": password,
        "known_hosts": ([pinned], [], []) if pinned else None,
        "server_host_key_algs": [pinned.get_algorithm()] if pinned else (),
        "preferred_auth": ["publickey", "password", "keyboard-interactive"],
        "config": None,
        "agent_path": None,
        "gss_host": None,
        "login_timeout": 0,
    }


async def retrying(call, what, connection, options, tunnel=None):
    """Dial until it works or dialErrorLimit retries are spent (-1: without end); pauses grow from 0.1 to 5 s."""
    limit, failed, pause = int(connection["dialErrorLimit"]), 0, 0.1
    while True:
        try:
            return await dial_once(connection, options, tunnel)
        except OperationError as exc:
            if -1 < limit < failed + 1:
                raise OperationError(f"after {failed} failed attempts: {exc}") from None
        failed += 1
        await call.log(f"{what} {failed}/{'inf' if limit == -1 else limit} failed: retrying", status=True)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 5)


async def dial_once(connection, options, tunnel):
    host, port, timeout = connection["host"], int(connection["port"]), int(connection["perDialTimeout"])
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    loop, sock = asyncio.get_running_loop(), None
    if not tunnel:
        try:
            async with asyncio.timeout(timeout or None):
                family, kind, proto, _, target = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
                sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, proto)
                await loop.sock_connect(sock, target)
        except BaseException as exc:
            if sock:
                sock.close()
            if isinstance(exc, TimeoutError):
                raise OperationError(f"dial tcp {address}: i/o timeout") from None
            if isinstance(exc, socket.gaierror):
                raise OperationError(f"dial tcp: lookup {host}: no such host") from None
            if isinstance(exc, OSError):
                raise OperationError(f"dial tcp {address}: connect: {os.strerror(exc.errno).lower()}") from None
            raise
    try:
        return await asyncssh.connect(host, port, **options, **({"tunnel": tunnel} if tunnel else {"sock": sock}))
    except asyncssh.HostKeyNotVerifiable:
        raise OperationError("ssh: handshake failed: ssh: host key mismatch") from None
    except asyncssh.PermissionDenied as exc:
        raise OperationError(f"ssh: handshake failed: ssh: unable to authenticate ({exc.reason})") from None
    except asyncssh.KeyExchangeFailed as exc:
        raise OperationError(f"ssh: handshake failed: ssh: no common algorithm for host key; {exc.reason}") from None
    except asyncssh.ChannelOpenError as exc:
        raise OperationError(f"ssh: rejected: connect failed ({exc.reason})") from None
    except (asyncssh.Error, OSError) as exc:
        raise OperationError(f"ssh: handshake failed: {exc}") from None


# Copies


async def copy(call, props):
    source, target = props["source"], props["remotePath"]
    async with dial(call, props["connection"]) as connection, connection.start_sftp_client() as sftp:
        stat = await remote_stat(sftp, target)
        if signed(source, ASSET) and not source.get("path"):
            if stat == "directory":
                raise OperationError(
                    f"remote path {target} is a directory; when using a text asset, remotePath must be a file path"
                )
            await make_parents(sftp, target)
            await write_file(sftp, source.get("text", "").encode(), target)
        elif Path(source["path"]).is_dir():
            if not stat:
                await sftp.makedirs(target, exist_ok=True)
            if not source["path"].endswith("/"):
                target = f"{target.rstrip('/')}/{Path(source['path']).name}"
            await copy_directory(sftp, Path(source["path"]), target)
        else:
            content = Path(source["path"]).read_bytes()
            if stat == "directory":
                target = f"{target.rstrip('/')}/{Path(source['path']).name}"
            elif not stat:
                await make_parents(sftp, target)
            await write_file(sftp, content, target)


async def remote_stat(sftp, path):
    try:
        attrs = await sftp.stat(path)
    except asyncssh.SFTPNoSuchFile:
        return None
    return "directory" if attrs.type == asyncssh.FILEXFER_TYPE_DIRECTORY else "file"


async def make_parents(sftp, path):
    try:
        await sftp.makedirs(str(Path(path).parent), exist_ok=True)
    except asyncssh.SFTPError as exc:
        raise OperationError(f"failed to create parent directories for {path}: {exc.reason}") from None


async def write_file(sftp, content, path):
    try:
        async with sftp.open(path, "wb") as remote:
            await remote.write(content)
    except asyncssh.SFTPError as exc:
        raise OperationError(f"failed to create remote file {path}: {exc.reason}") from None


async def copy_directory(sftp, source, target):
    stat = await remote_stat(sftp, target)
    if stat == "file":
        raise OperationError(f"remote path {target} exists but is not a directory")
    if not stat:
        await sftp.mkdir(target)
    for entry in sorted(source.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            await copy_directory(sftp, entry, f"{target}/{entry.name}")
        else:
            await write_file(sftp, entry.read_bytes(), f"{target}/{entry.name}")


# The provider


class CommandProvider(provider_pb2_grpc.ResourceProviderServicer):
    def __init__(self, engine, journal):
        self.engine = engine_pb2_grpc.EngineStub(grpc.aio.insecure_channel(engine)) if engine else None
        self.journal, self.cancelled, self.stoppable, self.running = journal, False, set(), set()

    async def perform(self, context, operation, urn=""):
        """Run an operation to its end, also when the engine goes away; its failure is the answer."""

        async def journaled():
            self.note(urn, "start")
            result = await operation
            self.note(urn, "done")
            return result

        task = asyncio.create_task(journaled())
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        try:
            return await asyncio.shield(task)
        except OperationError as exc:
            await context.abort(grpc.StatusCode.UNKNOWN, str(exc))
        except OSError as exc:
            text = f"open {exc.filename}: {exc.strerror.lower()}" if exc.filename else str(exc)
            await context.abort(grpc.StatusCode.UNKNOWN, text)
        except asyncssh.Error as exc:
            await context.abort(grpc.StatusCode.UNKNOWN, f"ssh: {exc.reason}")

    def note(self, urn, step):
        if urn and self.journal:
            with Path(f"{self.journal}.journal").open("a") as file:
                file.write(f"{urn} {step}\n")

    async def kind(self, urn, context):
        kind = urn.split("::")[2].rsplit("$", 1)[-1]
        if kind not in INPUTS:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{kind} is not served by this double of plugin command")
        return kind

    async def GetPluginInfo(self, request, context):
        return plugin_pb2.PluginInfo(version="1.2.1")

    async def GetSchema(self, request, context):
        return provider_pb2.GetSchemaResponse(schema="{}")

    async def CheckConfig(self, request, context):
        return provider_pb2.CheckResponse(inputs=request.news)

    async def DiffConfig(self, request, context):
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    async def Configure(self, request, context):
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True, acceptResources=True)

    async def Check(self, request, context):
        inputs, failures = check(await self.kind(request.urn, context), load(request.news))
        failures = [provider_pb2.CheckFailure(property=key, reason=reason) for key, reason in failures]
        return provider_pb2.CheckResponse(inputs=dump(inputs), failures=failures)

    async def Diff(self, request, context):
        old, new, state = load(request.old_inputs), load(request.news), load(request.olds)
        new |= {key: state[key] for key in request.ignoreChanges if key in state}
        new = {key: value for key, value in new.items() if key != "version" and not key.startswith("__")}
        detailed = {
            path: kind + (path == "triggers") for path, kind in differences(old, new)
        }  # each kind's replacement is the next
        heads = {path: path.split("[")[0].split(".")[0] for path in detailed}
        return provider_pb2.DiffResponse(
            changes=provider_pb2.DiffResponse.DIFF_SOME if detailed else provider_pb2.DiffResponse.DIFF_NONE,
            diffs=sorted(set(heads.values())),
            replaces=["triggers"] if "triggers" in detailed else [],
            detailedDiff={path: provider_pb2.PropertyDiff(kind=kind) for path, kind in detailed.items()},
            hasDetailedDiff=True,
        )

    async def Create(self, request, context):
        kind, inputs = await self.kind(request.urn, context), load(request.properties)
        props, unique, outputs = bare(inputs), secrets.token_hex(4), {}
        call = Call(self, request.urn, request.timeout)
        if kind == "command:remote:CopyToRemote":
            if request.preview:
                unique = ""
            else:
                await self.perform(context, copy(call, props), request.urn)
        else:
            unique = request.urn.split("::", 3)[3] + unique
            outputs = dict.fromkeys(("stdout", "stderr"), rpc.UNKNOWN if request.preview else "")
            if not request.preview:
                outputs |= await self.perform(context, self.run(call, kind, props, props.get("create")), request.urn)
        return provider_pb2.CreateResponse(id=unique, properties=dump({**inputs, **outputs}))

    async def Update(self, request, context):
        kind, inputs, state = await self.kind(request.urn, context), load(request.news), load(request.olds)
        inputs |= {key: state[key] for key in request.ignoreChanges if key in state}
        props, old = bare(inputs), bare(state)
        outputs, call = (
            {key: old[key] for key in ("stdout", "stderr") if key in old},
            Call(self, request.urn, request.timeout),
        )
        if request.preview:
            changed = (
                (key in state and state[key] != inputs.get(key)) or props.get(key) == rpc.UNKNOWN
                for key in INPUTS[kind]
            )
            if any(changed):
                outputs = dict.fromkeys(outputs, rpc.UNKNOWN)
        elif kind == "command:remote:CopyToRemote":
            unchanged = all(comparable(props[key]) == comparable(old[key]) for key in ("source", "remotePath"))
            await self.perform(context, asyncio.sleep(0) if unchanged else copy(call, props), request.urn)
        else:
            command = props.get("update", props.get("create"))
            outputs |= await self.perform(context, self.run(call, kind, {**props, **outputs}, command), request.urn)
        return provider_pb2.UpdateResponse(properties=dump({**inputs, **outputs}))

    async def Delete(self, request, context):
        kind, props = await self.kind(request.urn, context), bare(load(request.properties))
        call = Call(self, request.urn, request.timeout)
        await self.perform(context, self.run(call, kind, props, props.get("delete")), request.urn)
        return empty_pb2.Empty()

    async def run(self, call, kind, props, command):
        if command is None:
            return {}
        return await (run_remote if kind == "command:remote:Command" else run_local)(call, props, command)

    async def Read(self, request, context):
        return provider_pb2.ReadResponse(id=request.id, properties=request.properties, inputs=request.inputs)

    async def Invoke(self, request, context):
        if request.tok != "command:local:run":
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"{request.tok} is not served by this double of plugin command"
            )
        args, failures = check(request.tok, load(request.args))
        if failures:
            return provider_pb2.InvokeResponse(
                failures=[provider_pb2.CheckFailure(property=key, reason=reason) for key, reason in failures]
            )
        props = bare(args)
        outputs = await self.perform(context, run_local(Call(self), props, props["command"]))
        return provider_pb2.InvokeResponse(**{"return": dump({**args, **outputs})})

    async def Cancel(self, request, context):
        self.cancelled = True
        for task in self.stoppable:
            task.cancel()
        return empty_pb2.Empty()


async def _not_served(self, request, context):
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not implemented")


for _name in vars(provider_pb2_grpc.ResourceProviderServicer).keys() - vars(CommandProvider).keys():
    if _name[0] != "_":
        setattr(CommandProvider, _name, _not_served)


async def main():
    parent, loop, stop = os.getppid(), asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    engine = next((arg for arg in reversed(sys.argv[1:]) if not arg.startswith("-")), None)
    size = 400 << 20  # as the original's
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size)]
    )
    provider = CommandProvider(engine, os.environ.get("HG_LAB_CUT"))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    while not stop.is_set() and (os.getppid() == parent or provider.running):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
