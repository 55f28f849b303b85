"""Timings of what must be fast: `make bench`, or `python -m benchmarks NAME ...`."""
