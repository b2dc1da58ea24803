"""Heliograph's control plane: accept an SMS durably, dispatch it over SMPP, prove what became of it.

One SMS, end to end: `api/messages.py` validates, `domain/text.py` splits, `routing/` plans, `store/committer.py` inserts `accepted`,
the client gets its 202, `dispatch/` takes it from the owner's queue, writes an intent, `smpp/` submits, `receipts/` joins the carrier's
receipt, `callbacks/` signs and posts. `bootstrap.py` wires the parts; `cli.py` starts them.
"""

__version__ = "0.1.0"
