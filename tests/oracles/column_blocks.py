"""Blocks of columns with grids, for tests of GPTQ's inner column loop."""

import torch

from quant.grid import find_grid, stack_grids
from quant.scheme import Scheme

SCHEMES = [
    Scheme(2),
    Scheme(3),
    Scheme(4, symmetric=True),
    Scheme(8),
    Scheme(2, 8, levels="ternary"),
]
FUSED = torch.backends.cpu.get_cpu_capability() != "DEFAULT"  # else addcmul_ rounds twice


def block(columns, rows, groups=1, scheme=SCHEMES[0], seed=0, device="cpu"):
    """Weights [columns, rows], U [columns, columns] and grids [groups, rows]."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(columns, rows, generator=generator)
    upper = (torch.randn(columns, columns, generator=generator) * 0.2).triu()
    upper.diagonal().abs_().add_(0.5)
    grids = [find_grid(torch.randn(rows, 16, generator=generator), scheme) for _ in range(groups)]
    stacked = stack_grids(grids)
    return weight.to(device), upper.to(device), stacked.apply(lambda part: part.to(device))
