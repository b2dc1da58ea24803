"""Which way a message goes: retrieve the routes that may carry it, score them, choose one, say why, learn from what came of it.

- `router` has the words: RouteRequest, Candidate, Exclusion, Plan, and the Router protocol that every engine satisfies.
- `candidates` retrieves: an exact index by prefix, hard rules with their ids. `static` ranks by health, priority, prefix, price.
- `learned` is the engine that learns, behind the same protocol; `learner` is its state: what happened goes in, decisions come out.
- A score is made of `statistics` (decayed counts in a hierarchy of cells), `model` (logistic regression on `features` of the message)
  and `trust` (what receipts are worth, from feedback); `arms` and `scores` keep it for a second.
- `choose` weighs and picks, `breaker` sees outages in seconds, `underway` learns from messages whose receipts are still to
  come, which `pool` holds.
- `decision` is the record of one choice: replayed bit for bit, and told in words. `evaluate` says from records what another policy would have
  gained. `tuning` has all numbers.

No I/O and no clock: a router sees one snapshot of the catalog and a function that says which connectors are up; time comes in.
"""

from controlplane.routing.decision import Decision
from controlplane.routing.learned import LearnedRouter
from controlplane.routing.learner import Arm, Learner
from controlplane.routing.router import Candidate, Exclusion, Plan, Router, RouteRequest
from controlplane.routing.static import StaticRouter
from controlplane.routing.tuning import Terms, Tuning

__all__ = [
    "Arm",
    "Candidate",
    "Decision",
    "Exclusion",
    "LearnedRouter",
    "Learner",
    "Plan",
    "RouteRequest",
    "Router",
    "StaticRouter",
    "Terms",
    "Tuning",
]
