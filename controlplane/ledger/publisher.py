"""Shows our checkpoints to one witness, a peer's or somebody else's, and keeps its cosignatures (c2sp.org/tlog-witness, v1.0.0 and HEAD).

One request at a time, the newest checkpoint only; sequencing waits for nobody. A witness that has seen more than we have, or another root of the same size,
says that this log was restored or forked: a finding, and an alarm.
"""

from __future__ import annotations

import asyncio
import base64
import random

import structlog

from controlplane.clock import Clock
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.check import Fault
from controlplane.ledger.checkpoint import Checkpoint, CheckpointError
from controlplane.ledger.news import Wait, look_again
from controlplane.ledger.note import Note, NoteError, Verifier, parse_note, parse_signature, verify
from controlplane.ledger.peer_client import Answer, LedgerClient, PeerError
from controlplane.ledger.published import Published, UnreadableLogError
from controlplane.ledger.witness import Forks
from controlplane.store.ledger import Cosigned, Finding, LedgerStore, Log
from controlplane.tasks import going_on

__all__ = ["Publisher", "request_body"]

_log = structlog.get_logger()
_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0


class WitnessRefusedError(Exception):
    """The witness did not cosign, and why."""


class Publisher:
    """One per witness; it runs in the ledger that leads."""

    def __init__(
        self,
        store: LedgerStore,
        published: Published,
        client: LedgerClient,
        verifier: Verifier,
        clock: Clock,
        forks: Forks,
        news: Wait = look_again,
    ) -> None:
        self._store = store
        self._published = published
        self._client = client
        self._verifier = verifier
        self._clock = clock
        self._forks = forks
        self._news = news
        self._known: dict[str, int] = {}
        """Log → the size that this witness cosigned last."""
        self.problem = ""
        """Why it does not cosign; empty while it does."""

    @property
    def name(self) -> str:
        """The witness's."""
        return self._verifier.name

    async def run(self) -> None:
        """Until cancelled. Nothing that a witness does ends it."""
        pause = _PAUSE_SECONDS
        while going_on():
            try:
                done = await self.step()
            except (PeerError, WitnessRefusedError, UnreadableLogError, StoreUnavailableError) as error:
                if self.problem != str(error)[:300]:
                    _log.warning("witness_does_not_cosign", witness=self.name, reason=str(error)[:300])
                self.problem = str(error)[:300]
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads retries
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                pause, self.problem = _PAUSE_SECONDS, ""
                if not done:
                    await self._news()

    async def step(self) -> bool:
        """Show what is new; whether there was anything. Raises PeerError, WitnessRefusedError, UnreadableLogError, StoreUnavailableError."""
        if not self._known:
            mine = [each for each in await self._store.cosignatures() if each.cosigner == self.name]
            self._known = {each.origin: each.size for each in mine}
        done = False
        for log in await self._store.logs(own=True):
            if log.checkpoint and log.size > self._known.get(log.origin, -1):
                await self._show(log, self._known.get(log.origin, 0))
                done = True
        return done

    async def _show(self, log: Log, old: int) -> None:
        if old > log.size:  # sealed at an earlier size, after that was cosigned
            return
        answer = await self._client.add_checkpoint(
            request_body(log.checkpoint, old, await self._published.consistency(log, old))
        )
        if answer.status == 409 and answer.size is not None and answer.size != old and answer.size <= log.size:
            old = answer.size
            answer = await self._client.add_checkpoint(
                request_body(log.checkpoint, old, await self._published.consistency(log, old))
            )
        if answer.status == 200:
            await self._save(log, answer)
        else:
            await self._refused(log, old, answer)

    async def _save(self, log: Log, answer: Answer) -> None:
        """The client ignores signatures by other keys, and a wrong one by the witness's makes the answer worthless."""
        text, signatures = parse_note(log.checkpoint)
        try:
            lines = [parse_signature(line) for line in answer.body.decode().splitlines()]
            mine = tuple(each for each in lines if (each.name, each.key_id) == self._verifier[:2])
            (good,) = verify(Note(text, mine), [self._verifier])
        except (NoteError, UnicodeDecodeError) as error:
            raise WitnessRefusedError(f"{self.name} answered 200 without a cosignature that holds: {error}") from None
        if not good.timestamp:
            raise WitnessRefusedError(f"{self.name} answered 200 with a cosignature without a time")
        await self._store.save_cosignature(
            Cosigned(
                origin=log.origin,
                cosigner=self.name,
                role="witness",
                size=log.size,
                note=str(Note(text, (*signatures, *mine[:1]))),
                at=self._clock.now_ms(),
            )
        )
        self._known[log.origin] = log.size

    async def _refused(self, log: Log, old: int, answer: Answer) -> None:
        """422, or in v1.0.0 a 409 at the same size: the witness may have seen another history of ours. It has the proof, where it serves it."""
        seen = answer.size if answer.status == 409 else None
        if seen is not None and seen > log.size:
            detail = f"{self.name} has cosigned {seen} entries; here are {log.size}"
            await self._report(Fault.BEHIND, log, detail)
            raise WitnessRefusedError(detail)
        if answer.status == 422 or (answer.status == 409 and seen in (None, old)):
            await self._compare(log, answer, same_size=old == log.size)
        raise WitnessRefusedError(f"{self.name}: HTTP {answer.status}: {answer.body[:200].decode(errors='replace')}")

    async def _report(self, kind: Fault, log: Log, detail: str) -> None:
        _log.error("witness_contradicts", witness=self.name, origin=log.origin, kind=kind.value)
        now = self._clock.now_ms()
        await self._store.report(Finding(kind=kind, origin=log.origin, detail=detail, at=now, subject=self.name))

    async def _compare(self, log: Log, answer: Answer, *, same_size: bool) -> None:
        """What the witness serves as its newest against our own tree. One that serves nothing, and refuses our root of its size, is believed so far."""
        text = await self._client.cosigned(log.origin)
        if text is None:
            if same_size:
                detail = f"{self.name} has cosigned another root of {log.size} entries: HTTP {answer.status}\n{log.checkpoint}"
                await self._report(Fault.FORK, log, detail)
            return
        try:
            note = parse_note(text)
            theirs = Checkpoint.parse(note.text)
            verify(note, [Verifier.parse(log.vkey)])
        except (NoteError, CheckpointError):
            return
        if theirs.origin != log.origin or theirs.size > log.size:
            return
        root = await self._published.root(log, theirs.size)
        if root != theirs.root:
            ours = Checkpoint(log.origin, log.size, log.root)
            proof = f"the first {theirs.size} entries of the former have the root {base64.b64encode(root).decode()}"
            await self._forks.found(ours, log.checkpoint, theirs, str(note), proof)


def request_body(checkpoint: str, old: int, proof: list[bytes]) -> bytes:
    """An add-checkpoint request."""
    lines = [f"old {old}", *(base64.b64encode(value).decode() for value in proof)]
    return ("\n".join(lines) + "\n\n" + checkpoint).encode()
