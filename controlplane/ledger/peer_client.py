"""Speaking to another datacenter's ledgers, and to witnesses of others: any of a peer's addresses may answer."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from controlplane.ledger.checkpoint import CheckpointError, parse_size
from controlplane.ledger.entries import Row
from controlplane.ledger.wire import (
    MAX_NOTE,
    MAX_REPLY_BYTES,
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
from controlplane.settings import Peer, Settings, Witness
from controlplane.store.copies import origin_hash
from controlplane.store.preference_news import Mark, News

__all__ = ["Answer", "LedgerClient", "PeerError", "peer_tls"]

_CONNECT_SECONDS = 5.0
_SILENCE_SECONDS = 15.0
"""Without a byte, beyond what was asked to wait."""
_LIST_BYTES = 1024 * 1024


class PeerError(Exception):
    """No address gave a usable answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    media_type: str
    body: bytes

    @property
    def size(self) -> int | None:
        """The tree size of a 409 (text/x.tlog.size); None where there is none."""
        try:
            return parse_size(self.body.decode("ascii").removesuffix("\n"))
        except (UnicodeDecodeError, CheckpointError):
            return None


def peer_tls(settings: Settings) -> ssl.SSLContext | None:
    """What a ledger shows to others and believes them by; None where the settings have no certificates."""
    if settings.ledger_tls_certificate is None or settings.ledger_tls_key is None:
        return None
    context = ssl.create_default_context(cafile=str(settings.ledger_tls_authorities))
    context.load_cert_chain(str(settings.ledger_tls_certificate), str(settings.ledger_tls_key))
    return context


