"""The reference stream: the full-precision model's hidden states, beside those of the quantized.

Some solvers (Solver.needs_reference) compare a layer's inputs x~ behind quantized layers with the
inputs x of the same tokens in the full-precision model. Capture.reference holds that model's hidden
states at the input of the current block. They pass through the original block: before it is
quantized or, with stages (true_sequential), through its original parameters, put back for the time.
Nothing in it depends on what is solved, so that one pass gives what the layers of all stages read,
as far as that fits in quant.tiling.MEMO_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from quant.blocks import Blocks, linear_layers, weight_matrix
from quant.calibrate.activations import Activations
from quant.calibrate.capture import Call, Capture, run_block
from quant.calibrate.collect import Collected, require_finite, require_fits
from quant.calibrate.neighbours import Names
from quant.calibrate.source import BlockSource
from quant.calibrate.structure import BlockStructure
from quant.calibrate.windows import Batch
from quant.config import QuantizationConfig
from quant.errors import ModelStructureError
from quant.experts import routed_groups
from quant.input_operator import attach, detach, operator_of
from quant.tiling import MEMO_BYTES

Inputs = dict[Names, list[Tensor]]  # of layers by group, as many tensors as they run times


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


@dataclass
class ReferenceBlock:
    """The original of a block that the reference stream passes through.

    calls   arguments of the block, by batch.
    hidden  hidden states of the full-precision model at the block's input, by batch.
    advances
            whether the stream goes on to another block.
    kept    copies of the original parameters by name; None while the block itself is unchanged.
    """

    block: nn.Module
    name: str
    structure: BlockStructure
    calls: Sequence[Call]
    hidden: Activations
    advances: bool
    kept: Mapping[str, Tensor] | None = None
    _solved: set[Names] = field(default_factory=set)
    _inputs: dict[int, Inputs] = field(default_factory=dict)  # of later stages, by batch
    _left: int = field(default_factory=lambda: MEMO_BYTES)
    _copies: bool = False  # the block changes what its layers read in place

    def finish(self, groups: Iterable[Names]) -> None:
        """Take the layers of these groups as solved: nobody asks for their inputs again."""
        self._solved.update(groups)

    def inputs(self, position: int, batch: Batch, groups: Sequence[Names]) -> Inputs:
        """Return what layers that are not solved read for a batch; it can be asked for once.

        A pass for all groups that are left, or for the last of them, replaces the hidden states of
        the batch by the block's output.
        """
        if position not in self._inputs:
            hidden = self.hidden[position]
            rest = [group for group in self.structure.groups if group not in self._solved]
            fits = self._room(hidden, [group for group in rest if group not in groups])
            advance = self.advances and fits
            asked = rest if fits else groups
            self._inputs[position], output = self._pass(position, hidden, asked, advance)
            if advance:
                self.put(position, batch, output)
        found = self._inputs[position]
        wanted = {group: found.pop(group) for group in groups}
        if not found:
            del self._inputs[position]
        return wanted

    def pass_on(self, position: int, batch: Batch) -> None:
        """Replace the hidden states of a batch by the block's output."""
        self.put(position, batch, self._pass(position, self.hidden[position], (), True)[1])

    def _room(self, hidden: Tensor, groups: Sequence[Names]) -> bool:
        """Whether there is room for inputs of these groups, which is theirs from now on."""
        linears = linear_layers(self.block)
        inputs = sum(weight_matrix(linears[group[0]]).shape[1] for group in groups)
        size = inputs * (hidden.nbytes // hidden.shape[-1])
        if size > self._left:
            return False
        self._left -= size
        return True

    def _pass(
        self, position: int, hidden: Tensor, groups: Sequence[Names], whole: bool
    ) -> tuple[Inputs, Tensor]:
        """Return what layers of these groups read, and the output of the block (whole).

        If not `whole`, the pass ends where the last layer reads, and there is no output.
        """
        found: Inputs = {group: [] for group in groups}
        seen: list[tuple[Tensor, int]] = []
        stops = self.structure.single_pass and not whole

        def look(group: Names) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def read(_: nn.Module, args: tuple[Any, ...]) -> None:
                given = args[0].detach()
                memory = given.untyped_storage()
                part = memory.nbytes() > given.nbytes
                if self._copies or part or memory.data_ptr() == hidden.untyped_storage().data_ptr():
                    given = given.clone()
                else:
                    seen.append((given, given._version))
                found[group].append(given)
                if stops and all(found.values()):
                    raise Collected

            return read

        linears, output = linear_layers(self.block), hidden
        with ExitStack() as attached, suppress(Collected), self._original():
            for group in groups:
                handle = linears[group[0]].register_forward_pre_hook(look(group))
                attached.callback(handle.remove)
            output = run_block(self.block, self.structure, self.calls[position], hidden)
        if any(given._version != version for given, version in seen):
            self._copies = True
            return self._pass(position, hidden, groups, whole)
        return found, output

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
        index + 1 < len(source.blocks),
        kept,
    )
