"""Which way a message goes: retrieve the routes that may carry it, rank them, say why.

- `router` has the words: RouteRequest, Candidate, Exclusion, Plan, and the Router protocol that every engine satisfies.
- `candidates` retrieves: an exact index by prefix, hard rules with their ids.
- `static` ranks by health, priority, prefix, price. The learned engine comes behind the same protocol.

No I/O: a router sees one snapshot of the catalog, and a function that says which connectors are up.
"""

from controlplane.routing.router import Candidate, Exclusion, Plan, Router, RouteRequest
from controlplane.routing.static import StaticRouter

__all__ = ["Candidate", "Exclusion", "Plan", "RouteRequest", "Router", "StaticRouter"]
