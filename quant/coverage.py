"""Coverage: the share of a model's block weights that is in quantized layers.

Only matrices count: parameters of the decoder blocks with at least two dimensions larger than 1.
Norms, biases and vectors such as [1, 1, hidden] do not.

Importing this module does not import torch, because plans check the coverage of models.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quant.errors import ModelStructureError
from quant.rules import LEAST_COVERAGE, STRICT, Rules

if TYPE_CHECKING:
    from torch import Tensor

    from quant.blocks import Blocks

_SHOWN = 4  # parameters that an error names


@dataclass(frozen=True)
class Coverage:
    """The weights in the matrices of a model's blocks.

    quantized  number of weights in layers that are, or will be, quantized.
    kept       number of other weights by parameter, with * for the numbers in its name.
    kept_bits  stored bits of the other weights, in their own dtype.
    reasons    why a linear layer stays in full precision, by parameter.
    removed    number of weights that pruning removed; they count in bits per weight alone.
    """

    quantized: int
    kept: Mapping[str, int] = field(default_factory=dict)
    kept_bits: int = 0
    reasons: Mapping[str, str] = field(default_factory=dict)
    removed: int = 0

    @property
    def total(self) -> int:
        return self.quantized + sum(self.kept.values())

    @property
    def share(self) -> float:
        """Share of the weights that are in quantized layers."""
        return self.quantized / self.total if self.total else 0.0

    def outside(self) -> list[str]:
        """Return one line for every parameter that stays in full precision, the largest first."""
        order = sorted(self.kept, key=lambda name: (-self.kept[name], name))
        whole = max(self.total, 1)
        return [
            f"{name} ({100 * self.kept[name] / whole:.2g} %"
            + (f", {self.reasons[name]})" if name in self.reasons else ")")
            for name in order
        ]

    def bits_per_weight(
        self, stored_bits: float, outside: int = 0, outside_bits: float = 0.0
    ) -> float:
        """Stored bits per weight of the blocks' matrices, given those of the quantized layers.

        Weights that were removed count with no bits: a pruned model has those of the whole one.
        outside, outside_bits  weights of what is quantized outside the blocks (head, embeddings),
                               and their stored bits: they count too, but not in the share.
        """
        weights = self.total + self.removed + outside
        return (stored_bits + self.kept_bits + outside_bits) / weights


def coverage(blocks: Blocks) -> Coverage:
    """Return the coverage of a model whose linear layers will all be quantized; reads no values."""
    from quant.blocks import named_layers

    return coverage_of(blocks, named_layers(blocks))


def coverage_of(blocks: Blocks, names: Collection[str] = ()) -> Coverage:
    """Return the coverage of a model by its packed layers and the linear layers called `names`.

    Reads no values. Packed layers outside the blocks do not count.
    """
    from quant.blocks import kept_layers, weight_matrix
    from quant.factored import PackedLinear

    quantized, kept_bits = 0, 0
    kept: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for index, block in enumerate(blocks.modules):
        layers = set()
        for name, module in block.named_modules():
            if isinstance(module, PackedLinear):
                quantized += module.out_features * module.in_features
            elif f"{blocks.block_name(index)}.{name}" in names:
                quantized += weight_matrix(module).numel()
                layers.add(id(module.weight))
        why = {f"{name}.weight": said for name, said in kept_layers(block).items()}
        for name, tensor in block.named_parameters():
            if id(tensor) in layers or not is_matrix(tensor):
                continue
            general = pattern(f"{blocks.block_name(index)}.{name}")
            kept[general] = kept.get(general, 0) + tensor.numel()
            kept_bits += tensor.numel() * tensor.element_size() * 8
            if name in why:
                reasons[general] = why[name]
    return Coverage(quantized, kept, kept_bits, reasons)


def is_matrix(tensor: Tensor) -> bool:
    """Whether a parameter counts: at least two of its dimensions are larger than 1."""
    return sum(size > 1 for size in tensor.shape) >= 2


def require_coverage(found: Coverage, model: str, rules: Rules = STRICT) -> None:
    """Raise ModelStructureError, listing what would stay, below 95 % unless `rules` allow it."""
    if found.share >= LEAST_COVERAGE or rules.partial:
        return
    lines = found.outside()
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    raise ModelStructureError(
        f"{model}: only {100 * found.share:.1f} % of the weights of its blocks are in linear "
        f"layers that can be quantized; {', '.join(lines[:_SHOWN])}{more} would stay in full "
        "precision: use another model, or allow it with method.partial=true (in Python "
        "Rules(partial=True))."
    )


def pattern(name: str) -> str:
    """Replace every number in a dotted name by *: "model.layers.*.mlp"."""
    return ".".join("*" if re.fullmatch(r"\d+", part) else part for part in name.split("."))
