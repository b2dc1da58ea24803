"""What a log has signed: which size and root count, and whether all of it is one history."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from controlplane.errors import ConfigError
from controlplane.ledger.audit.case import CUT, Case, open_checkpoint
from controlplane.ledger.check import Fault
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.merkle import Frontier
from controlplane.ledger.note import NoteError, Verifier, parse_note
from controlplane.ledger.proven import Proven

__all__ = ["Signed"]


class Signed:
    """Sets the case's keys and tree."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._log = case.log

    async def check(self) -> None:
        """Key, checkpoint, size, root, frontier; cosigned histories; how the next log and the one before say that it ended and began."""
        case, log = self._case, self._log
        case.keys = await self._keys()
        own = self._checkpoint()
        others = [*self._cosigned(), *self._followed()]
        await self._choose(own, others)
        self._compare(own)
        await self._histories([each for each in (own, *others) if each])
        if case.tree.size and case.tree.sound:
            await self._before(log.origin)

    async def _keys(self) -> tuple[Verifier, ...]:
        """By the settings; a former key by what the log's successor commits to."""
        log, trust = self._log, self._case.trust
        trusted = list(trust.log_keys(log.origin))
        if trust.datacenter_of(log.origin) == self._case.settings.datacenter:
            try:
                trusted = [trust.own_key(log.origin)]
            except ConfigError:  # a node, which has not the ledger's secret: it takes the key that the document names
                trusted = []
        try:
            named = Verifier.parse(log.vkey)
        except NoteError as error:
            self._case.fault(Fault.LOG, -1, -1, "vkey", f"the log's key is none: {error}")
            return tuple(trusted)
        if named in trusted or (not trusted and log.own):
            return tuple(dict.fromkeys([*trusted, named]))
        if named.name == log.origin and await self._vouched():
            return (*trusted, named)
        detail = f"the settings do not have the key {log.vkey}, and no later log vouches for it"
        self._case.fault(Fault.LOG, -1, -1, "vkey", detail)
        return tuple(trusted)

    async def _vouched(self) -> bool:
        """Whether the next log's first entry commits to this one."""
        log = self._log
        return await self._case.opening(log.next) == (log.origin, log.size, log.root)

    def _checkpoint(self) -> Checkpoint | None:
        log = self._log
        if not log.checkpoint and not log.size:
            return None
        mirror = self._case.mirror_key()
        try:
            found = open_checkpoint(log.checkpoint, log.origin, [*self._case.keys, *mirror])
        except ValueError as error:
            self._case.fault(Fault.CHECKPOINT, -1, -1, "", f"the stored checkpoint does not hold: {error}")
            return None
        signers = {(one.name, one.key_id) for one in parse_note(log.checkpoint).signatures}
        if log.state == "open" and any((key.name, key.key_id) not in signers for key in mirror):
            detail = "the stored checkpoint is not cosigned by our mirror, which hands it over with its next pull"
            self._case.fault(Fault.CHECKPOINT, -1, -1, "", detail)
        return found

    def _cosigned(self) -> list[Checkpoint]:
        """All else that this log is known to have signed. One that does not hold is reported as a cosignature."""
        found = []
        for item in self._case.holdings.cosigned(self._log.origin):
            try:
                found.append(open_checkpoint(item.note, item.origin, self._case.keys))
            except ValueError:
                continue
        return found

    def _followed(self) -> list[Checkpoint]:
        """How the log ended, by the first entry of the next one."""
        origin = self._log.origin
        return [Checkpoint(*opening) for opening in self._case.holdings.openings.values() if opening[0] == origin]

    async def _choose(self, own: Checkpoint | None, others: Sequence[Checkpoint]) -> None:
        """Signed before unsigned; of these, the first that the stored tiles or bundles lead to."""
        log, case = self._log, self._case
        options: list[tuple[int, bytes]] = []
        if own and (own.size >= log.size or not self._consistent()):
            options.append((own.size, own.root))
        options += [(each.size, each.root) for each in others if each.size == log.size]
        options.append((log.size, log.root))
        for size, root in dict.fromkeys(options):
            case.tree = Proven(log.origin, size, root, [case.store], log.frontier)
            if await case.tree.open():
                return
        size, root = options[0]
        case.tree = Proven(log.origin, size, root, [case.store], log.frontier)
        await case.tree.open()
        self._not_reproduced(Checkpoint(log.origin, size, root), case.tree.stored_root)

    def _consistent(self) -> bool:
        log = self._log
        try:
            return Frontier(log.size, log.frontier).root() == log.root
        except ValueError:
            return False

    def _not_reproduced(self, wanted: Checkpoint, found: bytes) -> None:
        detail = f"nothing here leads to the root {wanted.root.hex()} of {wanted.size} entries; what is here leads to {found.hex()}"
        self._case.fault(Fault.ROOT, 0, wanted.size - 1, base64.b64encode(wanted.root).decode(), detail)

    def _compare(self, own: Checkpoint | None) -> None:
        """The document's fields against the size and root that count."""
        log, tree, fault = self._log, self._case.tree, self._case.fault
        if log.size != tree.size:
            fault(Fault.LOG, -1, -1, "size", f"the document says {log.size} entries; {tree.size} are signed")
        if log.root != tree.root:
            fault(Fault.LOG, -1, -1, "root", f"the document says root {log.root.hex()}; {tree.root.hex()} counts")
        if own and own.size < tree.size:
            fault(Fault.CHECKPOINT, -1, -1, "", f"the checkpoint is of {own.size} entries; the log has {tree.size}")
        try:
            right = Frontier(tree.size, log.frontier).root() == tree.root
        except ValueError:
            right = False
        if not right and tree.sound:
            fault(Fault.LOG, -1, -1, "frontier", "the frontier does not lead to the root")

    async def _histories(self, signed: Sequence[Checkpoint]) -> None:
        """Everything that the log has signed must be of one history, and it must be here."""
        log, tree = self._log, self._case.tree
        known = log.state == "frozen" or log.seal in CUT
        at_end = {each.root for each in signed if each.size == tree.size}
        for each in dict.fromkeys(signed):
            if each.size > tree.size:
                if (log.own or each in self._followed()) and not known:
                    detail = f"{each.size} entries are signed; here are {tree.size}"
                    self._case.fault(Fault.BEHIND, -1, -1, "", detail)
            elif not tree.sound:
                continue
            elif each.size == tree.size:
                if each.root != tree.root and tree.root in at_end:
                    self._fork(each, tree.root)
                elif each.root != tree.root:
                    self._not_reproduced(each, tree.root)
            elif (root := await tree.root_at(each.size)) is not None and root != each.root:
                self._fork(each, root)

    def _fork(self, other: Checkpoint, root: bytes) -> None:
        subject = f"{other.size} {base64.b64encode(other.root).decode()}"
        detail = f"the log has signed the root {other.root.hex()} of {other.size} entries; those that are here have {root.hex()}"
        self._case.fault(Fault.FORK, -1, -1, subject, detail)

    async def _before(self, origin: str) -> None:
        """The first entry says how the log before ended, and which it was."""
        case = self._case
        if await case.entry(origin, 0) is None:
            return
        committed = await case.opening(origin)
        name = committed[0] if committed else ""
        if name != self._log.previous:
            detail = f"the log before is {self._log.previous!r} by the document, {name!r} by the first entry"
            case.fault(Fault.LOG, -1, -1, "previous", detail)
        elif committed and name not in case.holdings.logs:
            case.fault(Fault.LOG, -1, -1, "previous", f"the log before, {name}, is not here")
