"""Repair: what scrubbing found is mended, as far as signed data says what is right. Dry unless told otherwise; twice does no more than once.

| fault | cure |
|---|---|
| tile | again from the level below, or from a peer's copy; by the signed root |
| bundle | entries out of the event store, or from a peer; by the proven tile. Where nobody has them, as `root` |
| event_missing, event_altered | from what is left of it, or from a peer's leaf and payload; the leaf alone where the message was erased |
| unerased | salt and payload are forgotten |
| unsequenced | the next round is asked for it |
| sequence | a `gap` event that says which numbers are lost |
| chain | the event from a log that has it; where none has, a `gap` event in its place, so that the message can be read on |
| run | made again from the leaves |
| stray | a copy of an event under a wrong name is taken away |
| log, checkpoint | from what was signed, from the tiles and the neighbours; an own checkpoint is signed again when size and root are beyond doubt |
| cosignature | from its own note; else it is taken away, and the cosigner asked again |
| writer | the mark is set back |
| behind | what was signed is fetched from the peers' mirrors |
| root, fork | an own log ends at the last good size, and the rest is sequenced again in the next one; a copy is frozen |
| leaf | none: it was signed so |

Nothing is replaced but by what was verified first, and only while it still is what was judged. What was done is recorded in the log (`repaired`), and what was
touched is verified again at the end.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import structlog

from controlplane.clock import Clock
from controlplane.domain.events import Kind
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.check import Fault
from controlplane.ledger.cures.case import GoneError, Leader, RefusedError, Traffic, Workbench
from controlplane.ledger.cures.content import ContentCures
from controlplane.ledger.cures.document import DocumentCures
from controlplane.ledger.cures.events import EventCures
from controlplane.ledger.cures.history import HistoryCures
from controlplane.ledger.peer_client import LedgerClient
from controlplane.ledger.scrub import Scrub
from controlplane.settings import Settings
from controlplane.store.copies import Copies
from controlplane.store.ledger import Finding
from controlplane.store.ledger_scrub import ScrubStore
from controlplane.tasks import going_on

__all__ = ["Action", "Leader", "Repair", "Report"]

_log = structlog.get_logger()
_ROUNDS = 4
"""What was hidden behind one fault is mended in the next round."""
_POLL_SECONDS = 1.0
_SIGNED_SO = (
    "It was signed so, and what was signed is never changed. Keep the finding; find out which version wrote the entry."
)

Cure = Callable[[Finding], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Action:
    """One fault, and what became of it."""

    kind: str
    origin: str
    first: int
    last: int
    subject: str
    outcome: str
    """planned (dry run), done, nothing (it is right by now), refused."""
    what: str
    """In words: what is done; of a refusal why, and what the operator has to do."""


@dataclass(slots=True)
class Report:
    """What a repair did, or would do."""

    dry_run: bool
    actions: list[Action] = field(default_factory=list)
    remaining: list[Finding] = field(default_factory=list)
    """What the verification at the end still found; of a dry run everything."""
    read: Traffic = field(default_factory=Traffic)
    """From peers."""
    seconds: float = 0.0

    def said(self, finding: Finding, outcome: str, what: str) -> None:
        """Add an action; a refusal of the same fault before is history."""
        action = Action(str(finding.kind), finding.origin, finding.first, finding.last, finding.subject, outcome, what)
        self.actions = [
            each
            for each in self.actions
            if each.outcome != "refused" or replace(each, outcome=outcome, what=what) != action
        ]
        self.actions.append(action)

    @property
    def clean(self) -> bool:
        """Nothing is left."""
        return not self.remaining

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "clean": self.clean}


class Repair:
    """One per ledger that leads. Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(
        self,
        store: ScrubStore,
        copies: Copies,
        scrub: Scrub,
        settings: Settings,
        clock: Clock,
        clients: Sequence[LedgerClient],
        leader: Leader,
        *,
        per_second: float = 20.0,
    ) -> None:
        self._store = store
        self._copies = copies
        self._scrub = scrub
        self._settings = settings
        self._clock = clock
        self._clients = clients
        self._leader = leader
        self._pause = 1 / per_second

    async def run(self) -> None:
        """Serve what is asked for (store.ask_repair) until cancelled; the report goes into the request's document."""
        while going_on():
            try:
                asked = await self._store.next_repair()
                if asked is not None:
                    await self._serve(asked)
                    continue
            except StoreUnavailableError as error:
                _log.warning("repair_interrupted", reason=str(error)[:200])
            await asyncio.sleep(_POLL_SECONDS)

    async def _serve(self, asked: Mapping[str, Any]) -> None:
        identity = asked["_id"]
        await self._store.update_repair(identity, {"state": "running"})
        try:
            report = await self.mend(dry_run=asked.get("dry_run", True))
            done = {"state": "done", "report": report.document()}
        except StoreUnavailableError:
            raise  # it is begun again
        except Exception as error:  # noqa: BLE001 - one repair that fails must not end the ledger, nor be tried for ever
            _log.error("repair_failed", repair=identity, trace=traceback.format_exc()[-2000:])
            done = {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
        await self._store.update_repair(identity, {**done, "done_at": self._clock.now_ms()})

    async def mend(self, findings: Sequence[Finding] | None = None, *, dry_run: bool = True) -> Report:
        """Mend these findings; without any, verify everything first. Ends with a verification of what was touched."""
        began = self._clock.monotonic()
        bench = Workbench(
            self._store, self._copies, self._settings, self._clock, self._clients, self._leader, dry=dry_run
        )
        cures = self._cures(bench)
        report = Report(dry_run, read=bench.traffic)
        todo = list(await self._scrub.verify_all() if findings is None else findings)
        report.remaining = list(todo)
        settled: set[str] = set()
        for _ in range(_ROUNDS):
            todo = [finding for finding in todo if finding.id not in settled]
            if not todo:
                break
            bench.forget()
            done = await self._round(cures, todo, report, settled)
            if dry_run:
                break
            await self._record(done)
            report.remaining = todo = await self._again(todo)
            if not done:
                break
        if not dry_run:
            await self._note(report)
        report.seconds = round(self._clock.monotonic() - began, 3)
        return report

    def _cures(self, bench: Workbench) -> Mapping[Fault, Cure]:
        """In the order in which they are tried: what later ones are judged by comes first."""
        document, events = DocumentCures(bench, self._scrub), EventCures(bench)
        history = HistoryCures(bench, events)
        content = ContentCures(bench, history)
        return {
            Fault.BEHIND: document.behind,
            Fault.LOG: document.field,
            Fault.CHECKPOINT: document.checkpoint,
            Fault.WRITER: content.writer,
            Fault.TILE: content.tile,
            Fault.RUN: content.run,
            Fault.ROOT: history.root,
            Fault.FORK: history.fork,
            Fault.BUNDLE: content.bundle,
            Fault.EVENT_MISSING: events.document,
            Fault.EVENT_ALTERED: events.document,
            Fault.UNERASED: events.unerased,
            Fault.STRAY: events.stray,
            Fault.UNSEQUENCED: events.unsequenced,
            Fault.SEQUENCE: events.sequence,
            Fault.CHAIN: events.chain,
            Fault.COSIGNATURE: document.cosignature,
            Fault.LEAF: _signed_so,
        }

    async def _round(
        self, cures: Mapping[Fault, Cure], todo: Sequence[Finding], report: Report, settled: set[str]
    ) -> list[Finding]:
        """Try all of them; those that were mended. What is refused may be tried again when others are mended."""
        order = list(cures)
        done = []
        for each in sorted(
            todo, key=lambda each: (order.index(Fault(each.kind)), _rank(each), each.origin, each.first)
        ):
            try:
                what = await cures[Fault(each.kind)](each)
                outcome = "nothing" if not what else "planned" if report.dry_run else "done"
                settled.add(each.id)
            except GoneError:
                outcome, what = "nothing", "the log ends before it by now"
                settled.add(each.id)
            except RefusedError as error:
                outcome, what = "refused", str(error)
            report.said(each, outcome, what or "it is right by now")
            if outcome == "done":
                _log.info("ledger_mended", **asdict(report.actions[-1]))
                done.append(each)
                await asyncio.sleep(self._pause)
        return done

    async def _record(self, done: Sequence[Finding]) -> None:
        """One `repaired` for each class and log."""
        groups: dict[tuple[str, str], list[Finding]] = {}
        for each in done:
            groups.setdefault((each.kind, each.origin), []).append(each)
        for (kind, origin), group in groups.items():
            first, last = min(each.first for each in group), max(each.last for each in group)
            where = f"{first}-{last}" if first >= 0 else "document"
            await self._leader.record(Kind.REPAIRED, f"{kind} {origin} {where}", None)

    async def _again(self, touched: Sequence[Finding]) -> list[Finding]:
        """Verify what was touched."""
        found: dict[str, Finding] = {}
        if any(each.first < 0 for each in touched):
            found |= {each.id: each for each in await self._scrub.between()}
        held = {origin for origin, log in await self._store.log_documents() if log is not None}
        for origin in {each.origin for each in touched} & held:
            places = [each for each in touched if each.origin == origin and each.first >= 0]
            first, last = min((p.first for p in places), default=0), max((p.last for p in places), default=-1)
            found |= {each.id: each for each in await self._scrub.verify(origin, first, last)}
        return list(found.values())

    async def _note(self, report: Report) -> None:
        """What is mended is open no more."""
        left = {finding.id for finding in report.remaining}
        tried = {(each.kind, each.origin, each.first, each.last, each.subject) for each in report.actions}
        for each in await self._store.findings("open"):
            if each.id not in left and (each.kind, each.origin, each.first, each.last, each.subject) in tried:
                await self._store.report(replace(each, state="cured"))
        for each in report.remaining:
            await self._store.report(each)


def _rank(finding: Finding) -> int:
    """Fields that others are judged by come first: how long a log is, then whose, then its neighbours, then how far nodes' events are in it."""
    order = ("document", "size", "root", "frontier", "dc", "own", "previous", "opened_at", "next", "state")
    return order.index(finding.subject) if finding.subject in order else len(order)


async def _signed_so(_finding: Finding) -> str:
    raise RefusedError(_SIGNED_SO)
