"""From rows of counts to rows of an embedding: source, runner, store, cache; here or on a cluster."""
