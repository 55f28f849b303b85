"""Passes: run the calibration batches through a block and collect what its layers read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from quant.blocks import linear_layers, weight_matrix
from quant.calibrate.activations import Activations
from quant.calibrate.capture import Call, run_block
from quant.calibrate.collect import Collected, Collector
from quant.calibrate.few import require_tokens
from quant.calibrate.layers import BlockSolver
from quant.calibrate.memo import Memo
from quant.calibrate.neighbours import Names
from quant.calibrate.reference import ReferenceBlock
from quant.calibrate.run import Run
from quant.calibrate.structure import BlockStructure
from quant.calibrate.transform import Changed
from quant.calibrate.wide import WIDE
from quant.calibrate.windows import Batch
from quant.drift import Drift, weighing
from quant.memory.heaps import trim_heap


@dataclass(frozen=True)
class Passes:
    """Passes through one block, for layers that are solved together.

    solver  of the block.
    groups  the layers, by equal inputs.
    calls   arguments of the block, by batch.
    hidden  hidden states at the block's input, by batch.
    memo    outputs of the parts that are finished.
    """

    run: Run
    solver: BlockSolver
    structure: BlockStructure
    groups: tuple[Names, ...]
    batches: Sequence[Batch]
    calls: Sequence[Call]
    hidden: Activations
    memo: Memo

    def collect(
        self,
        reference: ReferenceBlock | None = None,
        *,
        advance: bool = False,
        same: bool = False,
        statistics: bool = False,
        changed: Mapping[Names, Changed] = MappingProxyType({}),
    ) -> Collector:
        """Return the Hessians of what the layers read in one pass.

        reference   the original block, whose inputs are compared.
        advance     whether the reference stream goes on to the next block after this stage.
        same        the block computes what the original does, so one pass makes both.
        statistics  whether statistics of the inputs are collected, too.
        changed     changes of coordinates that the block has and the original has not.
        """
        run, block, whole = self.run, self.solver.block, same and advance
        with run.calibrating("hessian"):
            collector = Collector(
                block,
                self.solver.name,
                self.groups,
                self.structure.single_pass and not whole,
                run.workers,
                WIDE if run.wide else torch.float32,
                statistics,
                {names: each.changes for names, each in changed.items()},
                self.drift_of,
            )
            try:
                for position, batch in enumerate(self.batches):
                    beside = None
                    if reference is not None and not same:
                        beside = reference.inputs(position, batch, self.groups)
                    collector.begin(batch, beside)
                    with suppress(Collected), self.memo.during(position, last=False):
                        output = run_block(
                            block, self.structure, self.calls[position], self.hidden[position]
                        )
                        if reference is not None and whole:
                            reference.put(position, batch, output)
                    run.workers.settle()
                    collector.end()
            finally:
                collector.close()
        self.trim()
        require_tokens(collector.hessians, self.solver.routed, run.config)
        return collector

    def drift_of(self, weights: Sequence[Tensor]) -> Drift:
        """What the drift of layers with one input is summed in: as few products as are enough.

        W D is enough for one layer in fast arithmetic, where no other weight needs D, nothing
        changes coordinates and no piece of the layer is held against the oracle.
        """
        run = self.run
        plain = not (run.wide or run.config.input_transforms or self.solver.checks)
        if run.config.solver.weighted_drift and plain and len(weights) == 1 and weighing(*weights):
            return Drift(weight=weights[0].detach())
        return Drift(run.config.upper_drift)

    def trim(self) -> None:
        """Give freed memory back, if the widest inputs of the block are among those of the groups.

        The solver takes most for them, and only around them is memory that a pass has freed given
        back: the next stage would have the system clear the same pages again (measured: 0.12 s a
        block).
        """
        linears = linear_layers(self.solver.block)
        inputs = {name: weight_matrix(each).shape[1] for name, each in linears.items()}
        if any(inputs[group[0]] == max(inputs.values()) for group in self.groups):
            trim_heap()
