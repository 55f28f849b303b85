"""Suites: a module each that ends in SUITE, its table included, and what they measure with.

harness.suites.base says what a suite is. perplexity, divergence, zeroshot, latency and kernels load
no heavy library; what their `run` calls (scoring, comparing, timing_tokens, ...) does.
"""
