"""Random codes, for models that have no weights: nothing is solved, packed layers are timed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.solvers.base import Layer, Solution, Solver

if TYPE_CHECKING:
    from torch import Tensor

    from quant.scheme import Scheme


@dataclass(frozen=True)
class Options:
    """seed  the same seed, layer name and shape give the same codes on the same kind of device."""

    seed: int = 0


DEFAULT_OPTIONS, ANY_LAYER = Options(), Layer()


def solve(
    weight: Tensor,
    scheme: Scheme,
    prepared: None = None,  # noqa: ARG001
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Codes, scales and zero-points for a layer of the shape of weight [out, in]; no value is read.

    The same numbers as quant.measure.dummy draws: mean 0 and variance 1 / inputs.
    """
    import torch

    from quant.linear import unpack
    from quant.measure.dummy import random_packed

    outputs, inputs = weight.shape
    scheme.groups(inputs, layer.name)
    digest = hashlib.sha256(f"{options.seed} {layer.name}".encode()).digest()
    generator = torch.Generator(weight.device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return Solution(unpack(random_packed(scheme, inputs, outputs, generator), scheme, inputs))


SOLVER = Solver(name="random", label="random", solve=solve, options=Options, reads_weights=False)
