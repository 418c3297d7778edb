"""The model over the GPU's kernels: the contract of `dsv4.model.model`, weights as the checkpoint packs them."""
