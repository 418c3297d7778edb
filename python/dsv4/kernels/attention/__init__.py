"""Attention over gathered window and compressed rows, with a sink in the denominator."""
