"""Quantize a model block by block, each block calibrated on the quantized blocks before it.

Order of work (section 4 of the paper, "Setup"): the embeddings run once and leave the inputs of
block 0. For every block: collect the Hessians of its linear layers, solve them, write the quantized
weights back, and run the quantized block to make the inputs of the next one. With true-sequential
order the layers of a block are done in stages too (q k v, output, up and gate, down), each stage on
the quantized stages before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cuda_ext.ops import resolve_kernel
from quant.blocks import (
    Blocks,
    find_blocks,
    linear_layers,
    require_quantizable,
    set_weight_matrix,
    weight_matrix,
)
from quant.capture import Capture, capture, check_streaming, run_block, streamed_logits
from quant.cost import StageCost, StageMeter
from quant.errors import NonFiniteError, QuantizationError
from quant.hessian import Factor, Hessian
from quant.layout import BlockStructure, evaluation
from quant.products import calibration_products
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.gptq import GPTQOptions
from quant.weight import QuantizedWeight
from quant.windows import Batch, check_windows, make_batches

__all__ = [
    "METHODS",
    "LayerResult",
    "QuantizationPlan",
    "QuantizationResult",
    "check_streaming",
    "quantize_model",
    "streamed_logits",
]

METHODS = ("rtn", "gptq")

Progress = Callable[[int, int, str], None]


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
    batch_tokens: int = 4096

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
    """What the solver did to one linear layer; the fields of harness.record.LayerReport.

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


@dataclass(frozen=True)
class QuantizationResult:
    """The quantized weights (on the CPU) by full module name, and what making them cost."""

    weights: dict[str, QuantizedWeight]
    layers: list[LayerResult]
    stages: list[StageCost]


def quantize_model(
    model: PreTrainedModel,
    calibration: Sequence[Tensor],
    plan: QuantizationPlan,
    progress: Progress | None = None,
) -> QuantizationResult:
    """Quantize every linear layer in the blocks of `model`; nothing else is touched.

    The model is modified in place: its weights become the dequantized values in their own dtype, so
    it is also the simulated quantized model. After an error it may be partly quantized.
    calibration holds windows of token ids [tokens], any lengths; method "rtn" needs none.
    progress(done, total, name) is called after every layer.

    Raises ModelLayoutError, SchemeError, NonFiniteError and CalibrationError before anything is
    changed; NonFiniteError, SingularHessianError and CalibrationError for a layer while it runs.
    """
    blocks = find_blocks(model)
    require_quantizable(blocks)
    require_scheme_fits(blocks, plan.scheme)
    if plan.method != "rtn":
        check_windows(calibration, model)
    total = sum(len(linear_layers(block)) for block in blocks.modules)
    kernel = resolve_kernel(plan.gptq.kernel, _device(model))
    products = calibration_products(kernel)
    with StageMeter(_device(model)) as meter, evaluation(model), products:
        run = _Run(plan, blocks, meter, progress, total)
        if plan.method == "rtn":
            for index, block in enumerate(blocks.modules):
                run.solve(index, tuple(linear_layers(block)), None)
        else:
            _stream(model, calibration, run)
    return QuantizationResult(run.weights, run.layers, meter.costs())


def require_scheme_fits(blocks: Blocks, scheme: Scheme) -> None:
    """Raise SchemeError for the first linear layer that the scheme's groups do not divide."""
    for index, block in enumerate(blocks.modules):
        for name, module in linear_layers(block).items():
            inputs = weight_matrix(module).shape[1]
            scheme.groups(inputs, layer=f"{blocks.block_name(index)}.{name}")


