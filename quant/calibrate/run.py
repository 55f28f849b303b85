"""Run: the state of one quantization, shared by its parts while blocks are processed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from quant.arithmetic import PORTABLE
from quant.blocks import named_layers, weight_matrix
from quant.calibrate.cost import StageCost, StageMeter
from quant.calibrate.devices import DeviceWorkers, Workplace
from quant.calibrate.head import own_head, quantize_outside
from quant.calibrate.layers import BlockSolver, LayerResult, Solved
from quant.calibrate.residual import RotatedSource
from quant.calibrate.sink import STAGE, BlockSink, Finished, WriteBehind
from quant.calibrate.source import BlockSource, each_block
from quant.calibrate.wide import WideCalls, wide_buffers
from quant.config import QuantizationConfig
from quant.coverage import Coverage
from quant.errors import SchemeError
from quant.forward_products import forward_products
from quant.head import find_embeddings, find_head, serves_head, tied
from quant.scheme import Scheme
from quant.weight import AnyWeight

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class QuantizationResult:
    """Results and costs of a quantization.

    weights          quantized weights (on the CPU) by full module name; empty if the caller passed
                     a sink. Codes are kept packed, and unpacked at every access.
    layers           results of the layers in the blocks.
    host_peak_bytes  highest resident memory of this process during the run; None if the platform
                     reports none.
    coverage         share of the blocks' matrices in quantized layers.
    resumed          number of blocks that an earlier, interrupted run had finished.
    head, embeddings results of the head and the embeddings; None for what the scheme keeps. One
                     matrix that serves both has a result as embeddings.
    removed          what a transform removed from the model, in words; None if none did.
    """

    weights: Mapping[str, AnyWeight]
    layers: list[LayerResult]
    stages: list[StageCost]
    coverage: Coverage
    host_peak_bytes: int | None = None
    resumed: int = 0
    head: LayerResult | None = None
    embeddings: LayerResult | None = None
    removed: str | None = None

    @property
    def outside(self) -> list[LayerResult]:
        """The results outside the blocks."""
        return [each for each in (self.head, self.embeddings) if each is not None]


@dataclass
class Run:
    """The state of one quantization: its inputs, its results so far and its meters."""

    source: BlockSource
    config: QuantizationConfig
    kernel: str
    sink: BlockSink
    meter: StageMeter
    workers: DeviceWorkers
    workplace: Workplace
    progress: Progress | None
    writer: WriteBehind
    resumed: int  # read at the start, because the sink's count grows in another thread
    solvers: Callable[..., BlockSolver] = BlockSolver  # makes what treats the layers of a block
    layers: list[LayerResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        scheme = self.config.layers
        layers = named_layers(self.source.blocks)
        scheme.require_layers(layers)
        for name, module in layers.items():
            outputs, inputs = weight_matrix(module).shape
            scheme.of(name).require(inputs, name)
            self._require_shape((outputs, inputs), name)
        self._serves = serves_head(self.source.model, scheme)
        self._total = len(layers) + len(scheme.outside) - self._serves
        self._done = 0
        self._lock = threading.Lock()

    def _require_shape(self, shape: tuple[int, int], layer: str) -> None:
        solver, scheme = self.config.solver, self.config.layers.without_head
        reason = solver.refuses_shape(self.config.options, scheme, shape)
        if reason is not None:
            raise SchemeError(
                f"{layer}: solver {solver.name} cannot be asked for {scheme.name}: {reason}."
            )

    def recall(self) -> None:
        """Load the results and costs of the blocks that earlier runs finished."""
        for index in range(self.resumed):
            _, made = self.sink.get(index)
            self.layers += made.layers
            self.meter.add(made.stages)
        self._done = len(self.layers)

    @property
    def wide(self) -> bool:
        """Whether calibration runs in float64."""
        return self.config.arithmetic == PORTABLE

    @contextmanager
    def passing(self, stage: str) -> Iterator[None]:
        """Measure a stage that runs blocks in the model's dtype, with faster operators.

        Solving is not such a stage: its many small calls need no redirection.
        """
        on_cpu = self.source.device.type == "cpu"
        with (
            self.meter.stage(stage),
            forward_products(self.kernel, self.source.model) if on_cpu else nullcontext(),
        ):
            yield

    @contextmanager
    def calibrating(self, stage: str) -> Iterator[None]:
        """Measure a stage whose values determine codes; float64 if the arithmetic is portable."""
        if not self.wide:
            with self.passing(stage):
                yield
            return
        with self.meter.stage(stage), wide_buffers(self.source.model), WideCalls():
            yield

    def count(self, layer: str) -> None:
        """Report a solved layer as progress; may be called from any thread."""
        with self._lock:
            self._done += 1
            if self.progress is not None:
                self.progress(self._done, self._total, layer)

    def solver(self, index: int) -> BlockSolver:
        blocks = self.source.blocks
        name = blocks.block_name(index)
        # One block is enough: a wrong method is wrong in every layer. The first block of the model
        # has the inputs of the full-precision model, so a solver that corrects them has no work.
        checks = index == int(self.config.solver.needs_reference and len(blocks) > 1)
        return self.solvers(self.config, blocks.modules[index], index, name, self.count, checks)

    def hand_over(self, index: int, solved: Solved) -> None:
        """Pass a finished block to the sink, with the costs since the previous one.

        Waits until the previous block is stored; storing this one continues after the return.
        """
        if isinstance(self.source, RotatedSource):  # before any other transform
            solved = [(self.source.noted(layer), weight) for layer, weight in solved]
        layers = [layer for layer, _ in solved]
        self.writer.settle()
        with self.meter.stage(STAGE):
            weights = {layer.name: weight for layer, weight in solved}
            made = Finished(layers, self.meter.since_last())
            keep = self.sink.put(index, weights, made)
        self.writer.begin(keep)
        self.layers += layers

    def embeddings(self) -> LayerResult | None:
        """Quantize the token embeddings, if the scheme does, before the blocks see any.

        The model looks up the quantized values from then on, so that the blocks are calibrated on
        them. A head that has its own matrix keeps its values.
        """
        model, scheme = self.source.model, self.config.scheme.embeddings
        if scheme is None:
            return None
        if tied(model) and not self._serves:
            own_head(model)
        name, table = find_embeddings(model)
        return self._outside(name, table, scheme, keep=True)

    def head(self) -> LayerResult | None:
        """Quantize the head, if the scheme does and it has a matrix of its own, after the blocks.

        A model in memory gets the quantized values, as its blocks do; of one that is read block by
        block the head keeps its own.
        """
        model, scheme = self.source.model, self.config.scheme.head
        if scheme is None or self._serves:
            return None
        if not self.source.reads:
            own_head(model)
        name, head = find_head(model)
        return self._outside(name, head, scheme, keep=not self.source.reads)

    def _outside(self, name: str, module: nn.Module, scheme: Scheme, *, keep: bool) -> LayerResult:
        self.writer.settle()
        block = len(self.source.blocks)
        with self.meter.stage("solve"):
            result, weight = quantize_outside(name, weight_matrix(module), scheme, block, keep=keep)
        self.count(name)
        self.sink.put_outside(name, weight)
        return result

    def blocks(self, first: int = 0) -> closing[Generator[int]]:
        """Iterate over the blocks that have their weights; waiting for a read is a stage."""
        return closing(each_block(self.source, first, partial(self.meter.stage, "read")))
