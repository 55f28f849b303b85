"""What reads and writes the residual stream of a model, and how weights take a rotation in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.blocks import set_weight_matrix, weight_matrix
from quant.calibrate.neighbours import Names
from quant.errors import ModelStructureError
from quant.transforms.base import Change

_ROWS = 8192  # of an embedding table that are rotated at a time
# A bias is divided by the weight of its norm (_absorb) unless one is so much smaller than others.
_SMALLEST_GAIN = 1e-3


@dataclass(frozen=True)
class Norm:
    """A norm of the residual stream.

    name     full name in the model.
    readers  full names of the layers that read its output.
    neutral  the value of its weight with which it multiplies by 1: 1, or 0 (Gemma's 1 + weight).
    """

    name: str
    readers: Names
    neutral: float


@dataclass(frozen=True)
class Roles:
    """What a block, or the part of a model outside the blocks, does to the residual stream."""

    norms: tuple[Norm, ...]
    writers: Names

    @property
    def layers(self) -> set[str]:
        """Full names of the layers that read or write the stream."""
        return {*self.writers, *(reader for norm in self.norms for reader in norm.readers)}


def rotate_weights(model: PreTrainedModel, roles: Roles, change: Change) -> None:
    """Rotate what the roles name, in place."""
    for name in roles.writers:
        module = model.get_submodule(name)
        if isinstance(module, nn.Embedding):
            for rows in module.weight.detach().split(_ROWS):
                rows.copy_(change.inputs(wide(rows)))
            continue
        set_weight_matrix(module, change.inputs(wide(weight_matrix(module)).T).T, name)
        bias = bias_of(module)
        if bias is not None:
            bias.copy_(change.inputs(wide(bias)))
    for norm in roles.norms:
        _absorb(model, norm, change)


def _absorb(model: PreTrainedModel, norm: Norm, change: Change) -> None:
    """Move the weight and bias of a norm into the layers that read it, and rotate these."""
    module: Any = model.get_submodule(norm.name)
    readers = {name: model.get_submodule(name) for name in norm.readers}
    weight, bias = module.weight.detach(), bias_of(module)
    gain = gain_of(module, norm.neutral)
    if bias is not None and bool(bias.any()):
        shift = wide(bias)
        biases = [bias_of(reader) for reader in readers.values()]
        if any(each is None for each in biases):
            # A layer without a bias takes none in: the norm adds it, in the new coordinates.
            if gain.abs().min() < _SMALLEST_GAIN * gain.abs().max():
                raise ModelStructureError(
                    f"{norm.name} has a bias, {' and '.join(readers)} have none to take it in, and "
                    "the smallest of the norm's weights is too small to divide it by: leave the "
                    "rotation of the residual stream out."
                )
            bias.copy_(change.inputs(shift / gain))
        else:
            for reader, taken in zip(readers.values(), biases, strict=True):
                assert taken is not None
                taken.copy_(wide(taken) + wide(weight_matrix(reader)) @ shift)
            bias.zero_()
    weight.fill_(norm.neutral)
    for name, reader in readers.items():
        matrix = change.weight(wide(weight_matrix(reader)) * gain)
        set_weight_matrix(reader, matrix, name)


@contextmanager
def restored(model: PreTrainedModel, roles: Roles, always: bool = False) -> Iterator[None]:
    """Restore the parameters that the roles name after an error inside, or always."""
    names = [*roles.writers, *(each for n in roles.norms for each in (n.name, *n.readers))]
    modules = [model.get_submodule(name) for name in names]
    held = [each.detach() for module in modules for each in module.parameters(recurse=False)]
    with kept(held, always):
        yield


@contextmanager
def kept(held: Sequence[Tensor], always: bool = True) -> Iterator[None]:
    """Restore the values of tensors after an error inside, or always."""
    before = [each.clone() for each in held]
    done = False
    try:
        yield
        done = True
    finally:
        if always or not done:
            for each, values in zip(held, before, strict=True):
                each.copy_(values)


def gain_of(norm: nn.Module, neutral: float) -> Tensor:
    """Return what a norm multiplies by, as float64 [width]: its weight, or 1 + weight."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    return wide(weight.detach()) + (1 - neutral)


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the bias of a module; None if it has none."""
    bias: Tensor | None = getattr(module, "bias", None)
    return None if bias is None else bias.detach()


def wide(values: Tensor) -> Tensor:
    """Return values in float64, so that what is stored after rounding is the same everywhere."""
    return values.double()
