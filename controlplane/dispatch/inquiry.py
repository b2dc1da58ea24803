"""query_sm (SMPP 3.4 section 4.8): where a carrier offers it, ask what became of a part that has no receipt although its message's validity is over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from controlplane.dispatch.outbox import Outbox
from controlplane.domain.address import source_address
from controlplane.domain.events import Kind
from controlplane.domain.message import Message, PartState
from controlplane.domain.receipt import Receipt, kind_of, reason_of
from controlplane.smpp.pdu import QuerySm, QuerySmResp
from controlplane.smpp.receipt_text import state_name
from controlplane.store.book import Book, Fact

__all__ = ["Inquirer"]


class Inquirer:
    """One per node. A final state in the answer is recorded as a receipt; any other answer changes nothing."""

    def __init__(self, book: Book, outboxes: Callable[[], dict[str, Outbox]]) -> None:
        self._book = book
        self._outboxes = outboxes

    def ask(self, message: Message) -> None:
        """Ask for each part that was submitted and has no receipt, where its connector offers query_sm and is bound."""
        for number, part in enumerate(message.parts, 1):
            outbox = self._outboxes().get(part.connector)
            if part.state is not PartState.SUBMITTED or not part.cid or outbox is None or not outbox.connector.query_sm:
                continue
            bind = next((bind for bind in outbox.binds if bind.bound and bind.sends), None)
            if bind is None:
                continue
            ton, npi, source = source_address(message.sender, outbox.connector.source_ton, outbox.connector.source_npi)
            query = QuerySm(message_id=part.cid, source_ton=ton, source_npi=npi, source_addr=source)
            bind.query(query, partial(self._answered, message, number))

    def _answered(self, message: Message, number: int, answer: QuerySmResp | None) -> None:
        if answer is None:
            return
        part = message.parts[number - 1]
        receipt = Receipt(
            id=part.cid,
            state=state_name(answer.message_state),
            error=str(answer.error_code or ""),
            done_date=answer.final_date,
            text="answer to query_sm",
        )
        kind = kind_of(receipt.state)
        if kind is None or kind is Kind.ENROUTE:
            return
        data = {"part": number, "connector": part.connector, "receipt": receipt.as_data()}
        fact = Fact(
            kind,
            data,
            message.route or None,
            reason_of(kind, receipt),
            guard=lambda m: m.parts[number - 1].state is PartState.SUBMITTED,
        )
        self._book.post(message.mid, fact)
