"""Quantize the language-model head, which is rounded to nearest (quant.head)."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.blocks import set_weight_matrix, weight_matrix
from quant.calibrate.layers import LayerResult, require_solution
from quant.errors import failures_of
from quant.head import AT_ONCE, SOLVER, find_head
from quant.scheme import Scheme
from quant.solvers.base import Layer
from quant.weight import QuantizedWeight


def quantize_head(
    model: PreTrainedModel, scheme: Scheme, block: int
) -> tuple[LayerResult, QuantizedWeight]:
    """Quantize the head of a model to the scheme of one layer, some rows at a time.

    block is the number that its result has (LayerResult). Computes in float32, in which rounding
    has the same bits everywhere. The model is not changed; the weight is returned on the CPU.
    """
    name, module = find_head(model)
    begin = time.perf_counter()
    whole = weight_matrix(module)
    outputs, inputs = whole.shape
    layer, options = Layer(name), SOLVER.options()
    parts: list[QuantizedWeight] = []
    error = norm = 0.0
    for rows in whole.split(max(1, AT_ONCE // inputs)):
        weight = rows.float()
        with failures_of(f"{name}: solver {SOLVER.name}"):
            solution = SOLVER.solve(weight, scheme, None, options, layer)
        require_solution(solution, weight, scheme, f"{name}: solver {SOLVER.name}")
        assert isinstance(solution.weight, QuantizedWeight)
        error += (weight - solution.weight.dequantize()).double().square().sum().item()
        norm += weight.double().square().sum().item()
        parts.append(solution.weight.to("cpu"))
    grid = {each: torch.cat([part.grid[each] for part in parts]) for each in parts[0].grid}
    quantized = QuantizedWeight(torch.cat([part.codes for part in parts]), scheme, None, grid)
    result = LayerResult(
        name=name,
        block=block,
        method=SOLVER.name,
        scheme=scheme.name,
        outputs=outputs,
        inputs=inputs,
        bits_per_weight=scheme.bits_per_weight(inputs),
        loss=None,
        weight_error=math.sqrt(error / norm) if norm else 0.0,
        damping=None,
        dead_columns=0,
        tokens=0,
        seconds=time.perf_counter() - begin,
        code_bits=scheme.bits,
        entropy=quantized.entropy(),
    )
    return result, quantized


def set_head(model: PreTrainedModel, weight: QuantizedWeight) -> None:
    """Give the head of a model the values of a quantized weight; the embedding keeps its own."""
    name, module = find_head(model)
    own_head(model)
    set_weight_matrix(module, weight.dequantize(), name)


def own_head(model: PreTrainedModel) -> None:
    """Give a head that shares its weight (with the embeddings) one of its own, of equal values."""
    head: nn.Module = model.get_output_embeddings()
    weight: Tensor = head.weight  # type: ignore[assignment]
    name = next(name for name, module in model.named_modules() if module is head)
    if sum(each is weight for _, each in model.named_parameters(remove_duplicate=False)) > 1:
        head.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    getattr(model, "all_tied_weights_keys", {}).pop(f"{name}.weight", None)
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False
