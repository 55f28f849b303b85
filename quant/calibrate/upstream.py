"""Fold a scaling of a group's input into a linear layer further in front.

Between that layer and the input stand operators without parameters: the product of a gated MLP,
attention, which mixes values, or an activation function. Some of them pass scales on (x = a * u,
the mean of values, ReLU), others do not (GELU). Neither names nor classes tell, so a scaling is
tried: it is applied to the weights, the block runs, and all parameters are restored unless exactly
the input of the group has changed, as it should.

Which row of the layer makes which input is known where both have one size. Elsewhere (grouped
queries share values; q, k and v are one matrix) it is read from the first token of a window: it
attends to itself alone, so whatever happens to queries and keys its input is its own value. Rows
are multiplied by powers of two, digit by digit of their numbers, and the inputs show the digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quant.blocks import linear_layers, weight_matrix
from quant.calibrate.neighbours import Names
from quant.grid import working
from quant.transforms.base import Change, Scaling
from quant.transforms.fold import same


@dataclass(frozen=True)
class Source:
    """A linear layer in front, and its rows: input j is made by row rows[j], int64 [in]."""

    name: str
    module: nn.Module
    rows: Tensor

    @property
    def tied(self) -> Tensor | None:
        """The rows, where inputs share one and so need the same scale; None if none do."""
        return None if len(self.rows.unique()) == len(self.rows) else self.rows


@dataclass(frozen=True)
class Upstream:
    """Looks for sources in one block and changes them.

    run     run() returns the output of the block for one calibration batch.
    tokens  (windows, tokens of each) of that batch.
    taken   taken(name of a linear layer) -> whether it may not be changed.
    """

    block: nn.Module
    run: Callable[[], Tensor]
    tokens: tuple[int, int]
    taken: Callable[[str], bool]

    @torch.no_grad()
    def find(self, names: Names) -> Source | None:
        """Return a layer that takes scalings of the group's input; the latest that does."""
        seen = self._observe()
        order = list(seen.inputs)
        if names[0] not in order or names[0] in seen.repeated:
            return None
        for name in reversed(order[: order.index(names[0])]):
            if name in seen.repeated or self.taken(name):
                continue
            rows = self._rows(name, names[0], seen.inputs[names[0]])
            if rows is None:
                continue
            source = Source(name, linear_layers(self.block)[name], rows)
            trial = Scaling(2.0 ** (rows % 4 - 1).double())  # rounds nowhere
            if self._changed(source, trial, names, seen, same, keep=False):
                return source
        return None

    @torch.no_grad()
    def fold(self, source: Source, change: Change, names: Names) -> bool:
        """Change the rows of `source` so that x T reaches the group; restore them if it does not.

        The weights of the group's layers stay as they are.
        """
        # What is left of a row behind a ReLU may be small beside the rounding of its sum.
        return self._changed(source, change, names, self._observe(), _close_columns, keep=True)

    def _changed(
        self,
        source: Source,
        change: Change,
        names: Names,
        seen: _Seen,
        alike: Callable[[Tensor, Tensor], bool],
        *,
        keep: bool,
    ) -> bool:
        """Try a change; afterwards only the source is changed, if the try succeeds and `keep`."""
        linears = linear_layers(self.block)
        factors = _factors(change, source.rows, len(weight_matrix(source.module)))
        if factors is None:
            return False
        with _restored([source.module]) as keep_source:
            _scale_rows(source.module, factors)
            with _restored([linears[name] for name in names]):
                for name in names:
                    weight = weight_matrix(linears[name])
                    weight.copy_(change.weight(working(weight)))
                after = self._observe()
            expected = change.inputs(seen.inputs[names[0]])
            good = alike(after.inputs[names[0]], expected) and seen.agrees(after, names)
            if good and keep:
                keep_source()
        return good

    def _rows(self, name: str, reader: str, x: Tensor) -> Tensor | None:
        """Return the row of layer `name` that makes each input of `reader`; None if none does."""
        module = linear_layers(self.block)[name]
        outputs, inputs = len(weight_matrix(module)), x.shape[-1]
        if outputs == inputs:
            return torch.arange(inputs, device=x.device)
        count = self.tokens[0] * self.tokens[1]
        if (inputs % outputs and outputs < inputs) or x.numel() != count * inputs:
            return None
        # Queries and keys are multiplied, too, and float16 ends at 65504.
        base = 4 if x.dtype == torch.float16 else 16
        numbers = torch.arange(outputs, device=x.device)
        first = x.reshape(*self.tokens, inputs)[:, 0].double()
        window = first.abs().argmax(dim=0, keepdim=True)
        rows, place = torch.zeros(inputs, dtype=torch.int64, device=x.device), 1
        while place < outputs:
            with _restored([module]):
                _scale_rows(module, 2.0 ** (1 + numbers // place % base).double())
                moved = self._observe().inputs[reader].reshape(*self.tokens, inputs)[:, 0]
            powers = (moved.double() / first).gather(0, window)[0].log2()
            digits = powers.round()
            if not bool(((powers - digits).abs() < 1e-2).all() and (digits >= 1).all()):
                return None  # false for NaN
            rows += (digits.long() - 1) * place
            place *= base
        return rows if bool((rows < outputs).all()) else None

    def _observe(self) -> _Seen:
        """Run the block once and copy the inputs of its linear layers."""
        inputs: dict[str, Tensor] = {}
        repeated: set[str] = set()

        def reader(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def read(_: nn.Module, args: tuple[Any, ...]) -> None:
                if name in inputs:
                    repeated.add(name)
                inputs[name] = args[0].detach().clone()

            return read

        with ExitStack() as attached:
            for name, module in linear_layers(self.block).items():
                attached.callback(module.register_forward_pre_hook(reader(name)).remove)
            output = self.run()
        return _Seen(inputs, output, frozenset(repeated))


@dataclass(frozen=True)
class _Seen:
    """One pass: inputs of the linear layers in the order of execution, and the block's output.

    repeated  layers that ran more than once.
    """

    inputs: dict[str, Tensor]
    output: Tensor
    repeated: frozenset[str]

    def agrees(self, after: _Seen, names: Names) -> bool:
        """Whether everything but the inputs of these layers stayed as it was, within rounding."""
        others = [name for name in self.inputs if name not in names]
        pairs = [(after.inputs[name], self.inputs[name]) for name in others]
        return all(_close(*pair) for pair in [*pairs, (after.output, self.output)])


def _close(found: Tensor, expected: Tensor) -> bool:
    norm = torch.linalg.vector_norm
    allowed = torch.finfo(found.dtype).eps ** 0.5 * norm(expected.double())
    return bool(norm(found.double() - expected.double()) <= allowed)  # false for NaN


def _close_columns(found: Tensor, expected: Tensor) -> bool:
    """As `_close`, with all columns made equally large."""
    most = expected.flatten(0, -2).abs().amax(dim=0)
    most = most.masked_fill(most == 0, 1)
    return _close(found / most.to(found), expected / most)


def _factors(change: Change, rows: Tensor, outputs: int) -> Tensor | None:
    """Return float64 [outputs], by which rows of the source are multiplied; None if they differ.

    Rows that make no input of the group get 1.
    """
    wanted = change.inputs(torch.ones(len(rows), dtype=torch.float64, device=rows.device))
    factors = torch.ones(outputs, dtype=torch.float64, device=rows.device)
    factors[rows] = wanted
    return factors if torch.equal(factors[rows], wanted) else None


def _scale_rows(module: nn.Module, factors: Tensor) -> None:
    weight = weight_matrix(module)
    weight.copy_(weight.double() * factors[:, None])
    if module.bias is not None:
        module.bias.detach().copy_(module.bias.double() * factors)  # type: ignore[operator]


@contextmanager
def _restored(modules: list[nn.Module]) -> Iterator[Callable[[], None]]:
    """Restore the parameters of the modules at the end, unless the function given is called."""
    before = [(value, value.detach().clone()) for each in modules for value in each.parameters()]
    kept = []
    try:
        yield lambda: kept.append(True)
    finally:
        if not kept:
            for value, old in before:
                value.detach().copy_(old)
