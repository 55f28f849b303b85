"""Quantize a model block by block, calibrating each block on the quantized blocks before it.

Order of work (section 4 of the paper, "Setup"): the embeddings run once and give the inputs of
block 0. Then, for every block: collect the Hessians of its linear layers, solve them, write the
quantized weights back, pass them to the sink, and run the quantized block to compute the inputs of
the next one. With true_sequential the layers of a block are also solved in stages (q k v, output,
up and gate, down), each after the quantized stages before it.

Weights of one block are in memory, and those of the next, which is read ahead. Each finished block
goes to a sink; a thread packs and writes it while the next block is solved (quant.calibrate.sink).
A run that was killed resumes at the first unfinished block. It computes that block's inputs by
running the finished blocks again, one forward pass through each (docs/scaling.md). Storing the
inputs instead would make every run write all activations once per block, 600 GB each for OPT-175B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from cuda_ext.ops import resolve_kernel
from quant.arithmetic import resolve_arithmetic
from quant.blocks import (
    linear_layers,
    require_sound,
    require_sound_weight,
    set_weight_matrix,
)
from quant.calibrate.activations import Activations, activation_store
from quant.calibrate.capture import (
    Call,
    Capture,
    capture,
    check_streaming,
    observe,
    run_block,
    streamed_logits,
)
from quant.calibrate.collect import Collector, require_finite, require_fits
from quant.calibrate.cost import StageCost, StageMeter
from quant.calibrate.devices import DeviceWorkers, Workplace
from quant.calibrate.layers import BlockSolver, LayerResult, Solved, solve_groups
from quant.calibrate.neighbours import Names
from quant.calibrate.passes import Passes
from quant.calibrate.reference import ReferenceBlock, reference_block, require_one_stream
from quant.calibrate.residual import rotated
from quant.calibrate.results import KeptWeights
from quant.calibrate.rounding import attach_rounding
from quant.calibrate.run import Progress, Run
from quant.calibrate.sink import BlockSink, InMemorySink, WriteBehind
from quant.calibrate.source import BlockSource, LoadedModel
from quant.calibrate.structure import BlockStructure, ModelStructure, evaluation
from quant.calibrate.survey import survey
from quant.calibrate.transform import (
    BlockTransformer,
    Changed,
    require_changes,
    require_first_changes,
    restore,
)
from quant.calibrate.wide import narrowed
from quant.calibrate.windows import Batch, check_windows, make_batches
from quant.config import QuantizationConfig
from quant.coverage import Coverage
from quant.experts import unfuse
from quant.head import find_head
from quant.memory.heaps import memory_kept, trim_heap
from quant.memory.plan import model_shape
from quant.products import torch_alone
from quant.weight import QuantizedWeight

__all__ = [
    "LayerResult",
    "QuantizationConfig",
    "QuantizationResult",
    "Workplace",
    "check_streaming",
    "quantize_blocks",
    "quantize_model",
    "streamed_logits",
]


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
    head             result of the head; None if the scheme keeps it.
    """

    weights: Mapping[str, QuantizedWeight]
    layers: list[LayerResult]
    stages: list[StageCost]
    coverage: Coverage
    host_peak_bytes: int | None = None
    resumed: int = 0
    head: LayerResult | None = None


def quantize_model(
    model: PreTrainedModel,
    calibration: Sequence[Tensor],
    config: QuantizationConfig,
    progress: Progress | None = None,
    workplace: Workplace | None = None,
) -> QuantizationResult:
    """Quantize every linear layer in the blocks of a `model` in memory, and its head if asked.

    The model is modified in place: its weights become the dequantized values in their own dtype, so
    it is the simulated quantized model; fused experts become modules (quant.experts). A head that
    config.scheme quantizes (quant.head) is no longer tied to the embeddings. After an error it may
    be partly quantized. calibration has windows of token ids [tokens] of any length; it may be
    empty if config needs none. progress(done, total, name) is called after every layer.

    Raises ModelStructureError, SchemeError, NonFiniteError and CalibrationError before the model is
    modified; NonFiniteError, SingularHessianError and CalibrationError for a layer during the run.
    """
    unfuse(model)
    folder = None if workplace is None else workplace.results
    source, kept = LoadedModel(model), InMemorySink(KeptWeights(folder))
    for index, block in enumerate(source.blocks.modules):
        require_sound(block, source.blocks.block_name(index))
    result = quantize_blocks(source, calibration, config, kept, progress, workplace)
    return replace(result, weights=kept.weights)


