"""Solve the layers of one block: in one pass, or stage by stage (true_sequential)."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import torch
from torch import nn

from quant.blocks import linear_layers, weight_matrix
from quant.calibrate.capture import Call, Capture, run_block
from quant.calibrate.collect import Collected, Collector
from quant.calibrate.few import require_tokens
from quant.calibrate.layers import Solved, solve_groups
from quant.calibrate.memo import Memo
from quant.calibrate.neighbours import Names
from quant.calibrate.reference import ReferenceBlock, reference_block
from quant.calibrate.run import Run
from quant.calibrate.structure import BlockStructure
from quant.calibrate.transform import BlockTransformer, Changed, require_first_changes
from quant.calibrate.wide import WIDE, narrowed
from quant.calibrate.windows import Batch
from quant.memory.heaps import trim_heap


def quantize_block(
    run: Run,
    index: int,
    structure: BlockStructure,
    batches: list[Batch],
    captured: Capture,
) -> Memo:
    """Solve the layers of block `index` and pass it to the sink; return a memo of it.

    captured has the inputs of the block, before and after; those of the full-precision model are
    replaced by its outputs. The memo has outputs of the solved block.
    """
    stages = structure.stages() if run.config.sequential else [structure.groups]
    reference = reference_block(run.source, index, structure, captured, changes=len(stages) > 1)
    memo = Memo(run.source.blocks.modules[index], structure)
    last = index + 1 == len(run.source.blocks)
    solved: Solved = []
    for stage, groups in enumerate(stages, 1):
        before = frozenset(layer.name for layer, _ in solved)
        advance = stage == len(stages) and not last
        solved += _quantize_stage(
            run, index, structure, groups, batches, captured, before, memo, reference, advance
        )
        done = [name for group in groups for name in group]
        memo.finish(done)
        if reference is not None:
            reference.memo.finish(done)
    if index == 0:
        layers, blocks = [layer for layer, _ in solved], run.source.blocks.modules
        require_first_changes(run.config.input_transforms, layers, list(blocks))
    run.hand_over(index, solved)
    return memo


def _quantize_stage(
    run: Run,
    index: int,
    structure: BlockStructure,
    groups: tuple[tuple[str, ...], ...],
    batches: list[Batch],
    captured: Capture,
    before: frozenset[str],
    memo: Memo,
    reference: ReferenceBlock | None,
    advance: bool,
) -> Solved:
    """Collect the Hessians of some layers of a block in one pass, then solve these layers.

    before     full names of the layers of the block that are already solved.
    memo       outputs of these layers.
    reference  the original block, whose inputs are compared; None if the solver needs none.
    advance    whether the reference stream goes on to the next block.
    """
    solver, workers = run.solver(index), run.workers
    block = solver.block
    # Nothing was quantized before these layers: x~ = x, and one pass makes both.
    same = reference is not None and index == 0 and not before
    whole = same and advance
    with run.calibrating("hessian"):
        dtype = WIDE if run.wide else torch.float32
        ends = structure.single_pass and not whole
        reads = any(transform.reads_statistics for transform, _ in run.config.transforms)
        upper = run.config.upper_drift
        collector = Collector(block, solver.name, groups, ends, workers, dtype, reads, upper)
        try:
            for position, batch in enumerate(batches):
                if reference is not None and not same:
                    collector.record(to_the_end=advance)
                    reference.run(position, batch, advance)
                collector.begin(batch)
                call = captured.calls[index][position]
                with suppress(Collected), memo.during(position, last=False):
                    output = run_block(block, structure, call, captured.hidden[position])
                    if reference is not None and whole:
                        reference.put(position, batch, output)
                workers.settle()
        finally:
            collector.close()
    trims = _has_widest(block, groups)
    if trims:
        trim_heap()
    require_tokens(collector.hessians, solver.routed, run.config)
    changed = _transform(run, index, structure, captured, collector, before)
    with run.meter.stage("solve"):
        solved = solve_groups(solver, workers, collector.worker_of, collector.hessians, changed)
    if trims:
        trim_heap()
    return solved


def _has_widest(block: nn.Module, groups: tuple[tuple[str, ...], ...]) -> bool:
    """Whether the widest inputs of the block are among those of `groups`.

    The solver takes most for them, and only around them is memory that a pass has freed given back:
    the next stage would have the system clear the same pages again (measured: 0.12 s a block).
    """
    inputs = {name: weight_matrix(each).shape[1] for name, each in linear_layers(block).items()}
    return any(inputs[group[0]] == max(inputs.values()) for group in groups)


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
