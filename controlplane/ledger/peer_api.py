"""The HTTP side of a ledger, for other datacenters' ledgers alone: over mutual TLS, or on one machine's loopback without.

Everything that it answers from is in MongoDB, so any ledger of a datacenter answers, whether it leads or not.

| call | |
|---|---|
| `POST /add-checkpoint`, `GET /<hash>/checkpoint` | our witness (c2sp.org/tlog-witness) |
| `POST /mirror` | entries of a log that is held here, own or mirrored, with payloads and proof; waits for news (`wire`) |
| `POST /payloads` | entries one by one, for repair |
| `POST /routing-states` | what this datacenter's nodes have learned about routes |
| `GET /statistics?changed=` | what they have counted of messages, written since |
| `POST /preferences` | recipients' suppressions and preferences |
| `GET /adoptions?dc=` | which of our terms took over that datacenter's messages |
| `GET /logs?dc=`, `GET /logs/<hash>/checkpoint`, `GET /logs/<hash>/tile/…` | which logs are held; each as c2sp.org/tlog-tiles |
| `GET /livez`, `/readyz`, `/metrics` | |

`<hash>` is hex(SHA-256(origin)).
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import structlog
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from controlplane.clock import Clock
from controlplane.domain.events import commitment
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.check import Fault
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.chunk import RefusedReplyError, open_note
from controlplane.ledger.entries import Row, place_of, row
from controlplane.ledger.news import Wait, look_again
from controlplane.ledger.note import Note, NoteError, Verifier, verify
from controlplane.ledger.published import Published, UnreadableLogError
from controlplane.ledger.tiles import ENTRIES, WIDTH, Tile, decode_bundle, parse_path
from controlplane.ledger.trust import Trust
from controlplane.ledger.wire import (
    MAX_COUNTED,
    MAX_STATES,
    MAX_TERMS,
    PULL_BYTES,
    Answered,
    Ask,
    Counted,
    Known,
    Learned,
    LearnedState,
    Listed,
    PreferenceAsk,
    PreferenceNews,
    Reply,
    T,
    Taken,
    Wanted,
    decode,
    encode,
)
from controlplane.ledger.witness import Forks, Witness
from controlplane.serving import RoleServer
from controlplane.settings import Settings
from controlplane.store.copies import local_mid, origin_hash
from controlplane.store.ledger import Cosigned, Finding, LedgerStore, Log
from controlplane.store.preference_news import Mark
from controlplane.store.preference_news import PreferenceNews as PreferenceStore
from controlplane.store.regions import RegionStore
from controlplane.store.routing_states import RoutingStates
from controlplane.store.statistics import Statistics

__all__ = ["PeerServer", "PeerServices", "create_app"]

_log = structlog.get_logger()
_MAX_BODY = 1024 * 1024
_MSGPACK = "application/msgpack"
_OTHER_KEY = (
    "recipients are hashed with another key here: opt-outs do not count across these datacenters. "
    "HELIOGRAPH_SECRET_KEY must be the same in both"
)
_STALLED_MS = 60_000
"""An adoption that has not said for so long how far it is goes on no more."""


@dataclass(frozen=True, kw_only=True)
class PeerServices:
    """What the handlers need."""

    settings: Settings
    clock: Clock
    store: LedgerStore
    published: Published
    witness: Witness
    forks: Forks
    health: Callable[[], tuple[bool, Mapping[str, str]]]
    """Whether this ledger does its work, and its checks by name."""
    registry: CollectorRegistry
    routing: RoutingStates
    preferences: PreferenceStore
    regions: RegionStore
    statistics: Statistics
    news: Wait = look_again


class _RefusedError(Exception):
    """Becomes an HTTP answer in plain text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def create_app(services: PeerServices) -> FastAPI:
    """The application. Without certificates in the settings, only loopback clients are served."""
    local_only = services.settings.ledger_tls_authorities is None

    async def guard(request: Request) -> None:
        if local_only and not _loopback(request):
            raise _RefusedError(403, "without HELIOGRAPH_LEDGER_TLS_… only this machine is served")

    app = FastAPI(dependencies=[Depends(guard)], openapi_url=None, docs_url=None, redoc_url=None)
    here = _Handlers(services)

    @app.exception_handler(_RefusedError)
    async def refused(_request: Request, error: _RefusedError) -> Response:
        return PlainTextResponse(f"{error}\n", error.status)

    @app.exception_handler(StoreUnavailableError)
    async def store_away(_request: Request, _error: StoreUnavailableError) -> Response:
        return PlainTextResponse("the store is away\n", 503)

    @app.exception_handler(UnreadableLogError)
    async def damaged(_request: Request, error: UnreadableLogError) -> Response:
        _log.error("log_unreadable", reason=str(error)[:300])
        return PlainTextResponse("what is asked for is damaged here\n", 503)

    app.post("/add-checkpoint")(here.add_checkpoint)
    app.get("/{digest}/checkpoint")(here.cosigned)
    app.post("/mirror")(here.mirror)
    app.post("/payloads")(here.payloads)
    app.post("/routing-states")(here.routing_states)
    app.post("/preferences")(here.preferences)
    app.get("/adoptions")(here.adoptions)
    app.get("/statistics")(here.statistics)
    app.get("/logs")(here.logs)
    app.get("/logs/{digest}/checkpoint")(here.checkpoint)
    app.get("/logs/{digest}/{path:path}")(here.tile)
    app.get("/livez")(here.live)
    app.get("/readyz")(here.ready)
    app.get("/metrics")(here.metrics)
    return app