def quantize_blocks(
    source: BlockSource,
    calibration: Sequence[Tensor],
    config: QuantizationConfig,
    sink: BlockSink,
    progress: Progress | None = None,
    workplace: Workplace | None = None,
    covered: Coverage | None = None,
    solvers: Callable[..., BlockSolver] = BlockSolver,
) -> QuantizationResult:
    """Quantize every linear layer in the blocks of `source`, passing each block to `sink`.

    As `quantize_model`, but blocks that the sink already has are not computed again. A block that
    cannot be quantized raises an error when the run reaches it; the blocks before it stay in the
    sink, including the one being written. An error of the sink is raised at the next block or at
    the end. The stage "write" is the time that the run waited for the sink; the working time of the
    sink's thread is `StageCost.background`. covered is the result of `survey`, if the caller has
    it. solvers makes what treats the layers of a block; an audit (quant.audit) has its own.
    """
    if config.scheme.head is not None:
        name, module = find_head(source.model)
        require_sound_weight(module, name)
    covered = covered or survey(source, config.rules)
    require_one_stream(source.blocks, config)
    if config.needs_calibration:
        check_windows(calibration, source.model)
    workplace = workplace or Workplace()
    resumed = sink.finished
    devices = workplace.devices or (source.device,)
    kernel = resolve_kernel(config.kernel, source.device)
    parameters = model_shape(source.model).parameters
    arithmetic = resolve_arithmetic(config.arithmetic, str(source.device), parameters)
    config = replace(config, arithmetic=arithmetic)
    with (
        memory_kept(),
        StageMeter(source.device) as meter,
        evaluation(source.model),
        torch_alone(kernel == "reference"),
        DeviceWorkers(devices) as workers,
        WriteBehind(meter, one_thread=source.device.type == "cpu") as writer,
    ):
        if config.residual is not None:
            with meter.stage("transform"):
                source = rotated(source, *config.residual, calibration[0])
        run = Run(
            source, config, kernel, sink, meter, workers, workplace, progress, writer, resumed,
            solvers,
        )  # fmt: skip
        run.recall()
        if not config.needs_calibration:
            _solve_blocks(run)
        elif resumed < len(source.blocks):
            _calibrate(run, calibration)
        writer.settle()
        head = run.head()
        require_changes(config.transforms, run.layers)
    host = meter.host_peak_bytes
    return QuantizationResult({}, run.layers, meter.costs(), covered, host, resumed, head)


def _solve_blocks(run: Run) -> None:
    """Quantize every block on its own, without calibration."""
    with run.blocks(run.resumed) as blocks:
        for index in blocks:
            solver = run.solver(index)
            require_sound(solver.block, solver.name)
            with run.meter.stage("solve"):
                solved = solver.group(tuple(linear_layers(solver.block)), None)
            run.hand_over(index, solved)


def _calibrate(run: Run, calibration: Sequence[Tensor]) -> None:
    """Quantize every block on the outputs of the quantized blocks before it."""
    source, place = run.source, run.workplace
    with run.passing("structure"):
        model_structure = _structure(run, calibration)
    trim_heap()
    batches = make_batches(calibration, run.config.batch_tokens)
    beside: AbstractContextManager[Activations | None] = nullcontext()
    if run.config.solver.needs_reference:
        folder = place.folder and place.folder / "reference"
        beside = activation_store(place.activations, source.device, folder)
    with (
        activation_store(place.activations, source.device, place.folder) as store,
        beside as reference,
    ):
        with run.calibrating("capture"):
            tokens = [batch.tokens for batch in batches]
            captured = capture(source.model, model_structure, tokens, store, reference)
            for position, batch in enumerate(batches):
                what = "the input of the first block (the embeddings)"
                require_finite(store[position], batch, what)
        trim_heap()
        with run.blocks() as blocks:
            for index in blocks:
                structure = model_structure.structures[index]
                if index < run.resumed:
                    _put_back(run, index, structure, batches, captured)
                else:
                    _quantize_block(run, index, structure, batches, captured)
                if index + 1 < len(model_structure.structures):
                    _advance(run, index, structure, batches, captured)


def _structure(run: Run, calibration: Sequence[Tensor]) -> ModelStructure:
    """Return how blocks are called, checked against the model's own forward pass in a new run."""
    source, first = run.source, calibration[0]
    if run.resumed:
        return observe(source, first)
    # The check needs another window than the structure was learned from; otherwise values that
    # depend on the window would be taken for properties of the model.
    other = calibration[1] if len(calibration) > 1 else first.flip(0)

    def inspect(index: int) -> None:
        require_sound(source.blocks.modules[index], source.blocks.block_name(index))
        trim_heap()  # freed memory of many blocks would add up

    return check_streaming(source, first, other, inspect)


def _quantize_block(
    run: Run,
    index: int,
    structure: BlockStructure,
    batches: list[Batch],
    captured: Capture,
) -> None:
    stages = structure.stages() if run.config.sequential else [structure.groups]
    changes = len(stages) > 1 or run.config.rounding is not None
    reference = reference_block(run.source, index, structure, captured, changes)
    last = index + 1 == len(run.source.blocks)
    solved: Solved = []
    for stage, groups in enumerate(stages, 1):
        before = frozenset(layer.name for layer, _ in solved)
        advance = stage == len(stages) and not last
        solved += _quantize_stage(
            run, index, structure, groups, batches, captured, before, reference, advance
        )
    if index == 0:
        layers, blocks = [layer for layer, _ in solved], run.source.blocks.modules
        require_first_changes(run.config.input_transforms, layers, list(blocks))
    run.hand_over(index, solved)


