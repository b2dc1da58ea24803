"""Routing measured against a world whose truth is known; see docs/routing.md. All results are simulated.

- `world`, `parameters.toml`: the world, fixed before any policy was tuned.
- `view`, `labels`: what a gateway sees of it, and what baselines make of that. `run` plays one policy through it.
- `simple`, `linear`, `vw`, `ours`: the policies. `entrants`: what each may be tuned to; `tune` chooses on other seeds, `tuned.json` is what it chose.
- `evaluate`, `measure`, `tables`, `plots`, `report`: what is reported, and how.
- `digits`: off-policy estimators beside published figures. `speed`: how long a decision takes.
"""
