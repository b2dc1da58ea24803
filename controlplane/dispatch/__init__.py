"""Dispatch: from the open messages that this node owns to submit_sm on a bind, and what the answers mean.

- `owner` looks at a message and decides its next step: wait, queue, resend, expire. It is told by the book and by `timers`.
- `outbox` is one connector's way out: a queue by class, a `throttle`, its binds; intent first, then submit.
- `outcome` turns a response, or its absence, into facts: submitted, deferred, rerouted, failed, unknown.
- `compose` makes the submit_sm of each part.
- `binds` keeps the sessions that the catalog asks for, and leases them where the carrier limits their number.
- `tallies` counts what the carriers answer; `trial` tries an account's settings with one bind.
- `tenure` renews the lease and writes the checkpoint; `adopt` takes over what a dead term left.

A message is at most in one place: a queue, in hand (`Book.flying`: an intent is being written or a submit has no outcome yet), or waiting in
`timers`. Nothing is submitted without a valid lease and a durable intent.
"""
