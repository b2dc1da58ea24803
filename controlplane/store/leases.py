"""Who may act: a node's term (node, epoch), kept alive by a heartbeat, and the finding of dead terms.

A term is one document: `{_id: "<node>:<epoch>", n, e, beat, state, by, host, url, checkpoint, acted}`; `state` is live → released → closed, or live → closed.
Nobody compares wall clocks. The owner counts its lease on its own monotonic clock from *before* the renewal that succeeded, less a margin;
others call a term dead when they have seen no new heartbeat for the whole lease plus the margin on theirs. So the owner stops first.

A restarted node need not wait for that when the operating system proves that its former self is gone: both hold the same file lock on the same
boot of the same host, and only one can.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymongo.errors import DuplicateKeyError

from controlplane.clock import Clock
from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.settings import Settings
from controlplane.store.client import Database, Document, border
from controlplane.store.schema import TERMS

__all__ = ["Checkpoint", "HostLock", "Lease", "Term", "Terms", "fresh_term", "require"]

_COUNTED_FROM = 1_577_836_800
"""2020-01-01 in seconds since the Unix epoch. Seconds from then on fit 31 bits until 2088: the ledger packs a term and a round into one 64-bit integer."""
LIVE, RELEASED, CLOSED = "live", "released", "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """From where a successor has to read. Everything at or below the numbers is settled, but for the stragglers."""

    q: int = 0
    """Messages accepted or adopted up to here are final or in `stragglers`."""
    stragglers: tuple[str, ...] = ()
    callbacks_q: int = 0
    """Callbacks of events up to here are sent or parked."""
    intent: int = 0
    """Intents up to here have all their outcomes."""

    def as_document(self) -> Document:
        """The checkpoint as stored in its term."""
        return {
            "q": self.q,
            "stragglers": list(self.stragglers),
            "callbacks_q": self.callbacks_q,
            "intent": self.intent,
        }


@dataclass(frozen=True, slots=True)
class Term:
    """One node's term of ownership, as read."""

    node: str
    epoch: int
    beat: int
    state: str
    by: str
    """Who has claimed it for adoption; empty = nobody."""
    host: str
    checkpoint: Checkpoint

    @property
    def id(self) -> str:
        """`<node>:<epoch>`."""
        return f"{self.node}:{self.epoch}"


def _term(document: Document) -> Term:
    checkpoint = document.get("checkpoint", {})
    return Term(
        node=document["n"],
        epoch=document["e"],
        beat=document["beat"],
        state=document["state"],
        by=document.get("by", ""),
        host=document.get("host", ""),
        checkpoint=Checkpoint(
            q=checkpoint.get("q", 0),
            stragglers=tuple(checkpoint.get("stragglers", ())),
            callbacks_q=checkpoint.get("callbacks_q", 0),
            intent=checkpoint.get("intent", 0),
        ),
    )


def fresh_term(newest: int, now_ms: int) -> int:
    """The number of a term that begins at `now_ms` (ms since the Unix epoch): above `newest`, the largest that the store knows, and no less than the time.

    A database that was put back to an older state has forgotten terms under which events, and proofs of them, are abroad: none of them is begun again. Each of
    them was given a number no later than its time, but for terms that followed each other within a second. A clock that was set back leaves `newest` + 1.
    """
    return max(newest + 1, now_ms // 1000 - _COUNTED_FROM)


class HostLock:
    """An exclusive lock that the kernel drops when the process ends, however it ends."""

    def __init__(self, state_dir: Path, node: str) -> None:
        path = state_dir / f"node-{node}.lock"
        try:
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = path.open("a")
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be opened ({error.strerror}). Set HELIOGRAPH_STATE_DIR to a directory that this user may write."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConfigError(
                f"Another process runs as node {node!r} (it holds {path}). Stop it, or set HELIOGRAPH_NODE to another name."
            ) from error
        boot = Path("/proc/sys/kernel/random/boot_id")
        boot_id = boot.read_text(encoding="ascii").strip() if boot.exists() else f"{os.uname().nodename}"
        self.host = f"{boot_id}:{path.resolve()}"
        """Equal for two processes only when they compete for this very lock since the same boot."""

    def release(self) -> None:
        """Let go; the kernel does the same when the process ends."""
        self._file.close()


@dataclass(slots=True)
class Lease:
    """This node's own term, as it stands on its own clock."""

    dc: str
    node: str
    epoch: int
    clock: Clock
    seconds: float
    margin: float
    confirmed: float = field(default=float("-inf"))
    """Monotonic time just before the last successful renewal was sent."""
    beat: int = 0
    away_ms: int | None = None
    """How long before this term any node of the datacenter was last known to act (`acted`), by the wall clocks; None where none ever was."""
    undoubted: bool = False
    """It acts, and not only for new messages: another datacenter has not taken over what was open here, or what it took is known (dispatch.comeback)."""
    fenced: bool = False
    """Somebody closed our term: nothing may be submitted or accepted any more."""

    @property
    def id(self) -> str:
        """`<node>:<epoch>`."""
        return f"{self.node}:{self.epoch}"

    @property
    def valid(self) -> bool:
        """Whether this node may submit now."""
        return not self.fenced and self.clock.monotonic() < self.confirmed + self.seconds - self.margin


