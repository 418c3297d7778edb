"""From a row of logits to a token: penalties, masks, the order of the filters, the draw, log-probabilities."""
