"""Structured pruning: parts of a model are removed before its layers are quantized."""

PRUNED = "bitsweep_pruned"  # entry of config.json of a model whose layers were made smaller
