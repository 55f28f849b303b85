"""AWQ: scale inputs by a power of their mean magnitude, chosen by the rounding error it leaves.

Activation-aware weight quantization (Lin et al., arXiv 2306.00978, section 3.2): column j of the
weights is multiplied, and input j divided, by s_j = E|x_j|^alpha. One alpha for the layers that
share an input is searched on a grid for the least squared error of their outputs,

    L(s) = sum over layers ||(W - Q(W diag(s)) diag(s)^-1) X||^2 = n/2 tr(E^T E H),

which the Hessian H = 2/n X X^T gives exactly, without another pass over the calibration data. Q
rounds to nearest on the grids of the scheme, whichever solver follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.solvers.base import Layer, Memory
from quant.transforms.base import (
    NEVER,
    Group,
    Scaling,
    Statistics,
    Transform,
    keep_of,
    kept_words,
    require_keep,
)

if TYPE_CHECKING:
    from torch import Tensor


LEAST = 1e-4  # smallest power of a mean magnitude, and addend of AutoAWQ's denominator
TINY = 1e-6  # addend of the largest weight of a group, for groups of zeros (AutoAWQ)


@dataclass(frozen=True)
class Options:
    """How alpha is searched, and where inputs are divided.

    steps        alpha = 0, 1/steps, ... 1 - 1/steps are tried.
    duo_scaling  s_j = E|x_j|^alpha / (mean over rows of |W_ij| / max of its group)^(1 - alpha), as
                 AutoAWQ does; s = 1 is tried as well.
    keep         "never": inputs that no layer in front can absorb are left unchanged;
                 "where_needed": for those, an operator in front of each layer divides at run time;
                 "always": an operator divides everywhere.

    Raises ValueError, with a sentence that says what to change, for invalid values.
    """

    steps: int = 20
    duo_scaling: bool = False
    keep: str = NEVER

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(
                f"steps={self.steps} leaves only alpha=0, which scales nothing; use 20 (the "
                "paper's), or 2 or more."
            )
        require_keep(self.keep)


DEFAULT_OPTIONS = Options()


def change(group: Group, options: Options = DEFAULT_OPTIONS) -> Scaling | None:
    """Return the scales with the least rounding error of the group; None if no scaling has less.

    Computed in the dtype of the Hessian.
    """
    import torch

    assert group.statistics is not None  # the spec says that they are read
    # The upper triangle of sum E^T E meets H; pairs off the diagonal count twice.
    doubled = 2 * group.hessian.triu(1)
    doubled.diagonal().copy_(group.hessian.diagonal())
    best, least = None, _error(group, torch.ones_like(doubled[0]), doubled)
    for scale in scales(group, group.statistics, options):
        error = _error(group, scale.to(doubled), doubled)
        if error < least:
            best, least = scale, error
    return None if best is None else Scaling(best)


def scales(group: Group, statistics: Statistics, options: Options) -> Iterator[Tensor]:
    """Yield the scales float64 [in] of the grid except s = 1, normalized as the authors do."""
    inputs = _shared_mean(statistics.magnitude, group.tied)
    sizes = None
    if options.duo_scaling:
        sizes = _shared_mean(_relative_sizes(group), group.tied).to(inputs)
    for step in range(options.steps):
        alpha = step / options.steps
        scale = inputs**alpha
        if sizes is not None:
            scale = scale / (sizes ** (1 - alpha) + LEAST)
        elif not step:
            continue
        scale = scale.clamp(min=LEAST)
        scale = scale / (scale.max() * scale.min()).sqrt()
        yield scale.float().double()  # the same on every machine, and as it is stored if kept


def _error(group: Group, scale: Tensor, doubled: Tensor) -> float:
    """Return tr(E^T E H) of rounding, `doubled` being the upper triangle of H as above."""
    import torch

    from quant.products import add_gram
    from quant.solvers import rtn_calibrated

    hessian = Scaling(scale).hessian(group.hessian)  # for grids that are searched with it
    total = torch.zeros_like(doubled)
    for name, each in zip(group.layers, group.weights, strict=True):
        weight = each.to(doubled)
        scheme = group.scheme.of(name)
        found = rtn_calibrated.solve(weight * scale, scheme, hessian, layer=Layer(name))
        add_gram(total, found.weight.dequantize(weight.dtype).div_(scale).sub_(weight))
    return float(total.mul_(doubled).sum(dtype=torch.float64))


def _relative_sizes(group: Group) -> Tensor:
    """Return the mean over rows of |W_ij| / (largest of its row and group), float64 [in]."""
    import torch

    rows = []
    for name, each in zip(group.layers, group.weights, strict=True):
        weight = each.double().abs()
        groups = weight.split(group.scheme.of(name).group_size or weight.shape[1], dim=1)
        rows.append(torch.cat([part / (part.amax(1, keepdim=True) + TINY) for part in groups], 1))
    return torch.cat(rows).mean(dim=0)


def _shared_mean(values: Tensor, tied: Tensor | None) -> Tensor:
    """Return values [in], with those of tied inputs replaced by their mean."""
    if tied is None:
        return values
    tied = tied.to(values.device)
    sums = values.new_zeros(int(tied.max()) + 1).index_add_(0, tied, values)
    return (sums / tied.bincount())[tied]


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    words = [] if options.steps == DEFAULT_OPTIONS.steps else [f"{options.steps} steps"]
    words += ["duo scaling"] if options.duo_scaling else []
    return words + kept_words(options.keep)


TRANSFORM = Transform(
    name="awq",
    label="AWQ",
    change=change,
    options=Options,
    describe=describe,
    rebuild=Scaling.rebuild,
    keep=keep_of,
    kept_bytes=Scaling.kept_bytes,
    reads_statistics=True,
    folds_through=True,
    memory=Memory(weights=7, prepared=7),  # measured: 6.3 and 5.2
)
