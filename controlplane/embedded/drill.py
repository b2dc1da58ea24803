"""The drill: a backup is restored into a mongod of its own, which is gone afterwards, and everything that a region would need of it is looked at.

Nothing of the region is touched, or asked. What is not as it must be is a sentence; none is the only good result.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from pydantic import SecretStr

from controlplane.clock import Clock
from controlplane.domain.events import Kind
from controlplane.domain.message import fold
from controlplane.embedded.mongod import Mongod
from controlplane.errors import ConfigError
from controlplane.ledger.scrub import Scrub
from controlplane.settings import Peer, Settings
from controlplane.store.backup import Archive, Manifest, restore
from controlplane.store.backup.stories import Story, stories
from controlplane.store.client import Database, connect
from controlplane.store.copies import Copies
from controlplane.store.ledger_scrub import ScrubStore

__all__ = ["Drilled", "drill"]

_SHOWN = 10
_NO_MESSAGE = {Kind.VOID, Kind.OPENED, Kind.REPAIRED, Kind.RECOVERED, Kind.FORK}
"""What the ledger writes of itself, and what fills a place."""
Tell = Callable[[str], None]


@dataclass
class Drilled:
    """What came of it."""

    backup: str
    region: str
    instant: str
    documents: int = 0
    messages: int = 0
    """Accepted, each found and folded to a status."""
    statuses: dict[str, int] = field(default_factory=dict)
    entries: int = 0
    """Of the ledger, each verified with its event."""
    logs: int = 0
    canaries: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By step."""
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Nothing is missing."""
        return not self.problems

    def as_json(self) -> str:
        """One line."""
        return json.dumps({"drill": "passed" if self.good else "failed", **asdict(self)})


async def drill(
    archive: Archive, secret: SecretStr, canaries: Path | None, scratch: Path, clock: Clock, tell: Tell
) -> Drilled:
    """Restore below `scratch` and look. Raises ConfigError where it could not be tried, ArchiveError for a backup that is not whole."""
    manifest = archive.manifest
    found = Drilled(manifest.id, manifest.region, manifest.instant, documents=manifest.documents)
    wanted = _canaries(canaries)
    place = Path(tempfile.mkdtemp(prefix="heliograph-drill-", dir=scratch))
    mongod = Mongod(place, _free_port())
    try:
        await asyncio.to_thread(mongod.start)
        settings = _settings(manifest, mongod.uri, secret)
        database = connect(settings)
        try:
            await _look(database, archive, settings, wanted, clock, found, tell)
        finally:
            await database.client.close()
    finally:
        await asyncio.to_thread(mongod.stop)
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _canaries(path: Path | None) -> list[str]:
    """Ids of messages that were accepted before the instant, as `controlplane.ops.canary` writes them: a line `{"id": …}` each."""
    if path is None:
        return []
    try:
        lines = [line for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
        return [str(json.loads(line)["id"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is no list of test messages ({error}); each line is JSON with an `id`.") from None


def _settings(manifest: Manifest, uri: str, secret: SecretStr) -> Settings:
    """Those of a node of that region, as far as the ledger's verification asks for them. It verifies with the keys that the backup names, and signs nothing."""
    return Settings(
        mongodb_uri=SecretStr(uri),
        secret_key=secret,
        datacenter=manifest.region,
        ledger_domain=manifest.ledger.domain,
        ledger_peers=tuple(Peer.model_validate(peer) for peer in manifest.ledger.peers),
    )


async def _look(
    database: Database,
    archive: Archive,
    settings: Settings,
    canaries: Sequence[str],
    clock: Clock,
    found: Drilled,
    tell: Tell,
) -> None:
    began = clock.monotonic()

    def took(step: str) -> None:
        nonlocal began
        found.seconds[step], began = round(clock.monotonic() - began, 2), clock.monotonic()

    await restore(database, archive, tell)  # compares counts and digests, of the accepted messages too
    took("restore")
    tell("folding every message")
    await _fold_all(stories(database), archive.manifest, canaries, found)
    took("fold")
    tell("verifying the ledger")
    await _verify_ledger(database, archive.manifest, settings, clock, found)
    took("ledger")


async def _fold_all(told: AsyncIterator[Story], manifest: Manifest, canaries: Sequence[str], found: Drilled) -> None:
    """Every accepted message has a status; none is broken; the canaries are among them."""
    missing = set(canaries)
    broken: list[str] = []
    async for story in told:
        status, problem = _status(story)
        if problem:
            broken.append(f"{story.mid} ({problem})")
        elif story.accepted:
            missing.discard(story.mid)
            found.messages += 1
            found.statuses[status] = found.statuses.get(status, 0) + 1
    found.canaries = len(set(canaries)) - len(missing)
    if broken:
        found.problems.append(f"{len(broken)} messages have no status: {', '.join(broken[:_SHOWN])}")
    if (lost := manifest.messages - found.messages - len(broken)) > 0:
        found.problems.append(f"{lost} of {manifest.messages} accepted messages are missing")
    if missing:
        shown = ", ".join(islice(sorted(missing), _SHOWN))
        found.problems.append(f"{len(missing)} of {len(canaries)} test messages are missing: {shown}")


def _status(story: Story) -> tuple[str, str]:
    """(status, "") of a message, ("", "") of what is none, ("", why) of one that cannot be told."""
    if story.problem:
        return "", story.problem
    first = story.events[0]
    if first.kind in _NO_MESSAGE or (first.kind is Kind.GAP and not first.tenant):
        return "", ""
    try:
        message = fold(story.events)
    except (ValueError, KeyError, TypeError) as error:
        return "", str(error)
    return (str(message.status), "") if message else ("", "")


async def _verify_ledger(
    database: Database, manifest: Manifest, settings: Settings, clock: Clock, found: Drilled
) -> None:
    """Every entry of every log, with its event, up to a signed root; and the roots are those of the manifest."""
    store = ScrubStore(database)
    scrub = Scrub(store, Copies(database, store), settings, clock)
    findings = await scrub.verify_all()
    logs = {log.origin: log for log in await store.logs()}
    found.logs, found.entries = len(logs), sum(log.size for log in logs.values())
    for one in manifest.ledger.logs:
        log = logs.get(one.origin)
        if log is None or (log.size, log.root.hex()) != (one.size, one.root):
            found.problems.append(f"the log {one.origin} is not at the {one.size} entries of the backup's checkpoint")
    if findings:
        shown = "; ".join(f"{each.kind} of {each.origin}: {each.detail[:200]}" for each in findings[:_SHOWN])
        found.problems.append(f"the ledger has {len(findings)} findings: {shown}")
