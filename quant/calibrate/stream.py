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

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

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
from quant.calibrate.collect import require_finite, require_fits
from quant.calibrate.cost import StageMeter
from quant.calibrate.devices import DeviceWorkers, Workplace
from quant.calibrate.head import check_outside
from quant.calibrate.layers import BlockSolver, LayerResult
from quant.calibrate.memo import Memo
from quant.calibrate.reference import reference_block, require_one_stream
from quant.calibrate.residual import rotated
from quant.calibrate.results import KeptWeights
from quant.calibrate.run import Progress, QuantizationResult, Run
from quant.calibrate.sink import BlockSink, InMemorySink, WriteBehind
from quant.calibrate.source import BlockSource, LoadedModel
from quant.calibrate.stages import quantize_block
from quant.calibrate.structure import BlockStructure, ModelStructure, evaluation
from quant.calibrate.survey import survey
from quant.calibrate.transform import require_changes, restore
from quant.calibrate.windows import Batch, check_windows, make_batches
from quant.config import QuantizationConfig
from quant.coverage import Coverage
from quant.errors import QuantizationError
from quant.experts import unfuse
from quant.input_operator import absorbed
from quant.memory.heaps import memory_kept, trim_heap
from quant.memory.shapes import model_shape
from quant.products import torch_alone

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


NEEDS_FILES = (
    "transform {} makes another, smaller model, of files into files: quantize a folder, and say "
    "where to (bitsweep.quantize(folder, out=...), bitsweep run)."
)


def quantize_model(
    model: PreTrainedModel,
    calibration: Sequence[Tensor],
    config: QuantizationConfig,
    progress: Progress | None = None,
    workplace: Workplace | None = None,
) -> QuantizationResult:
    """Quantize every linear layer in the blocks of a `model` in memory; head, embeddings if asked.

    The model is modified in place: its weights become the dequantized values in their own dtype, so
    it is the simulated quantized model; fused experts become modules (quant.experts). A head or
    embeddings that config.scheme quantizes (quant.head) are no longer tied, unless one matrix
    serves both. After an error it may
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
    if config.pruning is not None:  # quantize_to has pruned the model by now
        raise QuantizationError(NEEDS_FILES.format(config.pruning[0].name))
    for name, module in check_outside(source, config.layers, config.residual is not None):
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
        if config.needs_calibration and resumed < len(source.blocks):
            embeddings = _calibrate(run, calibration)
        else:
            embeddings = run.embeddings()
            _solve_blocks(run)
        writer.settle()
        head = run.head()
        require_changes(config.transforms, run.layers)
    host = meter.host_peak_bytes
    return QuantizationResult(
        {}, run.layers, meter.costs(), covered, host, resumed, head, embeddings
    )


def _solve_blocks(run: Run) -> None:
    """Quantize every block on its own, without calibration."""
    with run.blocks(run.resumed) as blocks:
        for index in blocks:
            solver = run.solver(index)
            require_sound(solver.block, solver.name)
            with run.meter.stage("solve"):
                solved = solver.group(tuple(linear_layers(solver.block)), None)
            run.hand_over(index, solved)


def _calibrate(run: Run, calibration: Sequence[Tensor]) -> LayerResult | None:
    """Quantize every block on the outputs of the quantized blocks before it.

    Returns the result of the embeddings, which are the first.
    """
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
        tokens = [batch.tokens for batch in batches]
        if reference is not None and run.config.scheme.embeddings is not None:
            with run.calibrating("capture"):
                capture(source.model, model_structure, tokens, reference)
        embeddings = run.embeddings()
        with run.calibrating("capture"):
            first = None if embeddings is not None else reference
            captured = capture(source.model, model_structure, tokens, store, first)
            window: list[Call] = []
            if run.config.input_transforms:
                few = capture(source.model, model_structure, [tokens[0][:1]])
                window = [call for (call,) in few.calls]
            captured = replace(captured, reference=reference, window=window)
            for position, batch in enumerate(batches):
                what = "the input of the first block (the embeddings)"
                require_finite(store[position], batch, what)
        trim_heap()
        with run.blocks() as blocks:
            for index in blocks:
                structure, memo = model_structure.structures[index], None
                if index < run.resumed:
                    _put_back(run, index, structure, batches, captured)
                else:
                    memo = quantize_block(run, index, structure, batches, captured)
                if index + 1 < len(model_structure.structures):
                    _advance(run, index, structure, batches, captured, memo)
    return embeddings


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
                reference.pass_on(position, batch)
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
    memo: Memo | None,
) -> None:
    """Replace the inputs of block `index` by its outputs, batch by batch, and free its calls.

    memo  outputs that parts of it gave before; None: all of it is computed.
    """
    name = run.source.blocks.block_name(index)
    block = run.source.blocks.modules[index]
    tokens = 0 if run.wide else sum(batch.tokens.numel() for batch in batches)
    with (
        run.calibrating("resume" if index < run.resumed - 1 else "forward"),
        absorbed(block, tokens),
    ):
        for position, batch in enumerate(batches):
            call = captured.calls[index][position]
            with nullcontext() if memo is None else memo.during(position, last=True):
                output = run_block(block, structure, call, captured.hidden[position])
            require_finite(output, batch, f"the output of {name}")
            require_fits(output, run.source.model.dtype, batch, f"the output of {name}")
            captured.hidden[position] = output
    captured.calls[index].clear()
    # Keep the freed memory: the pass that collects the next block's Hessians reuses it.
