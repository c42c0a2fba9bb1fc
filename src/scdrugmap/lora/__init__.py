"""Low-rank adapters inside a network, and their training."""
