"""Changes of a region that take several declared states, one after another: other certificates and keys, another host, a shard more.

Each change is a row of phases. A phase edits the stack's file (`rotations`, `hosts`: pure), then an `up` makes it so, then somebody looks; only then comes the
next. Where a change stands is in the stack's file itself (`heliograph:change`), with the secrets of the phase in progress encrypted beside it: whatever is cut,
and wherever it is gone on with, the stack says what is left. `heliograph ops` goes from phase to phase; `python -m infra.changes` is what it calls.
"""
