"""The ops, by group: each beside its reference, which defines it and is the CPU backend."""
