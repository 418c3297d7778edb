"""Steps on one GPU: the model over its kernels, sampling included."""
