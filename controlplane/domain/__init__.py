"""The rules of the trade, pure: no I/O, no framework, the standard library alone.

- `events`: what can happen to a message, and the canonical leaf of each fact. `message`: the fold of those facts into a status.
- `text`: GSM-7, UCS-2, how many parts, how they are cut. `concat`: putting received parts together.
- `address`: recipients, senders, masking. `receipt`: carriers' delivery reports, and the many ways in which they write an id.
- `retry`: how long to wait, and what a carrier's answer means. `catalog`: what an operator configures.
- `operations`: the kinds of operations on a region, what each is told, and what is wrong with what it is told.
- `node_state`, `statistics`, `latency`, `alerts`, `trial`: what is shown of a running deployment, and what is wrong with it.
"""
