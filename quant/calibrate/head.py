"""Quantize the head and the token embeddings, which are rounded to nearest (quant.head)."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from quant.budget import AnyScheme
from quant.calibrate.layers import LayerResult, require_solution
from quant.calibrate.source import BlockSource
from quant.calibrate.survey import reads_weight
from quant.embedding import embed_scale
from quant.errors import ModelStructureError, NonFiniteError, failures_of
from quant.head import AT_ONCE, SOLVER, alone, find_embeddings, find_head, tied
from quant.scheme import Scheme
from quant.solvers.base import Layer
from quant.weight import QuantizedWeight


def check_outside(
    source: BlockSource, scheme: AnyScheme, apart: bool
) -> list[tuple[str, nn.Module]]:
    """Return the name and the module of what a scheme quantizes outside the blocks of a model.

    apart  whether a tied head gets a weight of its own before (quant.calibrate.residual).

    Raises ModelStructureError for a model without such a head or embeddings, for one that does more
    with them than their product and rows of their table, and for embeddings of a tied head alone.
    """
    found: list[tuple[str, nn.Module]] = []
    model = source.model
    if scheme.head is not None:
        found.append(_packable_head(source))
    if scheme.embeddings is not None:
        name, table = find_embeddings(model)
        if scheme.head is None and tied(model) and not apart:
            try:
                _packable_head(source)
            except ModelStructureError as error:
                raise ModelStructureError(
                    f"{type(model).__name__} ties its head to its embeddings, and this head cannot "
                    f"be packed with them ({str(error).rpartition(': ')[0]}): leave "
                    "scheme.embeddings out."
                ) from error
            raise ModelStructureError(f"{type(model).__name__} {alone(scheme)}")
        _require_rows(name, table)
        if reads_weight(source, table):
            raise ModelStructureError(
                f"{name} cannot be quantized, because {type(model).__name__} reads its table other "
                "than by looking rows up: leave scheme.embeddings out."
            )
        found.append((name, table))
    return found


def _packable_head(source: BlockSource) -> tuple[str, nn.Linear]:
    name, head = find_head(source.model)
    if reads_weight(source, head):
        raise ModelStructureError(
            f"{name} cannot be quantized, because {type(source.model).__name__} reads its weight "
            "other than by running it: leave scheme.head out."
        )
    return name, head


def _require_rows(name: str, table: nn.Embedding) -> None:
    weight, scale = table.weight, embed_scale(table)
    ids = torch.tensor([0, 1, table.num_embeddings - 1], device=weight.device)
    with torch.no_grad():
        rows = functional.embedding(ids, weight)
        expected = rows if scale is None else rows * scale.to(rows.device, rows.dtype)
        alike = torch.equal(table(ids), expected)
    if not alike:
        raise ModelStructureError(
            f"{name}, a {type(table).__name__}, gives something else than rows of its table: leave "
            "scheme.embeddings out."
        )


def quantize_outside(
    name: str, matrix: Tensor, scheme: Scheme, block: int, *, keep: bool
) -> tuple[LayerResult, QuantizedWeight]:
    """Quantize the head or the embeddings, a matrix [out, in], some rows at a time.

    block is the number that the result has (LayerResult). Computes in float32, in which rounding
    has the same bits everywhere. The weight is returned on the CPU; with keep its values are
    written into the matrix too, in place.
    """
    begin = time.perf_counter()
    outputs, inputs = matrix.shape
    layer, options = Layer(name), SOLVER.options()
    parts: list[QuantizedWeight] = []
    error = norm = 0.0
    for rows in matrix.split(max(1, AT_ONCE // inputs)):
        weight = rows.float()
        with failures_of(f"{name}: solver {SOLVER.name}"):
            solution = SOLVER.solve(weight, scheme, None, options, layer)
        require_solution(solution, weight, scheme, f"{name}: solver {SOLVER.name}")
        assert isinstance(solution.weight, QuantizedWeight)
        error += (weight - solution.weight.dequantize()).double().square().sum().item()
        norm += weight.double().square().sum().item()
        parts.append(solution.weight.to("cpu"))
        if keep:
            values = solution.weight.dequantize(rows.dtype)
            if not bool(torch.isfinite(values).all()):
                raise NonFiniteError(
                    f"{name}: quantized weights are not finite in {rows.dtype}: use "
                    "model.dtype=bfloat16 or float32."
                )
            rows.copy_(values)
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
