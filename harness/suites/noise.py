"""The rounding noise of bfloat16, put into a model: what any two programs in it may differ by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.suites.logits import Logits
from quant.blocks import find_blocks
from quant.spread.draws import Draws

# A number is moved by one unit in its last place, up or down, with a probability of 1/24 each: mean
# 0 and a variance of 1/12 squared units, those of a rounding error. Smaller steps would be lost in
# a model whose numbers are bfloat16 already.
ONE_OF = 24
BITS = 8  # significant bits of bfloat16


class NoisyLogits:
    """Logits [batch, positions, vocabulary] of ids [batch, positions] under noise, read by parts.

    The model itself is without noise between the readings.
    """

    def __init__(self, model: Any, ids: Tensor, seed: int) -> None:
        self._model, self._seed = model, seed
        with bfloat16_noise(model, seed):
            self._logits = Logits(model, ids)

    @property
    def shape(self) -> torch.Size:
        return self._logits.shape

    def __getitem__(self, where: tuple[slice, slice]) -> Tensor:
        with bfloat16_noise(self._model, self._seed + where[1].start + 1):  # of the head alone
            return self._logits[where]


@contextmanager
def bfloat16_noise(model: Any, seed: int) -> Iterator[None]:
    """Inside, what every layer and every block gives has the rounding noise of bfloat16.

    Layers are modules without modules inside, but not those that only look up or hand on numbers
    (embedding tables, dropout). The same seed gives the same noise on one kind of device, however
    many the model lies on.
    """
    draws = Draws(seed)

    def noisy(values: Tensor) -> Tensor:
        return with_noise(values, draws.at(values.device))

    def after_layer(_module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        return noisy(output) if _computed(output, given) else output

    def after_block(_module: nn.Module, _given: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # the hidden states come first
            return (noisy(output[0]), *output[1:])
        return noisy(output)

    layers = [each for each in model.modules() if not any(True for _ in each.children())]
    layers = [each for each in layers if not isinstance(each, nn.Embedding)]
    handles = [
        *(each.register_forward_hook(after_layer) for each in layers),
        *(each.register_forward_hook(after_block) for each in find_blocks(model).modules),
    ]
    try:
        yield
    finally:
        for each in handles:
            each.remove()


def with_noise(values: Tensor, generator: torch.Generator) -> Tensor:
    """Values of a float dtype, each moved by a unit of bfloat16 or not, in their dtype."""
    drawn = torch.randint(
        ONE_OF, values.shape, generator=generator, device=values.device, dtype=torch.uint8
    )
    steps = (drawn == 0).float() - (drawn == 1).float()
    wide = values.float()
    # Zero is exact in any format.
    exponent = torch.where(wide == 0, -(10**4), torch.frexp(wide).exponent - BITS)
    return (wide + torch.ldexp(steps, exponent)).to(values.dtype)


def _computed(output: Any, given: tuple[Any, ...]) -> bool:
    """Whether it is a tensor of floats that is not one of those given."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return False
    inputs = [each for each in given if isinstance(each, Tensor)]
    return all(each.data_ptr() != output.data_ptr() for each in inputs)
