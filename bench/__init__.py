"""Benchmarks: Heliograph beside Kannel and Jasmin, the same SMSC sink and the same load, in turn, in one run. `make bench`; see docs/performance.md."""