def _loopback(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


class _Handlers:
    def __init__(self, services: PeerServices) -> None:
        self._services = services
        self._store = services.store
        self._trust = Trust(services.settings)

    # -- the witness ---------------------------------------------------------------------------------------------------

    async def add_checkpoint(self, request: Request) -> Response:
        """tlog-witness."""
        verdict = await self._services.witness.add(await _body(request))
        return Response(verdict.body, verdict.status, headers={"content-type": verdict.media_type})

    async def cosigned(self, digest: str) -> Response:
        """tlog-witness, monitoring."""
        note = await self._services.witness.newest(digest)
        if note is None:
            raise _RefusedError(404, "nothing was cosigned for this log")
        return PlainTextResponse(note)

    # -- the mirror's other side ---------------------------------------------------------------------------------------

    async def mirror(self, request: Request) -> Response:
        """A pull."""
        ask = await _message(request, Ask)
        log = await self._log(ask.origin)
        if ask.have and log.own:
            await self._take(log, ask)
        log = await self._news(log, ask)
        return Response(encode(await self._reply(log, ask)), media_type=_MSGPACK)

    async def _log(self, origin: str) -> Log:
        log = await self._store.log(origin)
        if log is None:
            raise _RefusedError(404, "this log is not held here")
        return log

    async def _news(self, log: Log, ask: Ask) -> Log:
        """The log, once it has more than is asked for, or has ended, or the asker's patience is at its end."""
        clock = self._services.clock
        end = clock.monotonic() + ask.wait_ms / 1000
        while log.size <= ask.start and not log.next and clock.monotonic() < end:
            await self._services.news()
            log = await self._log(ask.origin)
        return log

    async def _reply(self, log: Log, ask: Ask) -> Reply:
        rows = await self._rows(log, ask.start, min(log.size, ask.start + ask.limit)) if ask.start < log.size else []
        to = ask.start + len(rows)
        before, before_proof = b"", []
        if ask.prove and ask.start <= log.size:
            before = await self._services.published.root(log, ask.start)
            before_proof = await self._services.published.consistency(log, ask.start)
        return Reply(
            checkpoint=log.checkpoint,
            start=ask.start,
            to=to,
            size=log.size,
            proof=await self._services.published.consistency(log, to) if to <= log.size else [],
            entries=rows,
            next=log.next,
            before=before,
            before_proof=before_proof,
        )

    async def _rows(self, log: Log, start: int, end: int) -> list[Row]:
        """Whole bundles, until the answer is long enough."""
        rows: list[Row] = []
        total = 0
        while start < end and total < PULL_BYTES:
            stop = min(end, (start // WIDTH + 1) * WIDTH)
            bundle = Tile(ENTRIES, start // WIDTH, stop - start // WIDTH * WIDTH)
            data = (await self._services.published.read(log, [bundle]))[bundle]
            try:
                found = await self._opened(log, decode_bundle(data)[start % WIDTH :])
            except ValueError as error:
                raise UnreadableLogError(f"{log.origin}/{bundle.path}: {error}") from None
            total += sum(len(leaf) + len(payload or b"") for leaf, _, payload in found)
            rows += found
            start = stop
        return rows

    async def _opened(self, log: Log, leaves: Sequence[bytes]) -> list[Row]:
        """Leaves with salt and payload, where they are here and are what the leaf commits to: a damaged event must not stop its peers."""
        places = [place_of(leaf) for leaf in leaves]
        events = await self._store.events([(place.mid, place.k) for place in places])
        second = []
        for leaf, place in zip(leaves, places, strict=True):
            event = events.get(f"{place.mid}:{place.k}")
            if event is None or event.leaf != leaf:
                second.append((local_mid(place.mid, log.dc), place.k))
        elsewhere = await self._store.events(second) if second else {}
        rows: list[Row] = []
        for leaf, place in zip(leaves, places, strict=True):
            event = events.get(f"{place.mid}:{place.k}")
            if event is None or event.leaf != leaf:
                event = elsewhere.get(f"{local_mid(place.mid, log.dc)}:{place.k}")
            found = row(event) if event is not None and event.leaf == leaf else (leaf, None, None)
            rows.append(found if _committed(found) else (leaf, None, None))
        return rows

    async def _take(self, log: Log, ask: Ask) -> None:
        """A mirror says how much of our log it durably holds."""
        mirrors = list(self._trust.mirrors().values())
        own = {Verifier.parse(log.vkey), self._trust.own_key(log.origin)}
        try:
            note, checkpoint = open_note(ask.have, log.origin, [*own, *mirrors])
            verify(note, own)
            by = [each for each in verify(note, mirrors) if each.timestamp is not None]
        except (NoteError, RefusedReplyError) as error:
            raise _RefusedError(403, f"{error}") from None
        now = self._services.clock.now_ms()
        if checkpoint.size > log.size:
            detail = f"{by[0].name} holds {checkpoint.size} entries that we signed; here are {log.size}\n{note}"
            await self._store.report(Finding(kind=Fault.BEHIND, origin=log.origin, detail=detail, at=now))
            _log.error("log_behind", origin=log.origin, size=log.size, mirror=by[0].name, held=checkpoint.size)
            return
        if await self._services.published.root(log, checkpoint.size) != checkpoint.root:
            held = Checkpoint(log.origin, log.size, log.root)
            await self._services.forks.found(held, log.checkpoint, checkpoint, str(note))
            return
        for each in by:
            signatures = tuple(s for s in note.signatures if s.name in (log.origin, each.name))
            await self._store.save_cosignature(
                Cosigned(
                    origin=log.origin,
                    cosigner=each.name,
                    role="mirror",
                    size=checkpoint.size,
                    note=str(Note(note.text, signatures)),
                    at=now,
                )
            )

    async def routing_states(self, request: Request) -> Response:
        """Of this datacenter's own nodes: a peer hears of others from themselves."""
        known = (await _message(request, Known)).states
        found = await self._services.routing.newer(known, self._services.settings.datacenter)
        states = [LearnedState(item.node, item.at, item.state) for item in found[:MAX_STATES]]
        return Response(encode(Learned(states)), media_type=_MSGPACK)

    async def statistics(self, changed: int) -> Response:
        """Of this datacenter's own nodes. A full answer has a next one."""
        found = await self._services.statistics.changed_since(changed, MAX_COUNTED)
        return Response(encode(Counted(found)), media_type=_MSGPACK)

    async def preferences(self, request: Request) -> Response:
        """All that is held here, wherever it was written. 409 where the asker could not find its recipients in it."""
        ask, store = await _message(request, PreferenceAsk), self._services.preferences
        if ask.key != store.key_id:
            raise _RefusedError(409, _OTHER_KEY)
        news = await store.since(Mark(ask.version, ask.token, ask.scan))
        answer = PreferenceNews(*news.mark, news.head, news.told, news.scanned)
        return Response(encode(answer), media_type=_MSGPACK)

    async def adoptions(self, dc: str) -> Response:
        """For a datacenter that has come back."""
        here, now = self._services.settings.datacenter, self._services.clock.now_ms()
        terms, running = await self._services.regions.taken_by(here, dc, now - _STALLED_MS)
        return Response(encode(Taken(terms[-MAX_TERMS:], running)), media_type=_MSGPACK)

    async def payloads(self, request: Request) -> Response:
        """Entries one by one."""
        wanted = await _message(request, Wanted)
        log = await self._log(wanted.origin)
        rows: list[Row | None] = []
        for index in wanted.indices:
            if index >= log.size:
                rows.append(None)
                continue
            leaf = await self._services.published.entry(log, index)
            rows += await self._opened(log, [leaf])
        return Response(encode(Answered(rows)), media_type=_MSGPACK)

    # -- logs ----------------------------------------------------------------------------------------------------------

    async def logs(self, dc: str) -> Response:
        """Which of a datacenter's logs are held here, oldest first."""
        found = [
            Listed(log.origin, log.size, log.state, log.previous, log.next) for log in await self._store.logs(dc=dc)
        ]
        return Response(msgspec.json.encode(found), media_type="application/json")

    async def checkpoint(self, digest: str) -> Response:
        """tlog-tiles. As it is now: a peer's start rule asks."""
        log = self._find(digest, await self._store.logs())
        if not log.checkpoint:
            raise _RefusedError(404, "this log has no checkpoint yet")
        return PlainTextResponse(await self._services.published.checkpoint(log))

    async def tile(self, digest: str, path: str) -> Response:
        """tlog-tiles."""
        log = self._find(digest, await self._services.published.logs())
        try:
            tile = parse_path(path)
            data = (await self._services.published.read(log, [tile]))[tile]
        except (ValueError, KeyError):
            raise _RefusedError(404, "no such tile") from None
        return Response(data, media_type="application/octet-stream")

    @staticmethod
    def _find(digest: str, logs: Sequence[Log]) -> Log:
        for log in logs:
            if origin_hash(log.origin) == digest:
                return log
        raise _RefusedError(404, "this log is not held here")

    # -- health --------------------------------------------------------------------------------------------------------

    async def live(self) -> Response:
        """Always 200 while the event loop turns."""
        return PlainTextResponse("ok\n")

    async def ready(self) -> Response:
        """503 with the failing checks when this ledger does not do its work."""
        good, checks = self._services.health()
        return JSONResponse({"ready": good, "checks": dict(checks)}, 200 if good else 503)

    async def metrics(self) -> Response:
        """Text exposition format."""
        return Response(generate_latest(self._services.registry), media_type=CONTENT_TYPE_LATEST)


def _committed(found: Row) -> bool:
    leaf, salt, payload = found
    return salt is None or payload is None or f'"commit":"{commitment(salt, payload)}"'.encode() in leaf


async def _body(request: Request) -> bytes:
    received = bytearray()
    async for part in request.stream():
        received += part
        if len(received) > _MAX_BODY:
            raise _RefusedError(413, f"more than {_MAX_BODY} bytes")
    return bytes(received)


async def _message(request: Request, kind: type[T]) -> T:
    try:
        return decode(await _body(request), kind)
    except ValueError as error:
        raise _RefusedError(400, str(error)[:300]) from None


class PeerServer(RoleServer):
    """Serves the application. With certificates in the settings nobody gets in without one of the same authorities."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        tls = settings.ledger_tls_certificate
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=2,
                ssl_certfile=tls,
                ssl_keyfile=settings.ledger_tls_key,
                ssl_ca_certs=str(settings.ledger_tls_authorities) if tls else None,
                ssl_cert_reqs=ssl.CERT_REQUIRED if tls else ssl.CERT_NONE,
            )
        )
