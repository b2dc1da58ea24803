"""The dialects in which carriers write receipts (row 13): read tolerantly, never dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.smpp.pdu import DeliverSm
from controlplane.smpp.receipt_text import parse_receipt

CORPUS = [json.loads(line) for line in (Path(__file__).parent / "receipts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CORPUS, ids=[case["text"][:40] or "tlv" for case in CORPUS])
def test_row_13_dialects(case):
    tlvs = {int(tag): bytes.fromhex(value) for tag, value in case.get("tlvs", {}).items()}
    receipt = parse_receipt(DeliverSm(esm_class=4, short_message=case["text"].encode("latin-1"), tlvs=tlvs or None))
    assert (receipt.id, receipt.state) == (case["id"], case["state"])
    for name in ("error", "done_date", "source"):
        if name in case:
            assert getattr(receipt, name) == case[name]
    if "receipt_text" in case:
        assert receipt.text == case["receipt_text"]


def test_row_13_what_cannot_be_read_is_kept():
    receipt = parse_receipt(DeliverSm(esm_class=4, short_message=b"\xff\x00 who knows"))
    assert receipt.source == "raw"
    assert "who knows" in receipt.text