class LedgerClient:
    """One per peer or witness; `async with` it. Every call raises PeerError when nobody answers as asked."""

    def __init__(self, name: str, urls: Sequence[str], tls: ssl.SSLContext | None) -> None:
        self.name = name
        """Datacenter, or a witness's name."""
        self._urls = [url.rstrip("/") for url in urls]
        self._tls: ssl.SSLContext | bool = tls if tls is not None else True
        self._session: aiohttp.ClientSession | None = None
        self.pulled_bytes = 0
        """Answers to pulls since the start."""

    @classmethod
    def of_peer(cls, peer: Peer, settings: Settings) -> Self:
        """Over mutual TLS where the settings have certificates."""
        return cls(peer.dc, peer.urls, peer_tls(settings))

    @classmethod
    def of_witness(cls, witness: Witness) -> Self:
        """Over the web's TLS."""
        return cls(witness.vkey.partition("+")[0], (witness.url,), None)

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(limit=16, ssl=self._tls)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(
        self, method: str, path: str, body: bytes | None = None, *, wait: float = 0.0, most: int = MAX_NOTE
    ) -> Answer:
        """From the address that answered last, or the next that does. 5xx, and an answer longer than `most` bytes, is none."""
        problems = []
        for _ in range(len(self._urls)):
            try:
                answer = await self._once(method, self._urls[0] + path, body, wait, most)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                problems.append(f"{self._urls[0]}: {error!r}"[:200])
            else:
                if answer.status < 500:
                    return answer
                problems.append(f"{self._urls[0]}: HTTP {answer.status}")
            self._urls.append(self._urls.pop(0))
        raise PeerError(f"{self.name}: {'; '.join(problems)}")

    async def _once(self, method: str, url: str, body: bytes | None, wait: float, most: int) -> Answer:
        if self._session is None:
            raise RuntimeError("LedgerClient is used outside its `async with`")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS + wait)
        async with self._session.request(method, url, data=body, timeout=timeout, allow_redirects=False) as answer:
            received = bytearray()
            async for part in answer.content.iter_any():
                received += part
                if len(received) > most:
                    raise ValueError(f"an answer of more than {most} bytes")
            return Answer(answer.status, answer.content_type, bytes(received))

    # -- C2SP tlog-witness ---------------------------------------------------------------------------------------------

    async def add_checkpoint(self, body: bytes) -> Answer:
        """200, 400, 403, 404, 409, 422 are all answers."""
        return await self.request("POST", "/add-checkpoint", body)

    async def cosigned(self, origin: str) -> str | None:
        """The newest checkpoint that this witness cosigned; None for none. Nothing of it is verified."""
        return _text(await self.request("GET", f"/{origin_hash(origin)}/checkpoint"))

    # -- between ledgers -----------------------------------------------------------------------------------------------

    async def pull(self, ask: Ask) -> Reply:
        """POST /mirror. Nothing of the answer is verified but its form."""
        answer = await self.request("POST", "/mirror", encode(ask), wait=ask.wait_ms / 1000, most=MAX_REPLY_BYTES)
        self.pulled_bytes += len(answer.body)
        return self._decoded(answer, Reply)

    async def payloads(self, origin: str, indices: Sequence[int]) -> list[Row | None]:
        """POST /payloads: these entries; None for each that is not held. Verify them: `entries.event_of`, and the leaf against the tree."""
        body = encode(Wanted(origin, list(indices)))
        answer = await self.request("POST", "/payloads", body, most=MAX_REPLY_BYTES)
        answered = self._decoded(answer, Answered)
        if len(answered.rows) != len(indices):
            raise PeerError(f"{self.name}: {len(answered.rows)} rows for {len(indices)} indices")
        return list(answered.rows)

    async def logs(self, dc: str) -> list[Listed]:
        """The logs of a datacenter that the peer holds, oldest first. Nothing of it is verified."""
        answer = await self.request("GET", f"/logs?dc={dc}", most=_LIST_BYTES)
        if answer.status != 200:
            raise self._refused(answer)
        try:
            return msgspec.json.decode(answer.body, type=list[Listed])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PeerError(f"{self.name}: not a list of logs: {error}") from None

    async def taken(self, dc: str) -> Taken:
        """GET /adoptions: which of the peer's terms took over messages of `dc`."""
        return self._decoded(await self.request("GET", f"/adoptions?dc={dc}"), Taken)

    async def routing_states(self, known: Mapping[str, int]) -> list[LearnedState]:
        """POST /routing-states: what the peer's own nodes have learned later than `known` (`<dc>/<node>` → ms) says."""
        answer = await self.request("POST", "/routing-states", encode(Known(dict(known))), most=MAX_REPLY_BYTES)
        return self._decoded(answer, Learned).states

    async def statistics(self, changed: int) -> list[dict[str, Any]]:
        """GET /statistics: what the peer's nodes have counted, written at or after `changed` (ms). Nothing of it is verified but its form."""
        answer = await self.request("GET", f"/statistics?changed={changed}", most=MAX_REPLY_BYTES)
        return self._decoded(answer, Counted).documents

    async def preferences(self, key_id: str, mark: Mark) -> News:
        """POST /preferences: what has changed since `mark`, of recipients hashed with this key."""
        body = encode(PreferenceAsk(key_id, mark.version, mark.token, mark.scan))
        answer = await self.request("POST", "/preferences", body, most=MAX_REPLY_BYTES)
        news = self._decoded(answer, PreferenceNews)
        return News(Mark(news.version, news.token, news.scan), news.head, news.told, news.scanned)

    async def checkpoint(self, origin: str) -> str | None:
        """The checkpoint of a log that the peer holds; None where it holds none."""
        return _text(await self.request("GET", f"/logs/{origin_hash(origin)}/checkpoint"))

    async def tile(self, origin: str, path: str) -> bytes | None:
        """A tile or bundle of a log that the peer holds (`tiles.Tile.path`); None where it has none."""
        answer = await self.request("GET", f"/logs/{origin_hash(origin)}/{path}", most=MAX_REPLY_BYTES)
        return answer.body if answer.status == 200 else None

    def _decoded(self, answer: Answer, kind: type[T]) -> T:
        if answer.status != 200:
            raise self._refused(answer)
        try:
            return decode(answer.body, kind)
        except ValueError as error:
            raise PeerError(f"{self.name}: {error}"[:300]) from None

    def _refused(self, answer: Answer) -> PeerError:
        return PeerError(f"{self.name}: HTTP {answer.status}: {answer.body[:200].decode(errors='replace')}")


def _text(answer: Answer) -> str | None:
    if answer.status != 200:
        return None
    try:
        return answer.body.decode()
    except UnicodeDecodeError:
        return None
