"""RepQuant: the scale and shift of every input, folded into the norm that makes it.

Li et al., arXiv 2402.05628 (scale reparameterization of RepQ-ViT, 2212.08254): inputs that a norm
makes are quantized best with a grid for every channel, j from low_j to high_j, and computed best
with one grid for all. A change of coordinates makes the ranges of all channels one,

    x' = x / r - t,   r_j = range_j / mean range,   t_j = low_j / r_j - low',
    low' = mean_j(low_j / range_j) mean range,

which the norm takes into its weight and bias (w / r, b / r - t), and the layers behind it into
theirs (W diag(r), b + W diag(r) t).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.errors import QuantizationError
from quant.solvers.base import Memory
from quant.transforms.base import Group, Scaling, Transform

if TYPE_CHECKING:
    from torch import Tensor

    from quant.memory.shapes import ModelFacts


@dataclass(frozen=True)
class Options:
    """What is made one for all inputs.

    shift  whether inputs are shifted, for norms and layers with a bias; without it the largest
           magnitudes become equal.
    clip   ranges end at so many standard deviations from the mean, on each side by itself; None: at
           the smallest and largest input.

    Raises ValueError, with a sentence that says what to change, for invalid values.
    """

    shift: bool = True
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise ValueError(
                f"clip={self.clip} is not a number of standard deviations above 0; use 6, or null "
                "for ranges from the smallest to the largest input."
            )


DEFAULT_OPTIONS = Options()
_NO_BIAS = (
    "shifts inputs, and {} has no bias that could undo a shift; use shift=false "
    "(transform.repquant.shift=false), which scales alone"
)


@dataclass(frozen=True)
class Shifted:
    """x' = x / scale - shift, float64 [in] each.

    mean   mean of x over all tokens.
    count  see Group.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor
    count: float

    def inputs(self, x: Tensor) -> Tensor:
        return x / self.scale.to(x.device) - self.shift.to(x.device)

    def weight(self, weight: Tensor) -> Tensor:
        return weight * self.scale.to(weight)

    def bias(self, weight: Tensor) -> Tensor:
        """Return W diag(scale) shift [out], which undoes the shift."""
        scaled = weight.double() * self.scale.to(weight.device)
        return (scaled @ self.shift.to(weight.device)).to(weight.dtype)

    def hessian(self, matrix: Tensor) -> Tensor:
        """Return the Hessian of x': count * mean of (y - t)(y - t)^T, with y = x / scale."""
        import torch

        scale, shift = self.scale.to(matrix.device), self.shift.to(matrix.device)
        mixed = torch.outer(self.mean.to(matrix.device) / scale, shift)
        moved = matrix.double() / torch.outer(scale, scale)
        moved += self.count * (torch.outer(shift, shift) - (mixed + mixed.T))  # stays symmetric
        return moved.to(matrix.dtype)


def change(group: Group, options: Options = DEFAULT_OPTIONS) -> Scaling | Shifted | None:
    """Return the scales (and shifts) of a group; inputs without a range keep their scale.

    None if nothing would change. Raises QuantizationError for a shift of layers without a bias.
    """
    import torch

    if options.shift and not group.biased:
        raise QuantizationError(f"transform repquant {_NO_BIAS.format(group.name)}.")
    low, high = _ranges(group, options)
    size = high - low if options.shift else torch.maximum(low.abs(), high.abs())
    live = size > 0
    if not bool(live.any()):
        return None
    usual = size[live].mean()
    scale = torch.where(live, size / usual, 1.0).float().double()
    if not options.shift:
        return None if bool((scale == 1).all()) else Scaling(scale)
    lowest = (low[live] / size[live]).mean() * usual
    shift = (low / scale - lowest).float().double()
    assert group.statistics is not None
    return Shifted(scale, shift, group.statistics.mean, group.count)


def _ranges(group: Group, options: Options) -> tuple[Tensor, Tensor]:
    """Return low and high float64 [in] of every input."""
    import torch

    assert group.statistics is not None  # the spec says that they are read
    found = group.statistics
    if options.clip is None:
        return found.low, found.high
    squares = group.hessian.diagonal().double() / group.count
    reach = options.clip * (squares - found.mean.square()).clamp(min=0).sqrt()
    low, high = torch.maximum(found.low, found.mean - reach), found.mean + reach
    return low, torch.minimum(found.high, high)


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    words = [] if options.shift else ["scale only"]
    return words if options.clip is None else [*words, f"clipped at {options.clip:g} sd"]


def shifts(options: Options) -> bool:
    return options.shift


def says_statistics(options: Options) -> bool:
    return not options.shift  # the mean of |x - t| does not follow from that of |x|


def unfit(options: Options, facts: ModelFacts, _scheme: object) -> str | None:
    """Say which layer has no bias for a shift of an input that a module in front makes."""
    for each in facts.inputs if options.shift else ():
        if each.unmade is None and not each.biased:
            return _NO_BIAS.format(each.layer)
    return None


TRANSFORM = Transform(
    name="repquant",
    label="RepQuant",
    change=change,
    options=Options,
    describe=describe,
    shifts=shifts,
    says_statistics=says_statistics,
    unfit=unfit,
    reads_statistics=True,
    memory=Memory(weights=4, prepared=12),  # float64
)
