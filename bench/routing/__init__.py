"""Routing measured against a world whose truth is known; see docs/routing.md. All results are simulated.

- `world`, `parameters.toml`: the world, fixed before any policy was tuned.
"""
