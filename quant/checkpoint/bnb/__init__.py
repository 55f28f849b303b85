"""Layers that bitsandbytes quantized: the levels of its tables, and what its state dicts hold."""
