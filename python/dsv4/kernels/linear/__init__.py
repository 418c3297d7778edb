"""Products with a weight matrix, one fixed shape of GEMM whatever the batch."""
