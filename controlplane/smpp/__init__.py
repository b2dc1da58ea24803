"""SMPP 3.4, our own: lean, sans-IO, and honest about what is not known.

- `pdu`, `tlv`, `status`: the codec, its tags, its command statuses. Any bytes decode, or raise PduError with the answer that they deserve.
- `session`: one client session as a state machine. Bytes and time go in; events and bytes come out. No I/O, no clock, no task.
- `connection`: the only asyncio here: connects, feeds the session, reconnects.
- `receipt_text`: reads delivery receipts, TLVs first, every dialect.

A submit ends in exactly one of three ways: a response, a timeout, a lost session. The last two are reported as such and never repeated here.
"""
