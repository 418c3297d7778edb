"""KV compression: pooling of 4 (overlapping, 8 rows) or 128 tokens into one entry."""
