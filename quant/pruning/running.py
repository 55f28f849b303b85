"""Running: a model with all its blocks in memory, on which the parts to remove are scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from quant.blocks import linear_layers, weight_matrix
from quant.calibrate.capture import Capture, capture, run_block
from quant.calibrate.source import BlockSource
from quant.calibrate.structure import ModelStructure
from quant.coverage import coverage
from quant.memory.shapes import model_shape
from quant.pruning.budget import Budget, Shapes, budget_of
from quant.scheme import Scheme


@dataclass(frozen=True)
class Running:
    """A model whose blocks can be run one by one, on some calibration windows.

    scheme  to which the layers that stay will be rounded.
    """

    source: BlockSource
    structure: ModelStructure
    scheme: Scheme
    captured: Capture

    def __len__(self) -> int:
        return len(self.source.blocks)

    @cached_property
    def layers(self) -> list[Shapes]:
        """(outputs, inputs) of the linear layers of every block."""
        return [
            [
                (outputs, inputs)
                for outputs, inputs in (
                    weight_matrix(m).shape for m in linear_layers(block).values()
                )
            ]
            for block in self.source.blocks.modules
        ]

    def budget(self, bits: float) -> Budget:
        """Return the budget of so many stored bits a weight."""
        found, shape = coverage(self.source.blocks), model_shape(self.source.model)
        return budget_of(bits, found, shape, self.layers, self.scheme)

    def start(self) -> list[Tensor]:
        """Return the hidden states [1, tokens, hidden] before the first block, by window."""
        hidden = self.captured.hidden
        return [hidden[index] for index in range(len(self.captured.calls[0]))]

    def through(self, index: int, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Return the hidden states after block `index`, of those before it, by window."""
        block, structure = self.source.blocks.modules[index], self.structure.structures[index]
        calls = self.captured.calls[index]
        return [run_block(block, structure, *pair) for pair in zip(calls, hidden, strict=True)]

    def watched(
        self, index: int, hidden: Sequence[Tensor], layers: Sequence[str]
    ) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """Return also the inputs [1, tokens, in] of layers, by full name and window."""
        seen: dict[str, list[Tensor]] = {name: [] for name in layers}
        handles = [
            self.source.model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: seen[name].append(args[0])
            )
            for name in layers
        ]
        try:
            return self.through(index, hidden), seen
        finally:
            for handle in handles:
                handle.remove()

    def end(self) -> list[Tensor]:
        """Return the hidden states after the last block of the whole model, by window."""
        hidden = self.start()
        for index in range(len(self)):
            hidden = self.through(index, hidden)
        return hidden


def running_on(
    source: BlockSource, structure: ModelStructure, scheme: Scheme, windows: Sequence[Tensor]
) -> Running:
    """Return a model ready to run on windows [tokens], whose blocks are in place."""
    batches = [window[None] for window in windows]
    return Running(source, structure, scheme, capture(source.model, structure, batches))


def lost(whole: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return 1 - the mean over tokens of the cosine between hidden states [1, tokens, hidden]."""
    pairs = [
        cosine_similarity(a.double(), b.double(), dim=-1) for a, b in zip(whole, other, strict=True)
    ]
    return 1 - sum(float(each.sum()) for each in pairs) / sum(each.numel() for each in pairs)


@contextmanager
def masked(layer: nn.Module, kept: Tensor) -> Iterator[None]:
    """Give a layer zeros for all its inputs but those of these numbers."""

    def mask(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        inputs = args[0].new_zeros(args[0].shape)
        inputs[..., kept] = args[0][..., kept]
        return (inputs, *args[1:])

    handle = layer.register_forward_pre_hook(mask)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def resident(source: BlockSource) -> Iterator[None]:
    """Load all blocks of a source, and release them afterwards."""
    held = range(len(source.blocks))
    try:
        for index in held:
            source.attach(index, source.fetch(index))
        yield
    finally:
        for index in held:
            source.release(index)
