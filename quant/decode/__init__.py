"""Greedy decoding at batch 1: the fastest decoder that gives a model's own logits."""
