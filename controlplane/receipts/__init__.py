"""What carriers send us: receipts and mobile-originated messages. Nothing is answered ESME_ROK before it is durable.

- `ingest` takes deliver_sm and data_sm from any bind, bounded; overloaded or without MongoDB it answers ESME_RX_T_APPN and the carrier sends again.
- `correlate` finds the message of a receipt: open here, or in the store; learns each connector's id format; joins orphans whichever side came last;
  resolves a message whose submit had no response by its recipient.
- `inbound` keeps the parts of long mobile-originated messages until they are whole.
"""