class Terms:
    """The terms of a datacenter's nodes."""

    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        self._terms = database[TERMS]
        self._settings = settings
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}
        """Term id → (beat, when this process first saw that beat)."""

    async def open(self, host: str) -> Lease:
        """Begin a new term. Marks former terms of this node as released where `host` proves their process gone."""
        settings = self._settings
        with border():
            await self._terms.update_many(
                {"n": settings.node, "state": LIVE, "host": host}, {"$set": {"state": RELEASED}}
            )
            acted = await self._terms.find_one({"acted": {"$exists": True}}, {"acted": 1}, sort=[("acted", -1)])
            while True:
                newest = await self._terms.find_one({"n": settings.node}, sort=[("e", -1)])
                epoch = fresh_term(newest["e"] if newest else 0, self._clock.now_ms())
                lease = Lease(
                    settings.datacenter,
                    settings.node,
                    epoch,
                    self._clock,
                    settings.lease_seconds,
                    settings.lease_margin_seconds,
                )
                now = self._clock.monotonic()
                document = {"n": settings.node, "e": epoch, "beat": 0, "state": LIVE, "by": "", "host": host}
                document["url"] = settings.peer_url
                try:
                    await self._terms.insert_one({"_id": lease.id, **document})
                except DuplicateKeyError:
                    continue
                lease.confirmed = now
                lease.away_ms = max(0, self._clock.now_ms() - acted["acted"]) if acted else None
                return lease

    async def url_of(self, node: str, epoch: int) -> str:
        """Where that term's node listens; "" when the term is over or its node told no address."""
        with border():
            document = await self._terms.find_one({"_id": f"{node}:{epoch}", "state": LIVE}, {"url": 1})
        return str(document.get("url", "")) if document else ""

    async def renew(self, lease: Lease, checkpoint: Checkpoint) -> None:
        """One heartbeat. Sets `lease.fenced` when the term is no longer ours; raises StoreUnavailableError when MongoDB is away."""
        now = self._clock.monotonic()
        fields: Document = {"checkpoint": checkpoint.as_document()}
        if lease.undoubted:
            fields["acted"] = self._clock.now_ms()
        with border():
            result = await self._terms.update_one(
                {"_id": lease.id, "state": LIVE, "by": ""}, {"$inc": {"beat": 1}, "$set": fields}
            )
        if result.matched_count:
            lease.confirmed = now
        else:
            lease.fenced = True

    async def release(self, lease: Lease, checkpoint: Checkpoint) -> None:
        """End the term in good order: whoever comes next need not wait."""
        with border():
            await self._terms.update_one(
                {"_id": lease.id, "state": LIVE},
                {"$set": {"state": RELEASED, "checkpoint": checkpoint.as_document()}},
            )

    async def adoptable(self, own: Lease) -> list[Term]:
        """Terms whose messages somebody must adopt: released, or silent for the whole lease and margin, and not claimed by a living node."""
        with border():
            terms = [_term(document) async for document in self._terms.find({"state": {"$ne": CLOSED}})]
        now = self._clock.monotonic()
        silence = self._settings.lease_seconds + self._settings.lease_margin_seconds
        dead: set[str] = set()
        present = {term.id for term in terms}
        for term in terms:
            beat, since = self._seen.get(term.id, (-1, now))
            if beat != term.beat:
                self._seen[term.id] = (term.beat, now)
            elif term.state == RELEASED or now - since >= silence:
                dead.add(term.id)
            if term.state == RELEASED:
                dead.add(term.id)
        self._seen = {key: value for key, value in self._seen.items() if key in present}
        return [
            term
            for term in terms
            if term.id in dead and term.id != own.id and (not term.by or term.by in dead or term.by not in present)
        ]

    async def claim(self, term: Term, own: Lease) -> Term | None:
        """Take a dead term for adoption, if nobody else just did. From here on its former owner is fenced."""
        with border():
            document: dict[str, Any] | None = None
            result = await self._terms.update_one(
                {"_id": term.id, "beat": term.beat, "by": term.by, "state": term.state},
                {"$set": {"by": own.id}},
            )
            if result.matched_count:
                document = await self._terms.find_one({"_id": term.id})
        return _term(document) if document else None

    async def close(self, term: Term) -> None:
        """The term's messages all have a new owner."""
        with border():
            await self._terms.update_one({"_id": term.id}, {"$set": {"state": CLOSED}})


def require(lease: Lease) -> None:
    """Raise StoreUnavailableError unless this node may act."""
    if not lease.valid:
        raise StoreUnavailableError(
            f"Node {lease.node} has no valid lease; it takes no messages until MongoDB confirms one."
        )
