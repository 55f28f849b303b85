"""Solve the linear layers of a block group by group, and write the quantized values back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from quant.arithmetic import PORTABLE
from quant.blocks import linear_layers, set_weight_matrix, weight_matrix
from quant.budget import AnyScheme, Budget
from quant.calibrate.devices import DeviceWorkers
from quant.calibrate.few import FewTokens, few_tokens
from quant.calibrate.self_check import cut, self_check
from quant.calibrate.transform import UNCHANGED, Changed
from quant.config import QuantizationConfig
from quant.errors import QuantizationError, failures_of
from quant.experts import routed_groups
from quant.hessian import Hessian
from quant.input_operator import operator_bits
from quant.levels.base import GridTensor
from quant.solvers import rtn
from quant.solvers.base import Layer, Solution, Solver
from quant.weight import AnyWeight, FactoredWeight


@dataclass(frozen=True)
class LayerResult:
    """Result of the solver for one linear layer; the fields of harness.records.record.LayerReport.

    block                        number of its block; of the head, the number of blocks.
    loss, damping, dead_columns  see quant.solvers.base.Solution.
    bits_per_weight              stored bits: codes, tensors of the grid, operator in front of the
                                 layer.
    weight_error                 ||W - Q||_F / ||W||_F, 0 for an all-zero weight; W is the weight
                                 after the transforms.
    tokens                       calibration tokens that reached the layer; 0 without calibration.
    seconds                      time of the solver alone; the Hessian and its factor, which layers
                                 share, are in the stages.
    fallback                     deviation from the options that the rules allowed; None if there
                                 was none.
    transforms                   for each transform, what it did or why it did nothing.
    oracle_gap                   how far the solver was from its oracle on a piece of the layer
                                 (quant.calibrate.self_check); None where they were not compared.
    code_bits                    stored bits of a code; None without codes, and in results of
                                 earlier versions.
    entropy                      empirical entropy of the codes, in bits (QuantizedWeight.entropy);
                                 None without codes.
    """

    name: str
    block: int
    method: str
    scheme: str
    outputs: int
    inputs: int
    bits_per_weight: float
    loss: float | None
    weight_error: float
    damping: float | None
    dead_columns: int
    tokens: int
    seconds: float
    fallback: str | None = None
    transforms: list[str] = field(default_factory=list)
    oracle_gap: float | None = None
    code_bits: int | None = None
    entropy: float | None = None


Solved = list[tuple[LayerResult, AnyWeight]]


@dataclass(frozen=True)
class BlockSolver:
    """Quantizes the layers of one block; its methods may be called from any thread.

    config.arithmetic is resolved; solved(layer) is called after every layer. checks: whether the
    solver is first held against its oracle on a piece of every group (quant.calibrate.self_check).
    """

    config: QuantizationConfig
    block: nn.Module
    index: int
    name: str
    solved: Callable[[str], None]
    checks: bool = False

    @cached_property
    def routed(self) -> frozenset[tuple[str, ...]]:
        """The groups that receive only tokens routed to an expert."""
        return frozenset(group for stage in routed_groups(self.block) for group in stage)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the solver; rounding alone is elementwise, with the same bits everywhere."""
        summed = self.config.solver.needs_calibration and self.config.arithmetic == PORTABLE
        return torch.float64 if summed else torch.float32

    def group(
        self,
        names: tuple[str, ...],
        hessian: Hessian | None,
        device: torch.device | None = None,
        changed: Changed = UNCHANGED,
    ) -> Solved:
        """Quantize layers that share one Hessian, on `device` (None: their own device).

        The modules get the quantized values; the quantized weights are returned on the CPU.
        `hessian` is that of the original inputs, before the transforms in `changed`.
        """
        prepared, tokens, few, gap = None, None, None, None
        solver, options = self.config.solver, self.config.options
        if hessian is not None:
            tokens = hessian.tokens
            if solver.needs_calibration:
                few = few_tokens(hessian, names in self.routed, self.config.rules)
                if few is not None and few.rounded:
                    solver, options = rtn.SOLVER, rtn.SOLVER.options()
                else:
                    prepared, gap = self._prepare(hessian, names, changed, few, device)
        linears = linear_layers(self.block)
        if not self.config.solver.needs_calibration:
            gap = self._check(names, None, tokens, device)
        found: Solved = []
        for name in names:
            layer = Layer(f"{self.name}.{name}", tokens, self.config.kernel)
            result, weight = self._layer(
                layer, linears[name], solver, options, prepared, device, changed.notes
            )
            fallbacks = [note for note in (few and few.fallback, result.fallback) if note]
            result = replace(result, fallback="; ".join(fallbacks) or None)
            found.append((replace(result, oracle_gap=None if found else gap), weight))
            self.solved(layer.name)
        return found

    def _prepare(
        self,
        hessian: Hessian,
        names: tuple[str, ...],
        changed: Changed,
        few: FewTokens | None,
        device: torch.device | None,
    ) -> tuple[Any, float | None]:
        """Return what the solver takes in the place of the Hessian, and the gap to its oracle."""
        matrix = changed.hessian(hessian.take())
        if few is not None:
            matrix = few.shrunk(matrix)
        drift = hessian.take_drift()
        if drift is not None:
            drift = changed.drift(drift)
        gap = self._check(names, matrix, hessian.tokens, device, drift)
        if self.config.solver.prepare is None:
            return matrix, gap
        layer = Layer(hessian.layer, hessian.tokens, self.config.kernel)
        beside = [drift] if self.config.solver.needs_reference else []
        with failures_of(f"{layer.name}: solver {self.config.solver.name}"):
            prepared = self.config.solver.prepare(matrix, self.config.options, layer, *beside)
        return prepared, gap

    def _check(
        self,
        names: tuple[str, ...],
        hessian: Tensor | None,
        tokens: int | None,
        device: torch.device | None,
        drift: Tensor | None = None,
    ) -> float | None:
        """Hold the solver against its oracle on a piece of the first of these layers."""
        solver = self.config.solver
        if not self.checks or solver.oracle is None:
            return None
        scheme = self.config.layers.of(f"{self.name}.{names[0]}")
        module = linear_layers(self.block)[names[0]]
        piece = cut(weight_matrix(module), hessian, scheme, drift)
        piece = replace(piece, weight=piece.weight.to(device, self.dtype))
        layer = Layer(f"{self.name}.{names[0]}", tokens, self.config.kernel)
        return self_check(piece, solver, self.config.options, scheme, layer)

    def _layer(
        self,
        layer: Layer,
        module: nn.Module,
        solver: Solver,
        options: Any,
        prepared: Any,
        device: torch.device | None,
        notes: list[str],
    ) -> tuple[LayerResult, AnyWeight]:
        scheme = self.config.layers.of(layer.name)
        begin = time.perf_counter()
        weight = weight_matrix(module).to(device, self.dtype)
        with failures_of(f"{layer.name}: solver {solver.name}"):
            solution = solver.solve(weight, scheme, prepared, options, layer)
        seconds = time.perf_counter() - begin
        require_solution(solution, weight, scheme, f"{layer.name}: solver {solver.name}")
        quantized = solution.weight.dequantize()
        error = _relative_error(weight, quantized)
        set_weight_matrix(module, quantized, layer.name)
        found, own = solution.weight, operator_bits(module) / weight.numel()
        if isinstance(found, FactoredWeight):
            bits, code_bits, entropy = found.bits / weight.numel(), None, None
        else:
            bits, code_bits = found.scheme.bits_per_weight(weight.shape[1]), found.scheme.bits
            entropy = found.entropy()
        result = LayerResult(
            name=layer.name,
            block=self.index,
            method=solver.name,
            scheme=found.scheme.name,
            outputs=weight.shape[0],
            inputs=weight.shape[1],
            bits_per_weight=bits + own,
            loss=solution.loss,
            weight_error=error,
            damping=solution.damping,
            dead_columns=solution.dead_columns,
            tokens=layer.tokens or 0,
            seconds=seconds,
            fallback=solution.fallback,
            transforms=notes,
            code_bits=code_bits,
            entropy=entropy,
        )
        return result, found.to("cpu")


