"""The indexer: scores of compressed entries, and the top-k that attention reads."""
