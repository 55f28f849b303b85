"""Random codes, for timing the packed layers of models that have no weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from quant.solvers.base import Layer, NoOptions, Solution, Solver

if TYPE_CHECKING:
    from torch import Tensor

    from quant.scheme import Scheme

DEFAULT_OPTIONS, ANY_LAYER = NoOptions(), Layer()


def solve(
    weight: Tensor,
    scheme: Scheme,
    prepared: None = None,  # noqa: ARG001
    options: NoOptions = DEFAULT_OPTIONS,  # noqa: ARG001
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Draw codes, scales and zero-points for a layer of weight's shape [out, in]; no value is read.

    They are the numbers that quant.measure.dummy draws: mean 0 and variance 1 / inputs. They depend
    on the layer's name and shape, and on the kind of device.
    """
    import torch

    from quant.linear import unpack
    from quant.measure.dummy import random_packed

    outputs, inputs = weight.shape
    digest = hashlib.sha256(layer.name.encode()).digest()
    generator = torch.Generator(weight.device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return Solution(unpack(random_packed(scheme, inputs, outputs, generator), scheme, inputs))


SOLVER = Solver(name="random", label="random", solve=solve, reads_weights=False)
