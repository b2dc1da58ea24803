"""Batch jobs: tables of messages, checked and then sent in the background by whichever node takes them.

- `runner` claims jobs, and erases what has been at rest for the retention.
- `work` is the work at one job, held by heartbeats: asks of each row what would become of it (`report` sums that up), or sends the rows chunk by chunk.

What a row becomes is decided where every message's acceptance is (`Desk`, which the API implements). Each row has an id of its own by derivation from job and line,
so that a chunk can be sent again by another node: what was accepted is recognised, and nothing is sent twice or left out.
"""
