"""Benchmark packed products against torch's own, with the machine's roofline.

Run `python -m cuda_ext.bench`; it needs only torch. Contenders run in turn in one process, each
once per round, over copies of the weight that together exceed the last-level cache, so that no
weight is cached. The read bandwidth is measured in the same rounds. Times are medians, with the
10th and 90th percentile, which show the effect of other work on the machine.
"""

from cuda_ext.bench.compare import Row, bench, clocks, machine
from cuda_ext.bench.products import contenders, random_packed, readers
from cuda_ext.bench.shapes import BITS, SHAPES
from cuda_ext.bench.timing import Contender, copies_for, last_level_cache, measure

__all__ = [
    "BITS",
    "SHAPES",
    "Contender",
    "Row",
    "bench",
    "clocks",
    "contenders",
    "copies_for",
    "last_level_cache",
    "machine",
    "measure",
    "random_packed",
    "readers",
]
