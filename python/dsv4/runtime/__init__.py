"""One device: memory sized once, and plans turned into launched work and tokens."""
