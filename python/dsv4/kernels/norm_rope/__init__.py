"""RMS normalisation and rotary embedding of trailing channels."""
