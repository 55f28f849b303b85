"""Caches of keys and values that hold fewer bits: quantized by age, or with fewer tokens.

Simulated: numbers are rounded as they would be stored and read back, or left out. No kernel reads
packed codes.
"""
