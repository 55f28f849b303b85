"""How figures beside other programs are printed: medians with their spread, and the conditions."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

import torch

from cuda_ext.packed import cpu_isa


def spread(values: Sequence[float], digits: int) -> str:
    """ "12.3 [11.9, 13.0]": the median, the least and the most."""
    middle, least, most = (f(values) for f in (statistics.median, min, max))
    return f"{middle:.{digits}f} [{least:.{digits}f}, {most:.{digits}f}]"


def conditions() -> str:
    """Threads, instruction set and load of the machine."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{torch.get_num_threads()} threads, {cpu_isa()}; load of the machine {load}"
