"""What this node knows of recipients: asked for each message, without a round trip for those of whom nothing is recorded.

In memory are 64 bits of each recorded recipient's keyed hash, and which tenants have any. A hit is confirmed by a read, which is remembered until that recipient
changes: so the answer is exact. Changes of this and of other nodes are followed by their version, twice a second.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import structlog

from controlplane.clock import Clock
from controlplane.domain.address import normalise_recipient
from controlplane.domain.preferences import NOBODY, Standing
from controlplane.errors import StoreUnavailableError
from controlplane.store.digests import DigestSet
from controlplane.store.preferences import PreferenceStore
from controlplane.tasks import going_on

__all__ = ["Recipients"]

_log = structlog.get_logger()
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 5.0
"""How long a version may be without its entry before everything is read anew."""
_REMEMBERED = 50_000
_READERS = 4
_TOGETHER = 1_000
"""Recipients that one read asks for, if so many wait."""
_MOST_WAITING = 20_000
"""Requests that may wait for a read."""

Known = Callable[[list[Standing] | StoreUnavailableError], None]
"""Called in the loop, once: with what is recorded, in the order asked for."""
Asked = tuple[str, str]
"""(tenant, recipient)."""


class Recipients:
    """One per node."""

    def __init__(self, store: PreferenceStore, clock: Clock) -> None:
        self.store = store
        self._clock = clock
        self._version = -1
        self._digests = DigestSet(array("Q"))
        self._tenants: set[str] = set()
        self._known: OrderedDict[bytes, Standing] = OrderedDict()
        """By keyed hash; what was put in first is forgotten first."""
        self._work: asyncio.Queue[tuple[Sequence[Asked], Known]] = asyncio.Queue()
        self._gap_since: float | None = None
        self._refreshing = asyncio.Lock()

    def __len__(self) -> int:
        """Recipients of whom something is recorded (those removed since the start included)."""
        return len(self._digests)

    def standing(self, tenant: str, to: str) -> Standing | None:
        """What is recorded of a recipient (as the client wrote it); None when that has to be read first (`read_soon`)."""
        if tenant not in self._tenants:
            return NOBODY
        try:
            digest = self.store.digest(tenant, normalise_recipient(to))
        except ValueError:  # refused later, in words
            return NOBODY
        if int.from_bytes(digest[:8], "big") not in self._digests:
            return NOBODY
        return self._known.get(digest)

    def read_soon(self, asked: Sequence[Asked], known: Known) -> None:
        """`standing` for those who can wait: reads what it must, for all who wait at once. With too many of them `known` is called at once, with an error."""
        if self._work.qsize() >= _MOST_WAITING:
            known(StoreUnavailableError("Too many recipients wait to be read."))
        else:
            self._work.put_nowait((asked, known))

    async def find(self, tenant: str, to: str) -> Standing:
        """`standing`, read where it must be. Raises StoreUnavailableError."""
        found = self.standing(tenant, to)
        return found if found is not None else (await self._read([(tenant, to)]))[0]

    # -- following -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the changes and read what is asked for, until cancelled; without MongoDB what is known stays in force."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                for _ in range(_READERS):
                    group.create_task(self._answer())
        finally:
            while not self._work.empty():
                self._work.get_nowait()[1](StoreUnavailableError("This node is stopping."))

    async def _follow(self) -> None:
        while going_on():
            await asyncio.sleep(_POLL_SECONDS)
            try:
                await self.refresh()
            except StoreUnavailableError as error:
                _log.warning("preferences_not_refreshed", reason=str(error)[:200])

    async def refresh(self) -> None:
        """Take in what has changed; everything at the first time. Raises StoreUnavailableError."""
        async with self._refreshing:
            version = await self.store.version()
            if self._version < 0 or version < self._version:  # the latter: the database was restored
                await self._reload(version)
            elif version > self._version:
                await self._catch_up(version)

    async def _reload(self, version: int) -> None:
        digests, tenants = await self.store.everybody()
        self._digests = DigestSet(digests)
        self._tenants = tenants
        self._known.clear()
        self._version = version
        self._gap_since = None

    async def _catch_up(self, version: int) -> None:
        contiguous = True
        for change in await self.store.changes(self._version):
            self._take(change.recipients, change.tenants)
            contiguous = contiguous and change.version == self._version + 1
            if contiguous:
                self._version, self._gap_since = change.version, None
        if self._version >= version:
            return
        now = self._clock.monotonic()
        if self._gap_since is None:
            self._gap_since = now
        elif now - self._gap_since > _PATIENCE_SECONDS:
            _log.warning("preferences_read_anew", missing=self._version + 1)
            await self._reload(version)

    def _take(self, recipients: Iterable[str], tenants: Iterable[str]) -> None:
        self._tenants.update(tenants)
        for recipient in recipients:
            digest = bytes.fromhex(recipient)
            self._digests.add(int.from_bytes(digest[:8], "big"))
            self._known.pop(digest, None)

    # -- confirming ----------------------------------------------------------------------------------------------------

    async def _answer(self) -> None:
        while going_on():
            waiting = [await self._work.get()]
            count = len(waiting[0][0])
            while count < _TOGETHER and not self._work.empty():
                waiting.append(self._work.get_nowait())
                count += len(waiting[-1][0])
            try:
                standings = iter(await self._read([one for asked, _ in waiting for one in asked]))
            except StoreUnavailableError as error:
                for _, known in waiting:
                    known(error)
            except asyncio.CancelledError:
                for _, known in waiting:
                    known(StoreUnavailableError("This node is stopping."))
                raise
            else:
                for asked, known in waiting:
                    known(list(islice(standings, len(asked))))

    async def _read(self, asked: Sequence[Asked]) -> list[Standing]:
        standings = [self.standing(tenant, to) for tenant, to in asked]
        missing = {
            index: self.store.digest(asked[index][0], normalise_recipient(asked[index][1]))
            for index, standing in enumerate(standings)
            if standing is None
        }
        version = self._version
        found = await self.store.of(sorted({digest.hex() for digest in missing.values()}))
        for index, digest in missing.items():
            suppressions, preference = found.get(digest.hex(), ((), None))
            standings[index] = standing = Standing(tuple(suppressions), preference)
            if (
                version == self._version and self._gap_since is None
            ):  # else it may be older than what is known to have changed
                self._remember(digest, standing)
        return [standing or NOBODY for standing in standings]

    def _remember(self, digest: bytes, standing: Standing) -> None:
        self._known[digest] = standing
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
