"""Settings of the engine and of the checkpoint; no torch."""