def require_solution(solution: Any, weight: Tensor, scheme: AnyScheme, who: str) -> None:
    """Raise QuantizationError unless a solver returned what it was asked for.

    Solvers may be external code, so their results are checked before use. `who` begins messages.
    """
    if not isinstance(solution, Solution):
        raise QuantizationError(
            f"{who} returned a {type(solution).__name__}; return a quant.solvers.base.Solution."
        )
    if solution.loss is not None and not math.isfinite(solution.loss):
        raise QuantizationError(
            f"{who} returned the loss {solution.loss}; return a number or None."
        )
    found = solution.weight
    if found.scheme != scheme:
        raise QuantizationError(
            f"{who} was asked for {scheme.name} and returned {found.scheme.name}; quantize to the "
            "scheme that is passed."
        )
    if isinstance(found, FactoredWeight) or isinstance(scheme, Budget):
        _require_factored(found, weight, scheme, who)
        return
    if found.codes.dtype != torch.uint8 or found.codes.shape != weight.shape:
        raise QuantizationError(
            f"{who} returned codes {found.codes.dtype} {list(found.codes.shape)}; return uint8 "
            f"{list(weight.shape)}."
        )
    if int(found.codes.max()) > scheme.max_code:
        raise QuantizationError(
            f"{who} returned the code {int(found.codes.max())}, but {scheme.name} has 0 to "
            f"{scheme.max_code}."
        )
    groups = scheme.groups(weight.shape[1])
    for each in scheme.kind.tensors:
        part, dtype = found.grid[each.name], getattr(torch, each.storage(scheme))
        shape = (weight.shape[0], each.entries(groups), *each.entry_shape(scheme))
        below = 2 ** each.bits(scheme) if each.code else math.inf
        if (
            part.shape != shape
            or part.dtype != dtype
            or not bool((part.float().abs() < below).all())
        ):
            numbers = f"values below {below}" if each.code else "finite values"
            raise QuantizationError(
                f"{who} returned a {each.name} {part.dtype} of shape {list(part.shape)}; return "
                f"{numbers} {dtype} {list(shape)} (outputs, {_entries(each)})."
            )


