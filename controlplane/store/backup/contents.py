"""What a backup keeps of a database, and what it leaves out. A collection that is in neither list is kept: what nobody thought of is not lost."""

from __future__ import annotations

__all__ = ["KEPT", "LEFT_OUT", "kept"]

KEPT = (
    # messages, and what is under way
    "events",
    "intents",
    "orphans",
    "inbound_parts",
    "terms",
    "adoptions",
    "retention",
    "batch_jobs",
    "batch_rows",
    # the ledger
    "ledger_logs",
    "ledger_bundles",
    "ledger_tiles",
    "ledger_runs",
    "ledger_cosignatures",
    "ledger_witnessed",
    "ledger_conflicts",
    "ledger_erasures",
    "ledger_findings",
    "ledger_repairs",
    "ledger_lease",  # no term that it knows is begun again
    # what operators and tenants configured
    "tenants",
    "keys",
    "connectors",
    "routes",
    "endpoints",
    "meta",
    "people",
    # recipients
    "suppressions",
    "preferences",
    "preference_changes",
    "preference_marks",
    # records
    "audit",
    "callbacks",
    "callback_log",
    "statistics",
    "routing_states",
    "alerts",
    "alert_history",
)
"""Collections that are kept, by what they are about."""

LEFT_OUT = {
    "search_state": "the search index is derived; a ledger builds it anew",
    "search_segments": "the search index is derived; a ledger builds it anew",
    "search_data": "the search index is derived; a ledger builds it anew",
    "bind_slots": "a lease of a minute: whoever held one holds it no more",
    "comebacks": "questions of nodes that are gone; those of a restored region ask anew",
    "node_states": "what nodes last said of themselves; the next ones say it within seconds",
    "alert_rounds": "a lease of a minute, of whoever evaluated the alerts",
    "ledger_scrub": "how far scrubbing had come: what was restored is all read again",
    "sessions": "people sign in again; a session that has ended since must not come back",
    "invitations": "a set-up link that was used or withdrawn since must not come back; `heliograph people link` makes a new one",
    "login_delays": "how long a name or address has to wait, for at most an hour",
    "operations": "what was asked of operators' machines: what was under way at the instant must not be begun again; the audit has who asked",
    "operation_events": "what those operations told",
    "operation_agents": "leases of a minute, of the operators' machines that answer",
    "restores": "how a restore into this very database went",
}
"""Collection → why it is not in a backup."""


def kept(name: str) -> bool:
    """Whether a collection goes into a backup."""
    return name not in LEFT_OUT and not name.startswith("system.")
