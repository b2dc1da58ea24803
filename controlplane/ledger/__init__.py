"""The ledger: what happened to each message, in logs that nobody, we included, can change without being seen.

A log is an append-only Merkle tree (RFC 6962) of event leaves, one for each datacenter and quarter. Its formats are C2SP's,
so that programs of others read and check it: tiles and bundles (tlog-tiles), checkpoints as signed notes (tlog-checkpoint,
signed-note), cosignatures of those who saw the log grow (tlog-cosignature, tlog-witness), proofs (tlog-proof).

- `merkle`: hashes, roots, inclusion and consistency proofs; `grow`: the tiles of a log after more entries.
- `tiles`: where hashes and entries lie, and how they are written.
- `note`, `checkpoint`: what is signed, and by whom.
- `proof`: the proof of one entry, and of everything that happened to one message.
- `offline`: verifies the latter with nothing but Python; it shares no code with the rest, on purpose.
"""
