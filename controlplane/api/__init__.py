"""The HTTP API, version 1 (docs/api.md, docs/openapi.json).

- `app` builds the FastAPI application; `services` is what it needs of the rest; `problems` turns every error into RFC 9457.
- `auth` knows keys and scopes, `ratelimit` how fast they may go, `cursor` where a list goes on.
- `hot` is `/v1/messages` and `/v1/batches`: raw ASGI routes. `submission` validates and prepares a message; `acceptance` takes prepared ones to the book, for `hot`, `resend` and batch jobs (`rows`) alike.
- `batch_jobs` are tables of messages: `uploads` and `receiving` read them as they come, `controlplane.batches` works at them.
- `operations` takes what is asked for of a region, gives it to the agent that runs it, and keeps what that one reports.
- `story` tells a message: status, parts, timeline in words. `reading`, `configuration`, `callbacks`, `explain`, `health` are ordinary FastAPI.
"""