@dataclass
class _Run:
    """One quantization under way: the plan, the meter, and what has been done."""

    plan: QuantizationPlan
    blocks: Blocks
    meter: StageMeter
    progress: Progress | None
    total: int
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    layers: list[LayerResult] = field(default_factory=list)

    def solve(self, index: int, names: tuple[str, ...], hessian: Hessian | None) -> None:
        """Quantize layers of block `index` that share one Hessian, and write them back."""
        linears = linear_layers(self.blocks.modules[index])
        factor, tokens = None, 0
        if hessian is not None:
            tokens = hessian.tokens
            with self.meter.stage("solve"):
                factor = gptq.prepare(hessian.matrix(), self.plan.gptq, hessian.layer, tokens)
        for name in names:
            full = f"{self.blocks.block_name(index)}.{name}"
            with self.meter.stage("solve"):
                result = self._solve_layer(full, index, linears[name], factor, tokens)
            self.layers.append(result)
            if self.progress is not None:
                self.progress(len(self.layers), self.total, full)

    def _solve_layer(
        self,
        name: str,
        block: int,
        module: nn.Module,
        factor: Factor | None,
        tokens: int,
    ) -> LayerResult:
        scheme = self.plan.scheme
        begin = time.perf_counter()
        weight = weight_matrix(module).float()
        if factor is None:
            solution = rtn.solve(weight, scheme, layer=name)
        else:
            solution = gptq.solve(weight, factor, scheme, self.plan.gptq, layer=name, tokens=tokens)
        seconds = time.perf_counter() - begin
        quantized = solution.weight.dequantize()
        error = _relative_error(weight, quantized)
        set_weight_matrix(module, quantized, name)
        self.weights[name] = _on_cpu(solution.weight)
        return LayerResult(
            name=name,
            block=block,
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


def _stream(model: PreTrainedModel, calibration: Sequence[Tensor], run: _Run) -> None:
    with run.meter.stage("layout"):
        first = calibration[0]
        # Another window than the one that the layout is learned from: else what belongs to the
        # window could pass for what belongs to the model.
        other = calibration[1] if len(calibration) > 1 else first.flip(0)
        layout = check_streaming(model, first, other)
    batches = make_batches(calibration, run.plan.batch_tokens)
    with run.meter.stage("capture"):
        captured = capture(model, layout, [batch.tokens for batch in batches])
        for batch, hidden in zip(batches, captured.hidden, strict=True):
            _require_finite(hidden, batch, "the input of the first block (the embeddings)")
    for index, structure in enumerate(layout.structures):
        stages: list[tuple[tuple[str, ...], ...]] = [structure.groups]
        if run.plan.true_sequential:
            stages = [(group,) for group in structure.groups]
        for groups in stages:
            _quantize_stage(run, index, structure, groups, batches, captured)
        if index + 1 < len(layout.structures):
            _advance(run, index, structure, batches, captured)


def _quantize_stage(
    run: _Run,
    index: int,
    structure: BlockStructure,
    groups: tuple[tuple[str, ...], ...],
    batches: list[Batch],
    captured: Capture,
) -> None:
    """Collect the Hessians of some layers of a block in one pass, then solve those layers."""
    block = run.blocks.modules[index]
    with run.meter.stage("hessian"):
        collector = _Collector(block, run.blocks.block_name(index), groups, structure.single_pass)
        try:
            for position, batch in enumerate(batches):
                collector.begin(batch)
                call = captured.calls[index][position]
                with suppress(_Collected):
                    run_block(block, structure, call, captured.hidden[position])
        finally:
            collector.close()
    for names in groups:
        run.solve(index, names, collector.hessians.pop(names))


def _advance(
    run: _Run,
    index: int,
    structure: BlockStructure,
    batches: list[Batch],
    captured: Capture,
) -> None:
    """Replace the inputs of block `index`, batch by batch, by its outputs, and free its calls."""
    block = run.blocks.modules[index]
    with run.meter.stage("forward"):
        for position, batch in enumerate(batches):
            call = captured.calls[index][position]
            output = run_block(block, structure, call, captured.hidden[position])
            _require_finite(output, batch, f"the output of {run.blocks.block_name(index)}")
            captured.hidden[position] = output
    captured.calls[index].clear()


class _Collected(Exception):
    """Ends the forward pass of a block whose Hessians have all they need from the batch."""


class _Collector:
    """Hooks that feed one Hessian per group of layers with equal inputs while a block runs.

    With single_pass the block is stopped (by _Collected) once every group has been fed: what
    comes after, such as the last and largest product of an MLP, would be computed for nothing.
    """

    def __init__(
        self,
        block: nn.Module,
        name: str,
        groups: tuple[tuple[str, ...], ...],
        single_pass: bool,
    ) -> None:
        self.hessians: dict[tuple[str, ...], Hessian] = {}
        self._batch: Batch | None = None
        self._waiting: set[str] = set()
        self._single_pass = single_pass
        self._handles = []
        linears = linear_layers(block)
        for group in groups:
            leader = linears[group[0]]
            weight = weight_matrix(leader)
            layer = f"{name}.{group[0]}"
            hessian = Hessian(weight.shape[1], layer=layer, device=weight.device)
            self.hessians[group] = hessian
            self._handles.append(leader.register_forward_pre_hook(self._feeder(hessian)))

    def begin(self, batch: Batch) -> None:
        """What is fed from now on belongs to this batch."""
        self._batch = batch
        self._waiting = {hessian.layer for hessian in self.hessians.values()}

    def _feeder(self, hessian: Hessian) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def feed(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            assert self._batch is not None
            inputs, shape = args[0], self._batch.tokens.shape
            # Some models (OPT) flatten [batch, tokens] before a layer; the Hessian counts
            # sequences by the first dimension.
            if inputs.numel() == shape.numel() * inputs.shape[-1]:
                inputs = inputs.reshape(*shape, inputs.shape[-1])
            try:
                hessian.update(inputs)
            except NonFiniteError:
                _require_finite(inputs, self._batch, f"the input of {hessian.layer}")
                raise
            self._waiting.discard(hessian.layer)
            if self._single_pass and not self._waiting:
                raise _Collected

        return feed

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _require_finite(values: Tensor, batch: Batch, what: str) -> None:
    """Raise NonFiniteError naming `what` and the first window with NaN or infinite values."""
    if torch.isfinite(values.sum()):  # one pass; NaN and infinity survive a sum
        return
    broken = ~torch.isfinite(values)
    if not broken.any():  # only the sum overflowed
        return
    where = f"one of the calibration windows {list(batch.windows)}"
    if values.dim() > 2:  # [batch, ...], not tokens of any window that a router chose
        row = int(broken.flatten(1).any(dim=1).nonzero()[0])
        where = f"calibration window {batch.windows[row]}"
    raise NonFiniteError(
        f"{what} holds {int(broken.sum())} NaN or infinite values in {where} (counted from 0); run "
        "the model in float32 or bfloat16, or look for damaged weights in the layers before."
    )


def _relative_error(weight: Tensor, quantized: Tensor) -> float:
    norm = torch.linalg.vector_norm(weight).item()
    return torch.linalg.vector_norm(weight - quantized).item() / norm if norm else 0.0


def _on_cpu(weight: QuantizedWeight) -> QuantizedWeight:
    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.cpu()

    return replace(
        weight,
        codes=weight.codes.cpu(),
        scale=weight.scale.cpu(),
        zero=moved(weight.zero),
        negative_scale=moved(weight.negative_scale),
        group_index=moved(weight.group_index),
    )


def _device(model: PreTrainedModel) -> torch.device:
    return next(model.parameters()).device
