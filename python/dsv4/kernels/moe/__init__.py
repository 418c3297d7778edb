"""Mixture of experts: routing by score or by token id, and the experts that were hit."""
