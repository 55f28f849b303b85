"""Structured pruning: parts of a model are removed before its layers are quantized."""
