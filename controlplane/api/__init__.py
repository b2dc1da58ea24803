"""The HTTP API, version 1 (docs/api.md, docs/openapi.json).

- `app` builds the FastAPI application; `services` is what it needs of the rest; `problems` turns every error into RFC 9457.
- `auth` knows keys and scopes, `ratelimit` how fast they may go, `cursor` where a list goes on.
- `messages` and `batches` are the hot path: raw ASGI routes, `submission` validates and prepares what they accept.
- `story` tells a message: status, parts, timeline in words. `reading`, `configuration`, `callbacks`, `explain`, `health` are ordinary FastAPI.
"""
