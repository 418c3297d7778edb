"""Block-scaled formats with power-of-two scales: FP8 (E4M3), FP4 (E2M1), their packing, and the Hadamard rotation."""
