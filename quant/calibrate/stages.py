"""Solve the layers of one block: in one pass, or stage by stage (true_sequential)."""

from __future__ import annotations

from functools import partial

from quant.calibrate.capture import Call, Capture, run_block
from quant.calibrate.collect import Collector
from quant.calibrate.layers import BlockSolver, Solved, solve_groups
from quant.calibrate.memo import Memo
from quant.calibrate.neighbours import Names
from quant.calibrate.passes import Passes
from quant.calibrate.reference import ReferenceBlock, reference_block
from quant.calibrate.rounding import attach_rounding
from quant.calibrate.run import Run
from quant.calibrate.structure import BlockStructure
from quant.calibrate.transform import BlockTransformer, Changed, require_first_changes
from quant.calibrate.wide import narrowed
from quant.calibrate.windows import Batch


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
    changes = len(stages) > 1 or run.config.rounding is not None
    reference = reference_block(run.source, index, structure, captured, changes)
    memo = Memo(run.source.blocks.modules[index], structure)
    last = index + 1 == len(run.source.blocks)
    solved: Solved = []
    for stage, groups in enumerate(stages, 1):
        before = frozenset(layer.name for layer, _ in solved)
        advance = stage == len(stages) and not last
        solved += _quantize_stage(
            run, index, structure, groups, batches, captured, before, memo, reference, advance
        )
        memo.finish(name for group in groups for name in group)
        if reference is not None:
            reference.finish(groups)
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
    """Collect the Hessians of some layers of a block then solve these layers.

    before     full names of the layers of the block that are already solved.
    memo       outputs of these layers.
    reference  the original block, whose inputs are compared; None if the solver needs none.
    advance    whether the reference stream goes on to the next block.
    """
    solver, rounding, exact = run.solver(index), run.config.rounding, run.config.input_transforms
    calls, hidden = captured.calls[index], captured.hidden
    passes = Passes(run, solver, structure, groups, batches, calls, hidden, memo)
    reads = any(transform.reads_statistics for transform, _ in exact)
    changed: dict[Names, Changed] = {}
    if rounding is not None:
        if exact:  # whose Hessians are freed before the next are collected
            changed = _transform(
                run, solver, structure, captured, passes.collect(statistics=reads), before
            )
        look = partial(passes.collect, statistics=True)
        changed = attach_rounding(rounding, solver.block, solver.name, groups, changed, look)
    # Nothing was quantized or rounded before these layers: x~ = x, and one pass makes both.
    first = index == 0 and not before and run.config.scheme.embeddings is None
    same = reference is not None and first and rounding is None
    reads = reads and rounding is None
    collector = passes.collect(
        reference, advance=advance, same=same, statistics=reads, changed=changed
    )
    if rounding is None:
        changed = _transform(run, solver, structure, captured, collector, before)
    else:  # the block has made all changes, so the Hessians are those of the solver
        changed = {names: Changed(notes=each.notes) for names, each in changed.items()}
    with run.meter.stage("solve"):
        solved = solve_groups(solver, run.workers, collector.worker_of, collector.hessians, changed)
    passes.trim()
    return solved


def _transform(
    run: Run,
    solver: BlockSolver,
    structure: BlockStructure,
    captured: Capture,
    collector: Collector,
    solved: frozenset[str],
) -> dict[Names, Changed]:
    """Apply transforms to the inputs of layers that have Hessians.

    Checks use the first window, or the first batch where experts read some of the tokens each.
    """
    transforms = run.config.input_transforms
    if not transforms:
        return {}
    with run.passing("transform"):
        # Folding is tried in the model's dtype, because the checks allow for its rounding.
        hidden, call = captured.hidden[0], captured.calls[solver.index][0]
        if not solver.routed:
            hidden, call = hidden[:1], captured.window[solver.index]
        if run.wide:
            own = run.source.model.dtype
            hidden, call = (
                narrowed(hidden, own),
                Call(narrowed(call.args, own), narrowed(call.kwargs, own)),
            )
        again = partial(run_block, solver.block, structure, call, hidden)
        scheme, model = run.config.layers, run.source.model
        worker = BlockTransformer(
            transforms, scheme, model, solver.block, solver.name, solved, hidden, again
        )
        return worker.apply(collector.hessians, collector.statistics)
