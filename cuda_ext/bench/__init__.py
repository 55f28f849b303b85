"""Packed products beside torch's own, with the machine's roofline: `python -m cuda_ext.bench`.

Needs torch alone. Contenders run in turn in one process, each round every one of them once, over
copies of the weight that together are larger than the last-level cache, so that none finds its
weight there. The read bandwidth is measured in the same rounds. Times are medians, with the fastest
and the slowest tenth beside them, because other work on the machine shows there.
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
