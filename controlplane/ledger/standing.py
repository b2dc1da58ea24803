"""How the ledger stands, in numbers and in sentences: what waits to be sequenced, what is published, who has cosigned how much of it, what was found wrong.

Read by anybody's node from what the ledger left in MongoDB, so that it can be told too when no ledger runs.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Iterable
from typing import Any

import structlog

from controlplane.clock import Clock
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.entries import event_of
from controlplane.ledger.note import NoteError, Verifier
from controlplane.ledger.published import Published
from controlplane.ledger.trust import cosigner_name
from controlplane.settings import Settings
from controlplane.store.events import EventReader
from controlplane.store.ledger import Cosigned, Log
from controlplane.store.ledger_scrub import ScrubStore
from controlplane.tasks import going_on

__all__ = ["Standing", "expected_cosigners", "log_name"]

_log = structlog.get_logger()
_READ_SECONDS = 10.0
_LATE_SECONDS = 30
_BEHIND_SECONDS = 60
_SOURCES = 50
"""Terms that are looked at: more than that are without a ledger, and only there."""


def log_name(log: Log) -> str:
    """The last part of its origin, such as `2026q4`."""
    return log.origin.rpartition("/")[2]


class Standing:
    """One per node."""

    def __init__(
        self, store: ScrubStore, published: Published, reader: EventReader, settings: Settings, clock: Clock
    ) -> None:
        self._store = store
        self._published = published
        self._reader = reader
        self._settings = settings
        self._clock = clock
        self._beat: tuple[tuple[int, int], float] | None = None
        """(term, beat) of the leader, and since when on the monotonic clock it has been that."""
        self.last: dict[str, Any] = {}
        """As last read; for metrics."""

    async def run(self) -> None:
        """Read now and then, until cancelled."""
        said = False
        while going_on():
            try:
                await self.read()
                said = False
            except StoreUnavailableError as error:
                if not said:
                    _log.warning("ledger_not_read", reason=str(error)[:200])
                said = True
            await asyncio.sleep(_READ_SECONDS)

    async def read(self) -> dict[str, Any]:
        """The document of GET /v1/ledger. Raises StoreUnavailableError."""
        logs = await self._published.logs()
        waiting = await self._waiting([log for log in logs if log.own])
        findings = Counter(finding.kind for finding in await self._store.findings("open"))
        scrub = {
            key: value
            for key, value in (await self._store.scrub_state(self._settings.datacenter)).items()
            if key != "_id"
        }
        found: dict[str, Any] = {
            "datacenter": self._settings.datacenter,
            "leader": await self._leader(),
            "unsequenced": waiting,
            "logs": [await self._of_log(log) for log in logs],
            "findings": {"open": findings.total(), "by_kind": dict(sorted(findings.items()))},
            "scrub": scrub or None,
        }
        found["alarms"] = list(self._alarms(found))
        self.last = found
        return found

    async def _leader(self) -> dict[str, Any] | None:
        lease = await self._store.lease(self._settings.datacenter)
        if lease is None:
            return None
        now, beat = self._clock.monotonic(), (lease["term"], lease["beat"])
        if self._beat is None or self._beat[0] != beat:
            self._beat = (beat, now)
        return {
            "holder": lease["holder"],
            "term": lease["term"],
            "released": lease["released"],
            "silent_seconds": round(now - self._beat[1], 1),
        }

    async def _waiting(self, own: list[Log]) -> dict[str, Any]:
        """Events of this datacenter that are not in its log yet."""
        here = self._settings.datacenter
        sizes = {log.origin: log.size for log in own}
        marks = own[-1].marks if own else {}
        count, oldest = 0, 0
        for source in (await self._store.sources())[-_SOURCES:]:
            key = (source.node, source.epoch)
            mark = marks[key] if key in marks else await self._store.covered(here, *key, sizes)
            last = await self._reader.last_sequence(*key)
            if last <= mark:
                continue
            count += last - mark
            for _, leaf in await self._store.sequence(here, *key, mark, 1):
                try:
                    at = event_of(bytes(leaf), None, None).at
                except ValueError:
                    continue
                oldest = min(oldest or at, at)
        seconds = max(0, self._clock.now_ms() - oldest) / 1000 if oldest else 0.0
        return {"events": count, "seconds": round(seconds, 1)}

    async def _of_log(self, log: Log) -> dict[str, Any]:
        cosigned = await self._published.cosigned(log.origin)
        sizes = {
            role: max((item.size for item in cosigned if item.role == role), default=0)
            for role in ("witness", "mirror")
        }
        return {
            "origin": log.origin,
            "datacenter": log.dc,
            "log": log_name(log),
            "own": log.own,
            "state": log.state,
            "why_sealed": log.seal or None,
            "next": log.next or None,
            "vkey": log.vkey,
            "published": log.size,
            "witnessed": sizes["witness"],
            "mirrored": sizes["mirror"],
            "root": base64.b64encode(log.root).decode(),
            "opened_at": log.opened_at,
            "newest_entry_at": await self._published.newest_at(log),
            "cosigners": [self._of_cosigner(log, item) for item in sorted(cosigned, key=lambda item: item.cosigner)],
        }

    def _of_cosigner(self, log: Log, item: Cosigned) -> dict[str, Any]:
        behind = max(0, log.size - item.size)
        return {
            "name": item.cosigner,
            "role": item.role,
            "size": item.size,
            "at": item.at,
            "behind_entries": behind,
            "behind_seconds": round(max(0, self._clock.now_ms() - item.at) / 1000, 1) if behind else 0.0,
        }

    # -- alarms ----------------------------------------------------------------------------------------------------------

    def _alarms(self, found: dict[str, Any]) -> Iterable[dict[str, str]]:
        settings, leader = self._settings, found["leader"]
        silence = settings.lease_seconds + settings.lease_margin_seconds
        if leader is None or leader["released"] or leader["silent_seconds"] > silence:
            yield _alarm(
                "no-leader",
                "No ledger leads in this datacenter.",
                "Start `heliograph ledger`; messages are sent meanwhile, and sequenced later.",
            )
        waiting = found["unsequenced"]
        if waiting["seconds"] > _LATE_SECONDS:
            yield _alarm(
                "unsequenced",
                f"{waiting['events']} events wait to be sequenced, the oldest for {waiting['seconds']:.0f} s.",
                "Look at the leader's log: a gap, a damaged log, or a start that waits for its peers.",
            )
        if found["findings"]["open"]:
            kinds = ", ".join(f"{count} {kind}" for kind, count in found["findings"]["by_kind"].items())
            yield _alarm(
                "findings", f"Not as it must be: {kinds}.", "GET /v1/ledger/findings; then `heliograph ledger repair`."
            )
        for log in found["logs"]:
            if log["state"] == "frozen":
                yield _alarm(
                    "forked",
                    f"{log['origin']} shows two histories; nothing more is taken from it.",
                    "Speak to the operators of that datacenter; both signed checkpoints are in the findings.",
                )
            if log["own"] and log["state"] == "open":
                yield from self._behind(log)

    def _behind(self, log: dict[str, Any]) -> Iterable[dict[str, str]]:
        known = {item["name"]: item for item in log["cosigners"]}
        for name in expected_cosigners(self._settings):
            item = known.get(name)
            if item is None:
                if self._clock.now_ms() - log["opened_at"] < _BEHIND_SECONDS * 1000:
                    continue
                yield _alarm(
                    "not-cosigned",
                    f"{name} has never cosigned {log['origin']}.",
                    "Is that ledger running, reachable, and has it our keys?",
                )
            elif item["behind_seconds"] > _BEHIND_SECONDS:
                yield _alarm(
                    "behind",
                    f"{name} is {item['behind_entries']} entries and {item['behind_seconds']:.0f} s behind {log['origin']}.",
                    "Is that datacenter reachable? It catches up by itself.",
                )


def expected_cosigners(settings: Settings) -> list[str]:
    """Who should cosign this datacenter's log: witness and mirror of each peer, and the foreign witnesses."""
    names = [
        cosigner_name(settings.ledger_domain, peer.dc, role)
        for peer in settings.ledger_peers
        for role in ("witness", "mirror")
    ]
    for witness in settings.ledger_witnesses:
        try:
            names.append(Verifier.parse(witness.vkey).name)
        except NoteError:
            continue
    return names


def _alarm(kind: str, what: str, next_step: str) -> dict[str, str]:
    return {"kind": kind, "what": what, "next_step": next_step}
