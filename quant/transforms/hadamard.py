"""Hadamard: rotate the inputs of layers by a randomized Hadamard matrix, at run time.

x' = x T with T = diag(s) H / sqrt(n): random signs s, then a Hadamard matrix H [n, n] (the online
rotation of QuaRot, arXiv 2404.00456; incoherence processing in QuIP#, 2402.04396). Every input of
x' is a sum of all inputs of x, so an outlier is spread over all of them and weights become alike.
With block_size the inputs are cut into blocks, each with a rotation of its own.

No norm absorbs a rotation, so it is kept as an operator in front of each layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.errors import QuantizationError
from quant.hadamard import (
    hadamard_product,
    largest_block,
    pack_signs,
    paley_order,
    random_signs,
    unpack_signs,
)
from quant.transforms.base import ALWAYS, Group, Transform

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_BLOCK = 8


@dataclass(frozen=True)
class Options:
    """Which inputs to rotate, and how many together.

    block_size  inputs that are rotated together; None: all inputs of a layer.
    layers      last names of the layers whose inputs are rotated, such as down_proj; layers that
                share an input with one of them are rotated too. Empty: all layers.
    seed        of the random signs, which also depend on the layer's name.

    Raises ValueError, with a sentence that says what to change, for invalid values.
    """

    block_size: int | None = None
    layers: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        size = self.block_size
        if size is not None and (size < SMALLEST_BLOCK or paley_order(size) is None):
            raise ValueError(
                f"block_size={size}: no Hadamard matrix of this order is known here; use a power "
                f"of two from {SMALLEST_BLOCK} on, such as 64, or null for all inputs of a layer."
            )
        object.__setattr__(self, "layers", tuple(self.layers))


DEFAULT_OPTIONS = Options()


@dataclass(frozen=True)
class Rotation:
    """x' = x T, T = diag(s) H / sqrt(b) in every block of b inputs.

    signs  uint8 [blocks, ceil(b / 8)]: the signs of every block as bits.
    """

    signs: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"signs": self.signs}

    def inputs(self, x: Tensor) -> Tensor:
        import torch

        blocks = len(self.signs)
        size = x.shape[-1] // blocks
        dtype = torch.promote_types(x.dtype, torch.float32)
        signs = unpack_signs(self.signs.to(x.device), size).to(dtype)
        values = x.to(dtype).unflatten(-1, (blocks, size))
        return hadamard_product(values, factors=signs / math.sqrt(size)).flatten(-2)

    def weight(self, weight: Tensor) -> Tensor:
        # T is orthogonal, so T^-T = T. In float64: what is stored is the same on all machines.
        return self.inputs(weight.double()).to(weight.dtype)

    def hessian(self, matrix: Tensor) -> Tensor:
        # T^T (H T) is the transpose of (H T)^T T, and symmetric.
        return self.inputs(self.inputs(matrix).T)


def rebuild(tensors: Mapping[str, Tensor]) -> Rotation:
    return Rotation(tensors["signs"])


def change(group: Group, options: Options = DEFAULT_OPTIONS) -> Rotation | None:
    """Return the rotation of a group's input; None for a group that the options leave out.

    Raises QuantizationError for a width that has no Hadamard matrix or is no multiple of the block.
    """
    import torch

    names = {layer.rpartition(".")[2] for layer in group.layers}
    if options.layers and names.isdisjoint(options.layers):
        return None
    width = len(group.hessian)
    problem = _problem(options, width)
    if problem is not None:
        raise QuantizationError(f"{group.name}: transform hadamard {problem}.")
    size = options.block_size or width
    signs = [
        random_signs(size, options.seed, group.layers[0], block) for block in range(width // size)
    ]
    return Rotation(pack_signs(torch.stack(signs)).to(group.hessian.device))


def refuses(options: Options, _hidden: int, widths: Sequence[int]) -> str | None:
    """Say why layers with these numbers of inputs cannot be rotated; None if they can.

    Where the options name layers, whose widths are not known yet, one width that fits is enough.
    """
    problems = [_problem(options, width) for width in widths]
    if options.layers and None in problems:
        return None
    return next(filter(None, problems), None)


def _problem(options: Options, width: int) -> str | None:
    size = options.block_size
    if size is not None and width % size:
        return (
            f"cannot cut {width} inputs into blocks of block_size={size}: use a divisor such as "
            f"{largest_block(width, size)}, null for all inputs, or name the layers that it fits "
            "(layers=[...])"
        )
    if size is None and paley_order(width) is None:
        block = largest_block(width, width)
        return (
            f"has no Hadamard matrix for {width} inputs, which are no Paley order times a power of "
            f"two: use block_size={block}, or name other layers (layers=[...])"
        )
    return None


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    words = [] if options.block_size is None else [f"blocks of {options.block_size}"]
    words += [] if not options.layers else [f"before {', '.join(options.layers)}"]
    return words + ([] if options.seed == 0 else [f"signs of seed {options.seed}"])


def says_statistics(_options: Options) -> bool:
    return False  # smallest and largest sums of inputs do not follow from those of inputs


def partial(options: Options) -> bool:
    return bool(options.layers)


def keep(_options: Options) -> str:
    return ALWAYS


def kept_bytes(inputs: int) -> int:
    return inputs // 4 + 1  # bits, of blocks that are whole bytes


TRANSFORM = Transform(
    name="hadamard",
    label="Hadamard",
    change=change,
    options=Options,
    describe=describe,
    rebuild=rebuild,
    keep=keep,
    partial=partial,
    says_statistics=says_statistics,
    kept_bytes=kept_bytes,
    refuses=refuses,
)
