"""The recipe as the core follows it: every band inside the limits that this engine was sized for."""

from __future__ import annotations

from dsv4._core import Band, Limits
from dsv4._core import Recipe as CoreRecipe
from dsv4.config.recipe import Recipe


def core_recipe(recipe: Recipe, limits: Limits) -> CoreRecipe:
    """Bands of `recipe` with what they leave open taken from `limits`, and nothing above them.

    An engine that was told to be smaller than its recipe keeps the bands, each cut to its limits.
    """
    most_requests, most_tokens, most_drafts = limits.max_num_requests, limits.max_num_tokens, limits.max_draft_tokens
    bands = [
        Band(
            name=band.name,
            min_requests=band.min_requests,
            max_num_requests=min(band.max_num_seqs or most_requests, most_requests),
            max_num_tokens=min(band.max_num_batched_tokens or most_tokens, most_tokens),
            max_draft_tokens=most_drafts if drafts is None else min(drafts, most_drafts),
        )
        for band, drafts in ((band, band.num_speculative_tokens) for band in recipe.bands)
    ]
    switching = recipe.switching
    return CoreRecipe(
        name=recipe.name, bands=bands, dwell_steps=switching.dwell_steps, margin_percent=switching.margin_percent
    )
