"""Rows of the packed, paged caches: store and gather."""
