"""Scrubbing: every bundle, tile, leaf and event of every log that is held here is read and verified again, for ever.

`verify` is one log on demand, `verify_all` all of them and what lies between them, `run` the background: a cycle over everything in `ledger_scrub_days`, and
each minute a bundle at random besides. Nothing is ever taken for verified because it was verified before: disks forget later.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Sequence
from dataclasses import replace

import structlog

from controlplane.clock import Clock
from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.ledger.audit import Audit, Case, Holdings, Progress
from controlplane.ledger.audit.case import open_checkpoint
from controlplane.ledger.check import Fault
from controlplane.ledger.note import NoteError, Verifier, parse_note, verify
from controlplane.ledger.proven import Proven
from controlplane.ledger.tiles import WIDTH
from controlplane.ledger.trust import Trust
from controlplane.settings import Settings
from controlplane.store.copies import Copies
from controlplane.store.ledger import OPENED_NODE, Cosigned, Finding, Log
from controlplane.store.ledger_scrub import ScrubStore, StoredCosignature
from controlplane.tasks import going_on

__all__ = ["Scrub"]

_log = structlog.get_logger()
_TICK_SECONDS = 60.0
_STRIDE = 16 * WIDTH
"""Entries that are verified before the loop asks whether it shall end."""


class Scrub:
    """One per ledger; `run` in the one that leads. Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, store: ScrubStore, copies: Copies, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._copies = copies
        self._settings = settings
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - which bundle is looked at is no secret
        self.cycles = 0
        """Completed since the start."""

    # -- on demand -----------------------------------------------------------------------------------------------------

    async def verify(
        self,
        log: Log | str,
        first: int = 0,
        last: int | None = None,
        progress: Progress | None = None,
        *,
        hashes_only: bool = False,
    ) -> list[Finding]:
        """One log: its document, and entries `first` to `last` (inclusive; None: all) with their events. KeyError for a log that is not held."""
        origin = log if isinstance(log, str) else log.origin
        holdings = await Holdings.read(self._store, self._settings)
        if origin not in holdings.logs:
            if origin in holdings.unreadable:
                return [self._unreadable(origin)]
            raise KeyError(origin)
        audit = self._audit(holdings, origin)
        await audit.document()
        await audit.entries(first, last, progress, hashes_only=hashes_only)
        return audit.found

    async def verify_all(self, progress: Progress | None = None) -> list[Finding]:
        """Every log, own and mirrored, and what belongs to none: cosignatures, lost documents, events of nobody's."""
        holdings = await Holdings.read(self._store, self._settings)
        found = await self.between(holdings)
        for origin in holdings.logs:
            audit = self._audit(holdings, origin)
            await audit.document()
            await audit.entries(progress=progress)
            found += audit.found
        return _once(found)

    def _audit(self, holdings: Holdings, origin: str) -> Audit:
        return Audit(self._store, self._copies, self._settings, self._clock, holdings, origin)

    # -- what belongs to no log ----------------------------------------------------------------------------------------

    async def between(self, holdings: Holdings | None = None) -> list[Finding]:
        """Logs without their document, cosignatures, events that nobody will sequence."""
        holdings = holdings or await Holdings.read(self._store, self._settings)
        lost = await self._store.origins() - holdings.logs.keys() - set(holdings.unreadable)
        found = [self._unreadable(origin) for origin in holdings.unreadable]
        missing = "the log's document is missing; its tiles are here"
        found += [self._fault(Fault.LOG, origin, "document", missing) for origin in sorted(lost)]
        problems = [(stored, self.cosignature(stored)) for stored in holdings.cosignatures]
        found += [
            self._fault(Fault.COSIGNATURE, stored.id.partition("|")[0], stored.id, why)
            for stored, why in problems
            if why
        ]
        return found + await self._unread()

    def _unreadable(self, origin: str) -> Finding:
        return self._fault(Fault.LOG, origin, "document", "the log's document cannot be read")

    def _fault(self, kind: Fault, origin: str, subject: str, detail: str) -> Finding:
        now = self._clock.now_ms()
        return Finding(kind=kind, origin=origin, detail=detail, at=now, subject=subject)

    def cosignature(self, stored: StoredCosignature) -> str:
        """What is wrong with it; "" for nothing."""
        item = stored.item
        if item is None or stored.id != f"{item.origin}|{item.cosigner}":
            return "it is not what is written for any cosignature"
        known = self._cosigners().get(item.cosigner)
        try:
            note = parse_note(item.note)
            checkpoint = open_checkpoint(item.note, item.origin, self._log_keys(item.origin))
            if known is not None:
                verify(note, [known])
        except (NoteError, ValueError) as error:
            return f"it does not hold: {error}"
        if checkpoint.size != item.size:
            return f"it is of {checkpoint.size} entries, not {item.size}"
        if item.cosigner not in {signature.name for signature in note.signatures}:
            return f"{item.cosigner} has not signed it"
        if known is not None and item.role != self._role(known):
            return f"{item.cosigner} is no {item.role}"
        return ""

    def reread(self, item: Cosigned | None) -> Cosigned | None:
        """A cosignature whose note holds, with its fields as the note says; None where the note does not."""
        known = self._cosigners().get(item.cosigner) if item is not None else None
        if item is None or known is None:
            return None
        try:
            checkpoint = open_checkpoint(item.note, item.origin, self._log_keys(item.origin))
            verify(parse_note(item.note), [known])
        except (NoteError, ValueError):
            return None
        return replace(item, size=checkpoint.size, role=self._role(known))

    def _role(self, known: Verifier) -> str:
        return "mirror" if known in Trust(self._settings).mirrors().values() else "witness"

    def _log_keys(self, origin: str) -> tuple[Verifier, ...]:
        trust = Trust(self._settings)
        if trust.datacenter_of(origin) != self._settings.datacenter:
            return trust.log_keys(origin)
        try:
            return (trust.own_key(origin),)
        except ConfigError:
            return ()

    def _cosigners(self) -> dict[str, Verifier]:
        trust = Trust(self._settings)
        found = [
            *trust.mirrors().values(),
            *(trust.cosigner_of(peer, "witness") for peer in self._settings.ledger_peers),
        ]
        found += [Verifier.parse(witness.vkey) for witness in self._settings.ledger_witnesses]
        return {verifier.name: verifier for verifier in found}

    async def _unread(self) -> list[Finding]:
        """Events of this datacenter that no sequencer will ever read: of terms that nobody has, or that are over and complete."""
        dc = self._settings.datacenter
        written = await self._store.event_sources()
        live = {(source.node, source.epoch) for source in await self._store.sources()}
        # In this order: a term that begins meanwhile is not among the written ones, and the logs have all of one that ends.
        holdings = await Holdings.read(self._store, self._settings)
        chain = holdings.chain(dc)
        if not chain:
            return []
        sizes = holdings.sizes(dc)
        found: list[Finding] = []
        for node, epoch in written:
            if (node, epoch) in live or node == OPENED_NODE:
                continue
            mark = await self._store.covered(dc, node, epoch, sizes)
            beyond = await self._store.ids_between(dc, node, epoch, mark + 1, 2**62)
            met = await (await self._case(holdings)).met(dc, (node, epoch)) if beyond else None
            if met is None or not met.whole:
                continue
            for q, name in beyond:
                if q not in met and (node, epoch, q) not in chain[-1].late and not await self._stands(holdings, name):
                    detail = f"{name} is in the store and in no log, and its term is over"
                    found.append(self._fault(Fault.UNSEQUENCED, chain[-1].origin, f"{node}:{epoch} {q}", detail))
        return found

    async def _stands(self, holdings: Holdings, name: str) -> bool:
        """Whether it is an event that a log has, with an altered number."""
        mid, _, k = name.rpartition(":")
        stored = (await self._store.event_documents([(mid, int(k))])).get(name) if k.isdecimal() else None
        return stored is not None and await (await self._case(holdings)).stands(stored, name)

    async def _case(self, holdings: Holdings) -> Case:
        """For looking into the logs of this datacenter."""
        log = holdings.chain(self._settings.datacenter)[-1]
        case = Case(self._store, self._copies, self._settings, holdings, log, self._clock.now_ms())
        case.tree = Proven(log.origin, log.size, log.root, [self._store], log.frontier)
        await case.tree.open()
        return case

    # -- in the background ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: each minute the share of the cycle that is due, and a bundle at random. What is found is written down (`store.findings`)."""
        while going_on():
            began = self._clock.monotonic()
            try:
                await self.tick()
            except StoreUnavailableError as error:
                _log.warning("scrub_interrupted", reason=str(error)[:200])
            except Exception:  # noqa: BLE001 - damage that nobody thought of must not end the ledger
                _log.error("scrub_failed", trace=traceback.format_exc()[-2000:])
            await asyncio.sleep(max(1.0, _TICK_SECONDS - (self._clock.monotonic() - began)))

    async def tick(self) -> None:
        """What is due each minute."""
        holdings = await Holdings.read(self._store, self._settings)
        await self._note("", await self.between(holdings), None)
        held = [log for log in holdings.logs.values() if log.size]
        if not held:
            return
        drawn = self._random.choices(held, [log.size for log in held])[0]
        first = self._random.randrange(drawn.size) // WIDTH * WIDTH
        await self._part(holdings, drawn.origin, first, first + WIDTH - 1)
        minutes = self._settings.ledger_scrub_days * 1_440
        await self._advance(holdings, held, int(sum(log.size for log in held) / minutes) + 1)

    async def _advance(self, holdings: Holdings, held: Sequence[Log], due: int) -> None:
        """The next `due` entries of the cycle, in whole bundles."""
        dc = self._settings.datacenter
        state = await self._store.scrub_state(dc)
        origin, at = str(state.get("origin", "")), int(state.get("at", 0))
        names = [log.origin for log in held]
        while due > 0 and going_on():
            if origin not in names:
                origin, at = names[0], 0
            log = holdings.logs[origin]
            last = min(log.size, at + min(_STRIDE, -(-due // WIDTH) * WIDTH)) - 1
            if at <= last:
                await self._part(holdings, origin, at, last)
            due -= max(1, last - at + 1)
            at = last + 1
            if at >= log.size:
                place = names.index(origin) + 1
                if place == len(names):
                    self.cycles += 1
                    origin, at, due = "", 0, 0
                else:
                    origin, at = names[place], 0
            await self._store.save_scrub_state(dc, {"origin": origin, "at": at})

    async def _part(self, holdings: Holdings, origin: str, first: int, last: int) -> None:
        audit = self._audit(holdings, origin)
        await audit.document()
        await audit.entries(first, last)
        await self._note(origin, audit.found, (first, last))

    async def _note(self, origin: str, found: Sequence[Finding], span: tuple[int, int] | None) -> None:
        """Write down what was found, and that what was found there before is no more."""
        names = {finding.id for finding in found}
        before = {finding.id: finding for finding in await self._store.findings("open")}
        for finding in _once(found):
            if finding.id not in before:
                _log.error(
                    "ledger_damaged",
                    kind=finding.kind,
                    origin=finding.origin,
                    first=finding.first,
                    last=finding.last,
                    subject=finding.subject,
                    detail=finding.detail[:300],
                )
            await self._store.report(finding)
        if span is None:
            return
        for finding in before.values():
            if finding.origin == origin and finding.id not in names and _looked_at(finding, span):
                await self._store.report(replace(finding, state="cured"))


_WATCHED = frozenset(
    {Fault.TILE, Fault.BUNDLE, Fault.RUN, Fault.EVENT_MISSING, Fault.EVENT_ALTERED, Fault.CHAIN, Fault.LEAF}
)
"""Those of which a look at their place says whether they still are."""


def _looked_at(finding: Finding, span: tuple[int, int]) -> bool:
    return finding.kind in _WATCHED and span[0] <= finding.first and finding.last <= span[1]


def _once(found: Sequence[Finding]) -> list[Finding]:
    """A predecessor whose document is reported by its own log is not reported by its successor's as well."""
    bad = {finding.subject for finding in found if finding.kind in (Fault.EVENT_MISSING, Fault.EVENT_ALTERED)}
    kept = {f.id: f for f in found if f.kind != Fault.CHAIN or f.subject not in bad}
    return list(kept.values())
