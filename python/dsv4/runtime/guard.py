"""Containment of NaN and infinity: a row whose logits are not finite ends its own request and nobody else's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsv4.kernels.sample import reference


def non_finite_rows(logits: NDArray[np.float32]) -> list[int]:
    """Rows of [B, V] float32 that hold a NaN or an infinity, ascending; such a row must not be sampled from.

    Replacing the bad values instead would turn the row into a confident, wrong token.
    """
    finite = reference.finite_rows(logits)
    return [] if finite.all() else [int(row) for row in np.flatnonzero(~finite)]
