"""The HTTP door: `python -m dsv4.serve`. Sees the engine, the configuration, the types and the errors; never torch."""
