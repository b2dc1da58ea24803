"""The console: a portal at `/console` on each node, rendered on the server, that reads and sends without JavaScript.

| module | what |
|---|---|
| `app` | the application that a node mounts: guard, pages, errors, static files |
| `backend` | the node's own HTTP API, called in-process with a grant for one call: each rule stands there once, and all that the console can do the API can |
| `identity`, `guard`, `login` … | who visits, and that requests come from the console's own pages |
| `frame` | what pages have in common: rendering, fragments, words for times, numbers, statuses |
| `live` | what open tabs ask again and again is asked once for all of them |
| `svg` | charts, drawn on the server |
| one module a screen | `overview`, `messages`, `message`, `send` …: a router each, and a folder of the same name in templates/console/ |

Numbers and texts are masked until somebody asks for them, and who did is audited. A list's state is its URL.
"""
