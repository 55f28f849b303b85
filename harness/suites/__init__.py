"""Suites: one module each, which ends in SUITE, and the modules that do their measurements.

harness.suites.base defines a suite. perplexity, divergence, zeroshot, latency and kernels load no
heavy library; the modules that their `run` imports (scoring, comparing, timing_tokens, ...) do.
"""
