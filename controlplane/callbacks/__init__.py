"""Callbacks: our signed HTTP requests to tenants, by Standard Webhooks. At least once, in order per message, for days.

- `payload` says what is sent; `sign` signs it; `guard` keeps requests away from private networks.
- `attempt` makes one request and says what its answer means.
- `deliver` holds what is to be sent now. Whatever fails is parked in MongoDB (`store/callback_log.py`) and retried by any node.

Nothing is inserted before the first attempt: which callbacks were in memory when a node died is derived from its events and its checkpoint.
"""
