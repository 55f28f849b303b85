"""Find the layers of a model that cannot be quantized, before anything is quantized.

The weight of some layers is read although the layer never runs (Mamba's dt_proj) or in addition to
its runs (RWKV rescales it), and some layers return more than their product (a router that selects
experts). A packed layer cannot replace these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quant.blocks import (
    Blocks,
    keep_precision,
    linear_layers,
    require_quantizable,
    weight_matrix,
)
from quant.calibrate.source import BlockSource, blocks_in_place
from quant.calibrate.structure import evaluation, run_model
from quant.coverage import Coverage, coverage, pattern, require_coverage
from quant.embedding import rows_and_device
from quant.rules import STRICT, Rules

NEVER_CALLED = "never called"
WEIGHT_READ = "the model reads its weight"
NO_PRODUCT = "gives more than its product"
_TOKENS = 4


def survey(source: BlockSource, rules: Rules = STRICT) -> Coverage:
    """Find and mark the layers that stay in full precision, and return the coverage.

    It takes one short forward pass; blocks that would have to be read have zeros. A layer counts as
    never called only if its namesakes in all blocks are not called either: an expert without tokens
    has siblings that ran.

    Raises ModelStructureError for weights that are already quantized, and if the coverage is less
    than `rules` allow.
    """
    require_quantizable(source.blocks)
    require_coverage(coverage(source.blocks), type(source.model).__name__, rules)
    mark(source.blocks, unfit_layers(source))
    found = coverage(source.blocks)
    require_coverage(found, type(source.model).__name__, rules)
    return found


def mark(blocks: Blocks, reasons: Mapping[str, str]) -> None:
    """Mark layers to stay in full precision, by name in a block (numbers as *)."""
    for block in blocks.modules:
        for name, module in linear_layers(block).items():
            if pattern(name) in reasons:
                keep_precision(module, reasons[pattern(name)])


def unfit_layers(source: BlockSource) -> dict[str, str]:
    """Return the layers that cannot be replaced, by name in a block (numbers as *), and why."""
    layers = [
        (pattern(name), module)
        for block in source.blocks.modules
        for name, module in linear_layers(block).items()
    ]
    outputs = {module: weight_matrix(module).shape[0] for _, module in layers}
    called: set[str] = set()
    found: dict[str, str] = {}
    running: set[nn.Module] = set()

    def watched(name: str, module: nn.Module) -> list[Any]:
        def enter(*_: Any) -> None:
            running.add(module)

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            running.discard(module)
            called.add(name)
            if not isinstance(output, Tensor) or output.shape[-1] != outputs[module]:
                found[name] = NO_PRODUCT

        def read() -> None:
            if module not in running:
                found.setdefault(name, WEIGHT_READ)

        _tell_reads(module, read)
        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    classes = [(module, type(module)) for _, module in layers]
    handles = [handle for name, module in layers for handle in watched(name, module)]
    try:
        with blocks_in_place(source, blank=True), evaluation(source.model):
            run_model(source.model, torch.zeros(1, _TOKENS, dtype=torch.int64))
    finally:
        for handle in handles:
            handle.remove()
        for module, kind in classes:
            module.__class__ = kind
    idle = {name: NEVER_CALLED for name, _ in layers if name not in called}
    return {**found, **idle}


def reads_weight(source: BlockSource, module: nn.Module) -> bool:
    """Whether a short forward pass reads a module's weight other than by running the module."""
    running, found, kind = [False], [False], type(module)

    def enter(*_: Any) -> None:
        running[0] = True

    def leave(*_: Any) -> None:
        running[0] = False

    def read() -> None:
        found[0] = found[0] or not running[0]

    # Before the module is watched: run_model itself asks the embeddings for their device.
    tokens = torch.zeros(1, _TOKENS, dtype=torch.int64, device=rows_and_device(source.model)[1])
    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with blocks_in_place(source, blank=True), evaluation(source.model):
            _tell_reads(module, read)
            source.model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        module.__class__ = kind
    return found[0]


def _tell_reads(module: nn.Module, tell: Callable[[], None]) -> None:
    """Call tell() whenever the weight of a module is read; changes the module's class for that."""
    kind = type(module)

    def look_up(self: nn.Module, name: str) -> Any:
        if name == "weight":
            tell()
        return kind.__getattr__(self, name)

    module.__class__ = type(kind.__name__, (kind,), {"__getattr__": look_up})
