"""STOP and START from phones: they take effect, durably and for all nodes, before the message is acknowledged to the carrier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from controlplane.domain.address import mask, normalise_recipient
from controlplane.domain.catalog import Snapshot
from controlplane.domain.keywords import Wish, bare, wish_of
from controlplane.domain.preferences import Reason
from controlplane.store.preferences import NewSuppression
from controlplane.store.recipients import Recipients

__all__ = ["Keywords"]

_log = structlog.get_logger()


class Keywords:
    """One per node."""

    def __init__(self, recipients: Recipients, snapshot: Callable[[], Snapshot]) -> None:
        self._recipients = recipients
        self._snapshot = snapshot

    def wish(self, tenant: str, text: str) -> Wish | None:
        """What a text to this tenant asks for, if it is a keyword."""
        record = self._snapshot().tenants.get(tenant)
        return wish_of(text, record.opt_out_keywords, record.opt_in_keywords) if record is not None else None

    async def fulfil(self, wish: Wish, tenant: str, source: str, text: str) -> dict[str, Any]:
        """Do it; again does no harm. Returns what the `received` event says of it: `{keyword, effect, suppression? | lifted?}`.

        `source` is the SMPP source address, in international form with or without +; another one has no known owner, and is told so. Raises StoreUnavailableError.
        """
        keyword = bare(text)
        try:
            number = normalise_recipient(source if source.startswith("+") else f"+{source}")
        except ValueError:
            _log.warning("keyword_without_number", tenant=tenant, keyword=keyword, source=mask(source))
            return {"keyword": keyword, "effect": "unknown_number"}
        store = self._recipients.store
        if wish is Wish.OPT_IN:
            lifted = await store.lift_opt_outs(tenant, number)
            await self._recipients.refresh()
            return {"keyword": keyword, "effect": "opted_in", "lifted": lifted}
        classes = self._snapshot().tenants[tenant].opt_out_classes
        opt_out = NewSuppression(to=number, reason=Reason.OPT_OUT, classes=classes, source=f"keyword {keyword}")
        written = await store.suppress(tenant, [opt_out])
        await self._recipients.refresh()
        return {"keyword": keyword, "effect": "opted_out", "suppression": written[0].id}
