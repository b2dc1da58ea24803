"""What the product says of itself.

- `logs` (structured, without numbers, texts or secrets) and `metrics` (Prometheus, all names in one place).
- `watch` wires what any node tells of the whole deployment: `report` writes this node's state, `statistics` counts messages, `evaluator` looks at the alert rules
  (domain.alerts). None of it is on the path of a message but for the counting, and none of its faults ends a node.
"""
