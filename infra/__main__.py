"""`pulumi up`: one stack is one region (datacenter)."""

from __future__ import annotations

from infra.program import main

main()
