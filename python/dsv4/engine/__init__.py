"""Requests and their text, one driver thread per engine, streams, health, metrics; torch is first imported at start."""
