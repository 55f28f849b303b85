"""Measurement helpers: decoders, roofline, and models with random weights."""
