"""The reference stream: the full-precision model's hidden states, beside those of the quantized.

Some solvers (Solver.needs_reference) compare a layer's inputs x~ behind quantized layers with the
inputs x of the same tokens in the full-precision model. Capture.reference holds that model's hidden
states at the input of the current block. They pass through the original block: before it is
quantized or, with stages (true_sequential), through its original parameters, put back for the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from torch import Tensor, nn

from quant.blocks import Blocks, linear_layers, weight_matrix
from quant.calibrate.activations import Activations
from quant.calibrate.capture import Call, Capture, run_block
from quant.calibrate.collect import Collected, require_finite, require_fits
from quant.calibrate.memo import Memo
from quant.calibrate.source import BlockSource
from quant.calibrate.structure import BlockStructure
from quant.calibrate.windows import Batch
from quant.config import QuantizationConfig
from quant.errors import ModelStructureError
from quant.experts import routed_groups
from quant.input_operator import attach, detach, operator_of


def require_one_stream(blocks: Blocks, config: QuantizationConfig) -> None:
    """Raise ModelStructureError for a mixture of experts if the solver needs the reference stream.

    There a token may go to other experts, and what an expert reads has no counterpart.
    """
    if not config.solver.needs_reference:
        return
    for index, block in enumerate(blocks.modules):
        for stage in routed_groups(block):
            raise ModelStructureError(
                f"{blocks.block_name(index)}.{stage[0][0]} is in a mixture of experts: method="
                f"{config.solver.name} compares its inputs with those in the full-precision model, "
                "which may route the same tokens to other experts; use method=gptq."
            )


@dataclass(frozen=True)
class ReferenceBlock:
    """The original of a block that the reference stream passes through.

    calls   arguments of the block, by batch.
    hidden  hidden states of the full-precision model at the block's input, by batch.
    memo    outputs that its parts gave in passes before.
    kept    copies of the original parameters by name; None while the block itself is unchanged.
    """

    block: nn.Module
    name: str
    structure: BlockStructure
    calls: Sequence[Call]
    hidden: Activations
    memo: Memo
    kept: Mapping[str, Tensor] | None = None

    def run(self, position: int, batch: Batch, advance: bool) -> None:
        """Run one batch through the original block; hooks see what its layers read.

        advance  replace the hidden states of the batch by the block's output. If not, a hook may
                 end the pass (Collected).
        """
        call, hidden = self.calls[position], self.hidden[position]
        with suppress(Collected), self._original(), self.memo.during(position, last=advance):
            output = run_block(self.block, self.structure, call, hidden)
            if advance:
                self.put(position, batch, output)

    def put(self, position: int, batch: Batch, output: Tensor) -> None:
        """Replace the hidden states of a batch by the output of the original block."""
        what = f"the output of {self.name} in full precision"
        require_finite(output, batch, what)
        dtype = weight_matrix(next(iter(linear_layers(self.block).values()))).dtype
        require_fits(output, dtype, batch, what)
        self.hidden[position] = output

    @contextmanager
    def _original(self) -> Iterator[None]:
        """Give the block its original parameters and no operators inside."""
        if self.kept is None:
            yield
            return
        operators = {
            module: operator
            for module in linear_layers(self.block).values()
            if (operator := operator_of(module)) is not None
        }
        detach(self.block)
        parameters = dict(self.block.named_parameters())
        current = {name: each.data for name, each in parameters.items()}
        for name, each in parameters.items():
            each.data = self.kept[name]
        try:
            yield
        finally:
            for name, each in parameters.items():
                each.data = current[name]
            for module, operator in operators.items():
                attach(module, operator)


def reference_block(
    source: BlockSource,
    index: int,
    structure: BlockStructure,
    captured: Capture,
    changes: bool = False,
) -> ReferenceBlock | None:
    """Return block `index`, which has its original values; None if the solver needs no reference.

    changes  whether it is changed while it is still needed, so that its parameters are copied.
    """
    if captured.reference is None:
        return None
    block, kept = source.blocks.modules[index], None
    if changes:
        kept = {name: each.detach().clone() for name, each in block.named_parameters()}
    return ReferenceBlock(
        block,
        source.blocks.block_name(index),
        structure,
        captured.calls[index],
        captured.reference,
        Memo(block, structure),
        kept,
    )
