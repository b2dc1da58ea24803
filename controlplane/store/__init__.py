"""MongoDB, and nothing else here speaks to it.

Concepts, from the bottom up:

- `client` connects, and maps pymongo's errors to ours at one border.
- `schema` names the collections and makes their indexes.
- `committer` is the one way in for events: group commit, `w: majority, j: true`, retried by `_id` until it is known what happened.
- `events` reads them back: one message, many, a page of a tenant's.
- `book` holds the open messages that this node owns, serialises facts per message, folds, resolves races on `<mid>:<k>`.
- `leases` gives a node its epoch and its term, and tells which other terms are dead; `adoption` reads what a dead term left behind.
- `intents` is the write-ahead record of submits; `orphans` keeps receipts that nobody knows yet; `inbound` parts of long MO messages.
- `batch_jobs` holds uploaded tables, and who works at them.
- `operations` holds what is asked for of a region, who runs it, and what they told of it.
- `catalog` is what operators configure, `seal` encrypts its secrets, `callback_log` is the callbacks' delivery log.

Events are insert-only. No transaction, no findAndModify, no change stream: nothing that a sharded cluster makes slow.
"""
