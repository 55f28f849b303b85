"""Decoding on a processor with one operator call a token: what a model must be, and the decoder."""
