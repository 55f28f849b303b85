"""What a model does with its linear layers, found out before anything is quantized.

Some weights are read although their layer never runs (Mamba's dt_proj), and some layers give more
than their product (a router that chooses experts): a packed layer cannot take their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quant.blocks import keep_precision, linear_layers, require_quantizable, weight_matrix
from quant.calibrate.layout import evaluation, run_model
from quant.calibrate.source import BlockSource, blocks_in_place
from quant.coverage import Coverage, coverage, pattern, require_coverage
from quant.rules import STRICT, Rules

NEVER_CALLED = "never called: the model reads its weight"
NO_PRODUCT = "gives more than its product"
_TOKENS = 4


def survey(source: BlockSource, rules: Rules = STRICT) -> Coverage:
    """Find the layers that stay in full precision, mark them, and give the coverage.

    One short forward pass, of blocks that hold zeros where they would be read. A layer is taken to
    be never called when none of that name is in any block: an expert that no token was routed to
    has siblings that ran.

    Raises ModelLayoutError for weights that are quantized already, and for less coverage than
    `rules` allow.
    """
    require_quantizable(source.blocks)
    require_coverage(coverage(source.blocks), type(source.model).__name__, rules)
    called, broken = _observed(source)
    for block in source.blocks.modules:
        for name, module in linear_layers(block).items():
            if pattern(name) in broken:
                keep_precision(module, NO_PRODUCT)
            elif pattern(name) not in called:
                keep_precision(module, NEVER_CALLED)
    found = coverage(source.blocks)
    require_coverage(found, type(source.model).__name__, rules)
    return found


def _observed(source: BlockSource) -> tuple[set[str], set[str]]:
    """Names in a block, numbers as *, of layers that ran, and of those that gave no product."""
    called: set[str] = set()
    broken: set[str] = set()

    def noted(name: str, outputs: int) -> Callable[..., None]:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            called.add(name)
            if not isinstance(output, Tensor) or output.shape[-1] != outputs:
                broken.add(name)

        return note

    handles = [
        module.register_forward_hook(noted(pattern(name), weight_matrix(module).shape[0]))
        for block in source.blocks.modules
        for name, module in linear_layers(block).items()
    ]
    try:
        with blocks_in_place(source, blank=True), evaluation(source.model):
            run_model(source.model, torch.zeros(1, _TOKENS, dtype=torch.int64))
    finally:
        for handle in handles:
            handle.remove()
    return called, broken
