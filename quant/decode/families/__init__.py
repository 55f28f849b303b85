"""Decoders that a fused step takes: a family is one module, and describes its models."""