def _quantize_stage(
    run: Run,
    index: int,
    structure: BlockStructure,
    groups: tuple[tuple[str, ...], ...],
    batches: list[Batch],
    captured: Capture,
    before: frozenset[str],
    reference: ReferenceBlock | None,
    advance: bool,
) -> Solved:
    """Collect the Hessians of some layers of a block, then solve these layers.

    before     full names of the layers of the block that are already solved.
    reference  the original block, whose inputs are compared; None if the solver needs none.
    advance    whether the reference stream goes on to the next block.
    """
    solver, rounding, exact = run.solver(index), run.config.rounding, run.config.input_transforms
    calls, hidden = captured.calls[index], captured.hidden
    passes = Passes(run, solver, structure, groups, batches, calls, hidden)
    reads = any(transform.reads_statistics for transform, _ in exact)
    changed: dict[Names, Changed] = {}
    if rounding is not None:
        if exact:  # whose Hessians are freed before the next are collected
            changed = _transform(
                run, index, structure, captured, passes.collect(statistics=reads), before
            )
        look = partial(passes.collect, statistics=True)
        changed = attach_rounding(rounding, solver.block, solver.name, groups, changed, look)
    # Nothing was quantized or rounded before these layers: x~ = x, and one pass makes both.
    same = reference is not None and index == 0 and not before and rounding is None
    reads = reads and rounding is None
    collector = passes.collect(
        reference, advance=advance, same=same, statistics=reads, changed=changed
    )
    if rounding is None:
        changed = _transform(run, index, structure, captured, collector, before)
    else:  # the block has made all changes, so the Hessians are those of the solver
        changed = {names: Changed(notes=each.notes) for names, each in changed.items()}
    with run.meter.stage("solve"):
        solved = solve_groups(solver, run.workers, collector.worker_of, collector.hessians, changed)
    trim_heap()
    return solved


def _transform(
    run: Run,
    index: int,
    structure: BlockStructure,
    captured: Capture,
    collector: Collector,
    solved: frozenset[str],
) -> dict[Names, Changed]:
    """Apply transforms to the inputs of layers that have Hessians; checks use the first batch."""
    transforms = run.config.input_transforms
    if not transforms:
        return {}
    block, name = run.source.blocks.modules[index], run.source.blocks.block_name(index)
    with run.passing("transform"):
        # Folding is tried in the model's dtype, because the checks allow for its rounding.
        hidden, call = captured.hidden[0], captured.calls[index][0]
        if run.wide:
            own = run.source.model.dtype
            hidden, call = (
                narrowed(hidden, own),
                Call(narrowed(call.args, own), narrowed(call.kwargs, own)),
            )
        again = partial(run_block, block, structure, call, hidden)
        scheme, model = run.config.scheme.without_head, run.source.model
        worker = BlockTransformer(transforms, scheme, model, block, name, solved, hidden, again)
        return worker.apply(collector.hessians, collector.statistics)


def _put_back(
    run: Run, index: int, structure: BlockStructure, batches: list[Batch], captured: Capture
) -> None:
    """Restore the values of block `index` from an earlier run: quantized weights and others.

    Before that the reference stream, if there is one, passes through the original block.
    """
    model = run.source.model
    reference = reference_block(run.source, index, structure, captured)
    if reference is not None:
        with run.calibrating("resume"):
            for position, batch in enumerate(batches):
                reference.run(position, batch, advance=True)
    with run.meter.stage("resume"):
        weights, _ = run.sink.get(index)
        for name, weight in weights.items():
            set_weight_matrix(model.get_submodule(name), weight.dequantize(), name)
        if run.config.transforms:  # only transforms change other parameters of a block
            transforms = [transform for transform, _ in run.config.transforms]
            restore(model, run.sink.other_tensors(index), run.sink.operators(index, transforms))


def _advance(
    run: Run,
    index: int,
    structure: BlockStructure,
    batches: list[Batch],
    captured: Capture,
) -> None:
    """Replace the inputs of block `index` by its outputs, batch by batch, and free its calls."""
    name = run.source.blocks.block_name(index)
    block = run.source.blocks.modules[index]
    with run.calibrating("resume" if index < run.resumed - 1 else "forward"):
        for position, batch in enumerate(batches):
            call = captured.calls[index][position]
            output = run_block(block, structure, call, captured.hidden[position])
            require_finite(output, batch, f"the output of {name}")
            require_fits(output, run.source.model.dtype, batch, f"the output of {name}")
            captured.hidden[position] = output
    captured.calls[index].clear()
    # Keep the freed memory: the pass that collects the next block's Hessians reuses it.
