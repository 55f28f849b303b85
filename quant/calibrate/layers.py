"""Solve the linear layers of a block, group by group, and write their quantized values back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quant.blocks import linear_layers, set_weight_matrix, weight_matrix
from quant.errors import QuantizationError
from quant.hessian import Factor, Hessian
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.gptq import GPTQOptions
from quant.weight import QuantizedWeight

METHODS = ("rtn", "gptq")


@dataclass(frozen=True)
class QuantizationPlan:
    """How to quantize a model.

    method           "rtn" rounds every weight to its nearest value and needs no calibration;
                     "gptq" solves every layer with the Hessian of its inputs.
    true_sequential  gptq: collect Hessians stage by stage inside a block instead of all at once.
    batch_tokens     calibration tokens that run through a block at a time; a matter of speed and
                     memory (results change only by rounding).
    """

    method: str
    scheme: Scheme
    gptq: GPTQOptions = field(default_factory=GPTQOptions)
    true_sequential: bool = False
    batch_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise QuantizationError(
                f"method={self.method!r} is unknown; choose one of {', '.join(METHODS)}."
            )
        if self.batch_tokens < 1:
            raise QuantizationError(
                f"batch_tokens={self.batch_tokens} is not a number of tokens; use 1 or more."
            )


@dataclass(frozen=True)
class LayerResult:
    """What the solver did to one linear layer; the fields of harness.records.record.LayerReport.

    loss, damping, dead_columns  see quant.solvers.base.Solution.
    weight_error                 ||W - Q||_F / ||W||_F in float32; 0 for an all-zero weight.
    tokens                       calibration tokens that reached the layer; 0 without calibration.
    seconds                      the solver alone; the Hessian and its factor, which layers share,
                                 are in the stages.
    fallback                     what was done differently, as the options allowed; None: nothing.
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


Solved = list[tuple[LayerResult, QuantizedWeight]]


@dataclass(frozen=True)
class BlockSolver:
    """Quantizes the layers of one block; any of its methods may run in any thread.

    solved(layer) is called after every layer.
    """

    plan: QuantizationPlan
    block: nn.Module
    index: int
    name: str
    solved: Callable[[str], None]

    def group(
        self, names: tuple[str, ...], hessian: Hessian | None, device: torch.device | None = None
    ) -> Solved:
        """Quantize layers that share one Hessian, on `device` (None: where they are).

        Their weights become the quantized values, and those come back on the CPU.
        """
        factor, tokens = None, 0
        if hessian is not None:
            tokens = hessian.tokens
            factor = gptq.prepare(hessian.matrix(), self.plan.gptq, hessian.layer, tokens)
        linears = linear_layers(self.block)
        found = []
        for name in names:
            found.append(self._layer(f"{self.name}.{name}", linears[name], factor, tokens, device))
            self.solved(f"{self.name}.{name}")
        return found

    def _layer(
        self,
        name: str,
        module: nn.Module,
        factor: Factor | None,
        tokens: int,
        device: torch.device | None,
    ) -> tuple[LayerResult, QuantizedWeight]:
        scheme = self.plan.scheme
        begin = time.perf_counter()
        weight = weight_matrix(module).to(device).float()
        if self.plan.method == "rtn":
            solution = rtn.solve(weight, scheme, layer=name)
        elif self.plan.method != "gptq":
            raise QuantizationError(f"{name}: no solver is called {self.plan.method!r}.")
        elif factor is None:
            raise QuantizationError(f"{name}: gptq has no Hessian of this layer.")
        else:
            solution = gptq.solve(weight, factor, scheme, self.plan.gptq, layer=name, tokens=tokens)
        seconds = time.perf_counter() - begin
        quantized = solution.weight.dequantize()
        error = _relative_error(weight, quantized)
        set_weight_matrix(module, quantized, name)
        result = LayerResult(
            name=name,
            block=self.index,
            method=self.plan.method,
            scheme=scheme.name,
            outputs=weight.shape[0],
            inputs=weight.shape[1],
            bits_per_weight=scheme.bits_per_weight(weight.shape[1]),
            loss=solution.loss,
            weight_error=error,
            damping=solution.damping,
            dead_columns=solution.dead_columns,
            tokens=tokens,
            seconds=seconds,
            fallback=solution.fallback,
        )
        return result, solution.weight.to("cpu")


def _relative_error(weight: Tensor, quantized: Tensor) -> float:
    norm = torch.linalg.vector_norm(weight).item()
    return torch.linalg.vector_norm(weight - quantized).item() / norm if norm else 0.0
