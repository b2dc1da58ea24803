"""Mobile-originated messages: durable, deduplicated, put together, handed to the connector's tenant as a `received` event (and by callback)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from controlplane.clock import Clock
from controlplane.domain.catalog import Connector
from controlplane.domain.concat import StoredPart, assemble
from controlplane.domain.events import Event, Kind
from controlplane.domain.keywords import Wish
from controlplane.domain.text import Concat, decode, parse_udh
from controlplane.errors import StoreUnavailableError
from controlplane.ids import idempotent_mid
from controlplane.receipts.keywords import Keywords
from controlplane.smpp.pdu import DataSm, DeliverSm
from controlplane.smpp.tlv import SAR_MSG_REF_NUM, SAR_SEGMENT_SEQNUM, SAR_TOTAL_SEGMENTS
from controlplane.store.book import Book
from controlplane.store.inbound_parts import InboundParts, PartGroup
from controlplane.tasks import going_on

__all__ = ["Inbound"]

_SWEEP_SECONDS = 10.0
_SAME_MS = 60_000
"""The same text from the same phone within a minute or two is the carrier's redelivery: nothing in SMPP tells it from a second sending."""


class Inbound:
    """One per node."""

    def __init__(
        self,
        book: Book,
        parts: InboundParts,
        secret: bytes,
        clock: Clock,
        tenant_of: Callable[[str], str],
        keywords: Keywords,
    ) -> None:
        self._book = book
        self._tenant_of = tenant_of
        """Connector name → who gets its messages."""
        self._parts = parts
        self._secret = secret
        self._clock = clock
        self._keywords = keywords

    async def receive(self, connector: Connector, pdu: DeliverSm | DataSm) -> None:
        """Returns when it is durable. Raises StoreUnavailableError."""
        concat, octets = _concat(pdu)
        text = decode(octets, pdu.data_coding, default_alphabet=connector.default_alphabet)
        if concat is None or concat.total == 1:
            await self._record_single(connector, pdu, text)
            return
        key = f"{connector.name}|{pdu.source_addr}|{pdu.dest_addr}|{concat.ref}|{concat.total}"
        group = await self._parts.add(key, StoredPart(concat.number, concat.total, text))
        if not group.done and assemble(group.parts).complete:
            await self._record_group(group)

    async def run(self) -> None:
        """Record what stays incomplete, until cancelled."""
        while going_on():
            await asyncio.sleep(_SWEEP_SECONDS)
            with suppress(StoreUnavailableError):
                for group in await self._parts.due():
                    await self._record_group(group)

    async def _record_single(self, connector: Connector, pdu: DeliverSm | DataSm, text: str) -> None:
        slot = self._clock.now_ms() // _SAME_MS
        name = f"{connector.name}|{pdu.source_addr}|{pdu.dest_addr}|{text}"
        before, now = (idempotent_mid(self._secret, "inbound", f"{name}|{n}") for n in (slot - 1, slot))
        tenant, source = connector.tenant, pdu.source_addr
        wish = self._keywords.wish(tenant, text)
        effect = None
        if (
            wish is Wish.OPT_OUT
        ):  # whatever came before: STOP, START, STOP within a minute is no redelivery of the first
            effect = await self._keywords.fulfil(wish, tenant, source, text)
        if await self._book.load(before) is not None:
            return
        if wish is Wish.OPT_IN and await self._book.load(now) is None:  # a redelivered START must not lift a later STOP
            effect = await self._keywords.fulfil(wish, tenant, source, text)
        await self._accept(now, tenant, connector.name, source, pdu.dest_addr, text, 1, effect, complete=True)

    async def _record_group(self, group: PartGroup) -> None:
        connector, source, dest, *_ = group.key.split("|")
        tenant = self._tenant_of(connector)
        whole = assemble(group.parts)
        mid = idempotent_mid(self._secret, "inbound", f"{group.key}|{group.first_at}")
        wish = self._keywords.wish(tenant, whole.body)
        effect = await self._keywords.fulfil(wish, tenant, source, whole.body) if wish is not None else None
        await self._accept(
            mid, tenant, connector, source, dest, whole.body, whole.parts, effect, complete=whole.complete
        )
        await self._parts.finish(group.key)

    async def _accept(
        self,
        mid: str,
        tenant: str,
        connector: str,
        source: str,
        dest: str,
        text: str,
        parts: int,
        effect: dict[str, Any] | None,
        *,
        complete: bool,
    ) -> None:
        data = {"from": source, "to": dest, "body": text, "connector": connector, "parts": parts, "complete": complete}
        if effect is not None:
            data["preference"] = effect
        draft = Event(mid=mid, k=0, tenant=tenant, kind=Kind.RECEIVED, at=self._clock.now_ms(), data=data)
        await self._book.accept(draft)


def _concat(pdu: DeliverSm | DataSm) -> tuple[Concat | None, bytes]:
    """How the part belongs to others (header first, sar_* else), and its text without header."""
    octets = pdu.message
    if pdu.esm_class & 0x40:
        concat, octets = parse_udh(octets)
        if concat is not None:
            return concat, octets
    tlvs = pdu.tlvs or {}
    reference, total, number = (
        int.from_bytes(tlvs.get(tag, b""), "big") for tag in (SAR_MSG_REF_NUM, SAR_TOTAL_SEGMENTS, SAR_SEGMENT_SEQNUM)
    )
    return (Concat(reference, total, number) if 1 <= number <= total else None), octets
