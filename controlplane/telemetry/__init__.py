"""What the product says of itself: `logs` (structured, without numbers, texts or secrets) and `metrics` (Prometheus, all names in one place)."""
