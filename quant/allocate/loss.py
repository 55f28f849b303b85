"""What candidates cost a layer alone: the error of its outputs, tr(E H E^T), with E = W - Q.

H = 2/n sum x x^T are the Hessians of one pass of the full-precision model, and Q is made by the
solver of the quantization that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quant.allocation import RELATIVE, Allocation
from quant.blocks import linear_layers, weight_matrix
from quant.calibrate.few import few_tokens
from quant.calibrate.layers import BlockSolver, LayerResult, Solved, require_solution
from quant.calibrate.run import Progress
from quant.calibrate.sink import NoSink
from quant.calibrate.source import BlockSource
from quant.calibrate.stream import Workplace, quantize_blocks
from quant.calibrate.transform import UNCHANGED, Changed
from quant.config import QuantizationConfig
from quant.errors import failures_of
from quant.hessian import Hessian
from quant.solvers import gptq, rtn
from quant.solvers.base import Layer, Solver

Sensitivities = dict[str, dict[str, float]]
"""Costs by full name of a layer and name of a candidate."""


def measure_losses(
    source: BlockSource,
    calibration: Sequence[Tensor],
    config: QuantizationConfig,
    progress: Progress | None = None,
    workplace: Workplace | None = None,
) -> Sensitivities:
    """Return what each of the candidates of config.scheme costs each layer.

    Transforms change the model of `source`, whose layers otherwise stay as they are. Raises the
    errors of quant.calibrate.stream.quantize_blocks.
    """
    found: Sensitivities = {}
    # GPTQ's options say only that all Hessians of a block are collected in one pass.
    collecting = replace(
        config, solver=gptq.SOLVER, options=gptq.Options(), scheme=config.scheme.every[0]
    )
    sensor = partial(LossSensor, asked=config, found=found)
    quantize_blocks(source, calibration, collecting, NoSink(), progress, workplace, solvers=sensor)
    return found


@dataclass(frozen=True)
class LossSensor(BlockSolver):
    """Measures the layers of one block where BlockSolver would solve them.

    asked  the quantization whose candidates are measured.
    """

    asked: QuantizationConfig = field(kw_only=True)
    found: Sensitivities = field(kw_only=True)

    def group(
        self,
        names: tuple[str, ...],
        hessian: Hessian | None,
        device: torch.device | None = None,
        changed: Changed = UNCHANGED,
    ) -> Solved:
        """Measure layers that share one Hessian; their modules stay as they are."""
        assert hessian is not None
        matrix, solver, options, prepared = self._prepared(names, hessian, changed)
        linears = linear_layers(self.block)
        solved: Solved = []
        for name in names:
            layer = Layer(f"{self.name}.{name}", hessian.tokens, self.config.kernel)
            weight = weight_matrix(linears[name]).to(device, self.dtype)
            costs = self.found[layer.name] = {}
            whole = self._whole(weight, matrix)
            for scheme in self.asked.scheme.every:
                with failures_of(f"{layer.name}: solver {solver.name}"):
                    solution = solver.solve(weight, scheme, prepared, options, layer)
                require_solution(solution, weight, scheme, f"{layer.name}: solver {solver.name}")
                error = weight - solution.weight.dequantize(weight.dtype)
                costs[scheme.name] = output_error(error, matrix) / whole
            self.solved(layer.name)
            outputs, inputs = weight.shape
            result = LayerResult(
                name=layer.name, block=self.index, method=solver.name, scheme=scheme.name,
                outputs=outputs, inputs=inputs, bits_per_weight=scheme.bits_per_weight(inputs),
                loss=solution.loss, weight_error=0.0, damping=solution.damping,
                dead_columns=solution.dead_columns, tokens=hessian.tokens, seconds=0.0,
                transforms=changed.notes,
            )  # fmt: skip
            solved.append((result, solution.weight))
        return solved

    def _whole(self, weight: Tensor, matrix: Tensor | None) -> float:
        """Return what errors are a share of: 1 for the errors themselves."""
        allocation = self.asked.scheme
        assert isinstance(allocation, Allocation)
        if allocation.sensitivity != RELATIVE:
            return 1.0
        return output_error(weight, matrix) or 1.0  # without any output there is no error either

    def _prepared(
        self, names: tuple[str, ...], hessian: Hessian, changed: Changed
    ) -> tuple[Tensor | None, Solver, Any, Any]:
        """Return H (None: no token came), the solver with its options, and what it takes for H."""
        solver, options = self.asked.solver, self.asked.options
        few = None
        if solver.needs_calibration:
            few = few_tokens(hessian, names in self.routed, self.config.rules)
        matrix = changed.hessian(hessian.take()) if hessian.tokens else None
        if few is not None and few.rounded:
            solver, options = rtn.SOLVER, rtn.SOLVER.options()
        if not solver.needs_calibration or matrix is None:
            return matrix, solver, options, None
        own = matrix.clone() if few is None else few.shrunk(matrix.clone())
        if solver.prepare is None:
            return matrix, solver, options, own
        layer = Layer(hessian.layer, hessian.tokens, self.config.kernel)
        beside = [None] if solver.needs_reference else []  # nothing before it is quantized
        with failures_of(f"{layer.name}: solver {solver.name}"):
            return matrix, solver, options, solver.prepare(own, options, layer, *beside)


def output_error(error: Tensor, hessian: Tensor | None) -> float:
    """Return tr(E H E^T) of E [out, in]; 0 without a Hessian, as no input came."""
    if hessian is None:
        return 0.0
    return float(((error @ hessian.to(error)) * error).sum(dtype=torch.float64))
