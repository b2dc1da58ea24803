"""Logs' documents and cosignatures: out of what was signed, the tiles, and the logs beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from controlplane.ledger.audit import Case
from controlplane.ledger.audit.case import open_checkpoint
from controlplane.ledger.check import Fault
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.chunk import DamagedCopyError, RefusedReplyError
from controlplane.ledger.cures.case import Opened, RefusedError, Workbench
from controlplane.ledger.merkle import EMPTY
from controlplane.ledger.note import Note, Signer, Verifier, derive, parse_note
from controlplane.ledger.peer_client import PeerError
from controlplane.ledger.proven import Proven
from controlplane.ledger.scrub import Scrub
from controlplane.ledger.tiles import WIDTH
from controlplane.ledger.trust import cosigner
from controlplane.store.copies import Witnessed
from controlplane.store.ledger import Finding, Log, StaleWriterError, opening_time

__all__ = ["DocumentCures"]

_BLANK = Log(origin="", dc="", own=True, vkey="", root=EMPTY)


class DocumentCures:
    """Each cure returns what it did, "" for nothing; or raises RefusedError."""

    def __init__(self, bench: Workbench, scrub: Scrub) -> None:
        self._bench = bench
        self._scrub = scrub

    async def field(self, finding: Finding) -> str:
        """One field of a log's document, or all of it."""
        if finding.subject == "document":
            return await self._document(finding.origin)
        opened = await self._bench.open(finding.origin)
        if not opened.has(Fault.LOG, finding.subject):
            return ""
        name = finding.subject.partition(" ")[0]
        if name in ("size", "root", "frontier"):
            return await self._edge(opened, name)
        if name == "ahead":
            if not self._bench.dry:
                await self._bench.store.forget_ahead(finding.origin)
            self._bench.forget()
            return "the copy goes on from its checkpoint"
        changes = await self._changes(opened, name, finding.subject)
        await self._bench.replace(opened.log, replace(opened.log, **changes))
        return ", ".join(f"{key}: {value}" for key, value in changes.items())

    async def _edge(self, opened: Opened, name: str) -> str:
        tree = opened.tree
        frontier = await tree.frontier_at(tree.size) if tree.sound else None
        if frontier is None:
            raise RefusedError(
                f"The {name} cannot be had from what was signed: no tiles here or at a peer lead to the signed root. Bring a peer's ledger up, or restore the ledger's collections from a backup."
            )
        await self._bench.replace(opened.log, replace(opened.log, size=tree.size, root=tree.root, frontier=frontier))
        return f"size, root and frontier of the {tree.size} entries that are signed"

    async def _changes(self, opened: Opened, name: str, subject: str) -> dict[str, Any]:
        log, case = opened.log, opened.case
        if name == "vkey":
            return {"vkey": self._vkey(log)}
        if name in ("dc", "own"):
            dc = case.trust.datacenter_of(log.origin)
            return {"dc": dc, "own": dc == case.settings.datacenter}
        if name == "term":
            return {"term": case.holdings.term}
        if name == "marks":
            return {"marks": await self._mark(opened, subject.removeprefix("marks "))}
        if name == "seal":
            return {"seal": "quarter" if log.state == "sealed" and log.own else ""}
        opening = await case.opening(log.origin)
        if name == "previous":
            if opening is not None and opening[0] not in case.holdings.logs:
                raise RefusedError(
                    f"The log before, {opening[0]}, is not here. If it was dropped on purpose after its retention, leave it so; else restore `ledger_*` from a backup."
                )
            return {"previous": opening[0] if opening else ""}
        if name == "opened_at":
            before = case.holdings.logs.get(opening[0] if opening else "")
            return {"opened_at": opening_time(before, 0)}
        if name in ("state", "next"):
            followers = [each.origin for each in case.holdings.logs.values() if each.previous == log.origin]
            seen = await case.copies.witnessed(log.origin)
            state = "frozen" if seen is not None and seen.forked else "sealed" if followers else "open"
            return {"state": state, "next": followers[0] if followers else ""}
        raise RefusedError(f"Nothing says what {name} should be.")

    async def _mark(self, opened: Opened, name: str) -> dict[tuple[str, int], int]:
        log, holdings = opened.log, opened.case.holdings
        await self._bench.undoubted(log.dc)
        node, _, epoch = name.rpartition(":")
        term = (node, int(epoch))
        met = await opened.case.met(log.dc, term)
        if not met.whole:
            raise RefusedError(
                "Entries of this datacenter's logs must be mended first: its mark is their highest number."
            )
        until = [each.origin for each in holdings.chain(log.dc) if each.opened_at <= log.opened_at]
        return {**log.marks, term: met.highest(until)}

    def _vkey(self, log: Log) -> str:
        """The key that the settings give, if it signed the checkpoint that is stored."""
        for key in self._bench.trusted(log.origin):
            try:
                open_checkpoint(log.checkpoint, log.origin, [key])
            except ValueError:
                continue
            return key.vkey
        raise RefusedError(
            "No key in the settings signed this log. Add the key that did to the peer's `log_keys`, or restore ledger_logs from a backup."
        )

    # -- a whole document ----------------------------------------------------------------------------------------------

    async def _document(self, origin: str) -> str:
        """One that is missing or unreadable, out of what its log signed."""
        bench = self._bench
        keys = bench.trusted(origin)
        if not keys:
            raise RefusedError(
                f"{origin} is no log of a datacenter in the settings. If it is nobody's, remove its documents."
            )
        signed = await bench.signed(origin, keys)
        for checkpoint, note, key in sorted(signed, key=lambda item: -item[0].size):
            tree = Proven(origin, checkpoint.size, checkpoint.root, [bench.store, *bench.peers(checkpoint.size)])
            frontier = await tree.frontier_at(checkpoint.size) if await tree.open() else None
            if frontier is not None:
                log = await self._remade(checkpoint, note, key, frontier)
                bench.forget()
                if not bench.dry:
                    await bench.store.replace_log(None, log)
                return f"made again with {checkpoint.size} entries, by the newest checkpoint that is known of it"
        raise RefusedError(
            "No checkpoint that this log signed can be had from cosignatures or peers. Bring a peer's ledger up, or restore ledger_logs from a backup."
        )

    async def _remade(self, checkpoint: Checkpoint, note: str, key: Verifier, frontier: tuple[bytes, ...]) -> Log:
        bench, origin = self._bench, checkpoint.origin
        holdings = await bench.holdings()
        case = Case(bench.store, bench.copies, bench.settings, holdings, _BLANK, 0)
        opening = await case.opening(origin)
        before = holdings.logs.get(opening[0]) if opening else None
        followers = [each for each in holdings.logs.values() if each.previous == origin]
        dc = bench.trust.datacenter_of(origin)
        own = dc == bench.settings.datacenter
        return Log(
            origin=origin,
            dc=dc,
            own=own,
            vkey=key.vkey,
            state="sealed" if followers else "open",
            term=holdings.term if own else 0,
            size=checkpoint.size,
            root=checkpoint.root,
            frontier=frontier,
            checkpoint=note if own else self._held(note),
            opened_at=opening_time(before, 0),
            previous=opening[0] if opening else "",
            next=followers[0].origin if followers else "",
            seal="quarter" if followers and own else "",
        )

    # -- the checkpoint ------------------------------------------------------------------------------------------------

    async def checkpoint(self, finding: Finding) -> str:
        """The signed note of exactly the log's size."""
        opened = await self._bench.open(finding.origin)
        log, tree = opened.log, opened.tree
        if not opened.has(Fault.CHECKPOINT):
            return ""
        if not tree.sound:
            raise RefusedError("Nothing leads to the root that the document names. See the finding `root` of this log.")
        text, source = "", "one that was kept elsewhere"
        for checkpoint, note, _ in await self._bench.signed(log.origin, self._bench.keys(log)):
            if (checkpoint.size, checkpoint.root) == (tree.size, tree.root):
                text = note
                break
        if not text and log.own:
            text, source = self._sign(opened), "signed again, with the same key over the same size and root"
        if not text:
            raise RefusedError(
                "The peer does not answer, or has signed newer ones by now. The mirror replaces it when the peer's log grows; let the peer's ledger run."
            )
        if not log.own:
            text = self._held(text)
        await self._bench.replace(log, replace(log, size=tree.size, root=tree.root, checkpoint=text))
        return f"the checkpoint of {tree.size} entries: {source}"

    def _sign(self, opened: Opened) -> str:
        """An own checkpoint again, when the document, the tiles and all that was cosigned agree on size and root."""
        log, tree = opened.log, opened.tree
        key = Signer.log(log.origin, derive(self._bench.settings.ledger_seed, "log"))
        doubts = [kind for kind in (Fault.FORK, Fault.ROOT, Fault.BEHIND, Fault.LOG) if opened.has(kind)]
        if (log.size, log.root) != (tree.size, tree.root) or doubts or key.vkey != log.vkey:
            raise RefusedError(
                "The document, the tiles and the cosignatures do not agree on what was signed, so nothing is signed again. Mend the other findings of this log first."
            )
        text = Checkpoint(log.origin, tree.size, tree.root).text
        return str(Note(text, (key.sign(text),)))

    def _held(self, text: str) -> str:
        """With our mirror's cosignature again."""
        note = parse_note(text)
        line = cosigner(self._bench.settings, "mirror").cosign(note.text, self._bench.clock.now_ms() // 1000)
        return str(Note(note.text, (*note.signatures, line)))

    # -- a log that is shorter than it was signed ------------------------------------------------------------------------

    async def behind(self, finding: Finding) -> str:
        """What was signed is here still, behind the document's back; or it comes from the peers' mirrors."""
        bench = self._bench
        opened = await bench.open(finding.origin)
        if not opened.has(Fault.BEHIND):
            return ""
        if (what := await self._regrown(opened)) is not None:
            return what
        if not opened.log.own:
            await bench.replace(opened.log, replace(opened.log, state="open", next=""))
            if not bench.dry:
                await bench.store.outdate(finding.origin, opened.tree.size)
            return "the mirror goes on where this copy ends"
        if not bench.clients:
            raise RefusedError(
                "There is no peer in the settings that could have what is missing. Restore the newest backup of all ledger collections and events together."
            )
        if not bench.dry:
            try:
                await bench.leader.catch_up()
            except (PeerError, RefusedReplyError, DamagedCopyError, StaleWriterError) as error:
                raise RefusedError(f"No peer gives what is missing ({error}). Bring a peer's ledger up.") from None
        bench.forget()
        return "what was signed and is not here is fetched from the peers' mirrors"

    async def _regrown(self, opened: Opened) -> str | None:
        """Only the document is old: tiles and bundles lead to the largest size that is known to be signed."""
        bench, log = self._bench, opened.log
        signed = await bench.signed(log.origin, bench.keys(log))
        newest = max(signed, key=lambda item: item[0].size, default=None)
        if newest is None or newest[0].size <= opened.case.tree.size:
            return None
        checkpoint, note, _ = newest
        tree = Proven(log.origin, checkpoint.size, checkpoint.root, [bench.store])
        frontier = await tree.frontier_at(tree.size) if await tree.open() else None
        last = -(-tree.size // WIDTH)
        if frontier is None or None in [await tree.bundle(index) for index in range(log.size // WIDTH, last)]:
            return None
        text = note if log.own else self._held(note)
        grown = replace(log, size=tree.size, root=tree.root, frontier=frontier, checkpoint=text, marks={}, late=())
        await bench.replace(log, grown)
        return f"the document again of the {tree.size} entries that were signed; all of them are here"

    # -- cosignatures --------------------------------------------------------------------------------------------------

    async def cosignature(self, finding: Finding) -> str:
        """Again out of its own note; else it goes, and the cosigner is asked again."""
        if finding.subject == "witnessed":
            return await self._witnessed(finding)
        store = self._bench.store
        stored = [each for each in await store.cosignature_documents() if each.id == finding.subject]
        if not stored or not self._scrub.cosignature(stored[0]):
            return ""
        again = self._scrub.reread(stored[0].item)
        if not self._bench.dry:
            await store.remove_cosignature(stored[0].id)
            if again is not None:
                await store.save_cosignature(again)
        return "made again out of its own note" if again else "taken away; the cosigner is asked again"

    async def _witnessed(self, finding: Finding) -> str:
        """What our witness remembers may only become what was signed, and never less than it was."""
        bench = self._bench
        opened = await bench.open(finding.origin)
        seen = await bench.copies.witnessed(finding.origin)
        if seen is None or not opened.has(Fault.COSIGNATURE, "witnessed"):
            return ""
        signed = await bench.signed(finding.origin, bench.keys(opened.log))
        best = max(signed, key=lambda item: item[0].size, default=None)
        if best is None or best[0].size < opened.log.size:
            raise RefusedError(
                "No signed checkpoint of that size can be had. Bring the peer's ledger up, and repair again: until then this witness cosigns nothing of that log."
            )
        checkpoint, text, _ = best
        note = parse_note(text)
        line = cosigner(bench.settings, "witness").cosign(note.text, bench.clock.now_ms() // 1000)
        whole = str(Note(note.text, (*note.signatures, line)))
        if not bench.dry:
            new = Witnessed(seen.origin, checkpoint.size, checkpoint.root, whole, seen.forked)
            await bench.store.replace_witnessed(new)
        bench.forget()
        return f"the newest checkpoint that is known to be signed, of {checkpoint.size} entries"