def _require_factored(found: AnyWeight, weight: Tensor, scheme: AnyScheme, who: str) -> None:
    """Raise QuantizationError unless a factored weight has this shape and fits the budget."""
    if not isinstance(found, FactoredWeight) or not isinstance(scheme, Budget):
        raise QuantizationError(
            f"{who} was asked for {scheme.name} and returned a {type(found).__name__}; return a "
            "FactoredWeight for a budget, and a QuantizedWeight for any other scheme."
        )
    if found.shape != tuple(weight.shape):
        raise QuantizationError(
            f"{who} returned a weight {list(found.shape)}; return {list(weight.shape)}."
        )
    if found.bits > 8 * scheme.most_bytes(*found.shape):
        raise QuantizationError(
            f"{who} returned {found.bits} bits for {weight.numel()} weights, more than "
            f"{scheme.name} allows; return fewer."
        )


def _entries(tensor: GridTensor) -> str:
    """Describe the dimensions of a tensor after the outputs."""
    shared = "row" if tensor.span is None else f"super-blocks of {tensor.span} groups"
    along = "groups" if tensor.span == 1 else shared
    return along if tensor.values == 1 else f"{along}, values"


def solve_groups(
    solver: BlockSolver,
    workers: DeviceWorkers,
    worker_of: Mapping[tuple[str, ...], int],
    hessians: dict[tuple[str, ...], Hessian],
    changed: Mapping[tuple[str, ...], Changed],
) -> Solved:
    """Solve groups, each on its worker; return the results in the order of the groups."""

    def task(names: tuple[str, ...], worker: int) -> Solved:
        # Popped, so that the Hessian is freed as soon as its layers are solved.
        hessian, device = hessians.pop(names), workers.devices[worker] if worker else None
        return solver.group(names, hessian, device, changed.get(names, UNCHANGED))

    # Worker 0 runs in this thread, so the others get their tasks first.
    order = sorted(worker_of, key=lambda names: worker_of[names] == 0)
    futures = {
        names: workers.run(worker_of[names], partial(task, names, worker_of[names]))
        for names in order
    }
    return [each for names in worker_of for each in futures[names].result()]


def _relative_error(weight: Tensor, quantized: Tensor) -> float:
    norm = torch.linalg.vector_norm(weight).item()
    return torch.linalg.vector_norm(weight - quantized).item() / norm if norm else 0.0
