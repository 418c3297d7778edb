"""Manifold-constrained hyper-connections (mHC): N residual streams, mixed before and after every sublayer."""
