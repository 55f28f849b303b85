"""Apply transforms to the layers of a block before they are solved: parameters and Hessians."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from quant.blocks import linear_layers, set_weight_matrix, weight_matrix
from quant.budget import AnyScheme
from quant.calibrate.neighbours import (
    Maker,
    Names,
    Neighbours,
    changeable_neighbours,
    parameter_holders,
    shared,
)
from quant.calibrate.statistics import InputStatistics
from quant.calibrate.upstream import Source, Upstream
from quant.errors import QuantizationError, failures_of
from quant.hessian import Hessian
from quant.input_operator import InputOperator, KeptChange, attach
from quant.transforms.base import (
    ALWAYS,
    NEVER,
    Change,
    Group,
    Shifting,
    Statistics,
    Transform,
)
from quant.transforms.fold import fold
from quant.transforms.foreseen import cannot_take, changes_nothing
from quant.transforms.notes import applied_note, kept_note, read_note, unapplied_note


@dataclass(frozen=True)
class Changed:
    """The changes of a group of layers with one input.

    changes  changes of the input's coordinates, in order, already applied to block and weights.
    notes    one note per transform, for the records of the layers.
    """

    changes: tuple[Change, ...] = ()
    notes: list[str] = field(default_factory=list)

    def hessian(self, matrix: Tensor) -> Tensor:
        """Convert a Hessian [in, in] of the original input to the layers' current coordinates."""
        for change in self.changes:
            matrix = change.hessian(matrix)
        return matrix

    def drift(self, matrix: Tensor) -> Tensor:
        """Convert a drift D [in, in] (Hessian.take_drift) likewise: T^T D T.

        D is not symmetric, which a change's own `hessian` may rely on. No change shifts inputs
        here (QuantizationConfig refuses it).
        """
        for change in self.changes:
            matrix = change.inputs(change.inputs(matrix).T).T.to(matrix.dtype)
        return matrix


UNCHANGED = Changed()
NOTHING_TO_CHANGE = "it finds nothing to change"
NO_LAYER = "no layer further in front takes a scaling in"


class Noted(Protocol):
    """A layer's result with its notes of transforms."""

    @property
    def transforms(self) -> list[str]: ...


def require_changes(
    transforms: Sequence[tuple[Transform, Any]],
    layers: Sequence[Noted],
    unless: str | None = None,
) -> None:
    """Raise QuantizationError for a transform that changed none of these layers.

    The figures would be the same as without the transform, under its name. unless: a reason that
    lets a transform pass if it holds for one of the layers.
    """
    notes = [read_note(note) for layer in layers for note in layer.transforms]
    for transform, options in transforms:
        reasons = {why for name, why in notes if name == transform.name}
        if None in reasons or unless in reasons:
            continue
        said = changes_nothing(options, sorted(filter(None, reasons)))
        raise QuantizationError(f"transform {transform.name} {said}.")


def require_first_changes(
    transforms: Sequence[tuple[Transform, Any]],
    layers: Sequence[Noted],
    blocks: Sequence[nn.Module],
) -> None:
    """As `require_changes`, after the first of blocks that are alike: the others do not differ.

    What finds nothing to change in one block may find it in another.
    """
    if len({frozenset(linear_layers(block)) for block in blocks}) == 1:
        require_changes(transforms, layers, unless=NOTHING_TO_CHANGE)


@dataclass(frozen=True)
class BlockTransformer:
    """Transforms the layers of one block.

    scheme  scheme of the model, whose `of` is that of a layer.
    name    name of the block in the model.
    solved  full names of the layers of the block that are already quantized.
    inputs  hidden states [windows, tokens, hidden] of one calibration batch.
    run     run() returns the output of the block for these inputs.
    """

    transforms: Sequence[tuple[Transform, Any]]
    scheme: AnyScheme
    model: nn.Module
    block: nn.Module
    name: str
    solved: frozenset[str]
    inputs: Tensor
    run: Callable[[], Tensor]

    def apply(
        self,
        hessians: Mapping[Names, Hessian],
        statistics: Mapping[Names, InputStatistics],
    ) -> dict[Names, Changed]:
        """Change the coordinates of every group whose input can be changed.

        If no module can absorb the change, or the transform requests it, the change is kept in
        front of the layers. `hessians` stay those of the untransformed inputs (see
        Changed.hessian), and so do `statistics`, which are empty if no transform reads them. Raises
        QuantizationError, naming the block, if its output changes beyond rounding.
        """
        solved = lambda name: f"{self.name}.{name}" in self.solved  # noqa: E731
        found = changeable_neighbours(self._holders, self.block, list(hessians), self.run, solved)
        done = {
            names: self._group(names, hessian, statistics.get(names), found)
            for names, hessian in hessians.items()
        }
        if any(changed.changes for changed in done.values()):
            with failures_of(f"{self.name}, changed by {self._names},"):
                output = self.run()
            self._require_same(found.output, output)
        return done

    @property
    def _names(self) -> str:
        return ", ".join(transform.name for transform, _ in self.transforms)

    def _group(
        self,
        names: Names,
        hessian: Hessian,
        statistics: InputStatistics | None,
        found: Neighbours,
    ) -> Changed:
        maker = found.makers[names]
        if isinstance(maker, str) and hessian.tokens == 0:
            return Changed(notes=[unapplied_note(each.name, maker) for each, _ in self.transforms])
        linears = linear_layers(self.block)
        layers = tuple(f"{self.name}.{name}" for name in names)
        matrix = hessian.matrix()
        changes: list[tuple[str, Change]] = []
        notes: list[str] = []
        further = not self._shared([linears[name] for name in names])
        last = len(self.transforms) - 1
        for at, (transform, options) in enumerate(self.transforms):
            keep = transform.keeps(options)
            taker: Maker | Source | str = maker
            if isinstance(maker, str) and further and transform.folds_through and keep != ALWAYS:
                source = self._upstream.find(names, found.sources[names])
                taker = source or f"{maker}, and {NO_LAYER}"
            if isinstance(taker, str) and keep == NEVER:
                notes.append(unapplied_note(transform.name, taker))
                continue
            weights = tuple(_working(weight_matrix(linears[name])) for name in names)
            with failures_of(f"{layers[0]}: transform {transform.name}"):
                assert transform.change is not None  # the residual stream is rotated before
                group = Group(
                    hessian.layer, layers, weights, matrix,
                    self.scheme,  # type: ignore[arg-type]  # transforms have grids
                    _carried(transform, statistics, changes),
                    taker.tied if isinstance(taker, Source) else None,
                    2 * hessian.tokens / hessian.sequences,
                    all(linears[name].bias is not None for name in names),
                )  # fmt: skip
                change = transform.change(group, options)
                if change is None:
                    notes.append(unapplied_note(transform.name, NOTHING_TO_CHANGE))
                    continue
                change, kept, note = self._apply(transform, keep, change, names, taker)
                notes.append(note)
                if change is None:
                    continue
                if kept:  # folding into a module would change x, but the layers now read x T
                    further = False
                    maker = f"{transform.name} is kept in front of it"
                for name, layer, weight in zip(names, layers, weights, strict=True):
                    if isinstance(change, Shifting):
                        linears[name].bias.detach().add_(change.bias(weight))  # type: ignore[operator]
                    set_weight_matrix(linears[name], change.weight(weight), layer)
                if at < last:
                    matrix = change.hessian(matrix)
                changes.append((transform.name, change))
        return Changed(tuple(change for _, change in changes), notes)

    def _apply(
        self,
        transform: Transform,
        keep: str,
        change: Change,
        names: Names,
        taker: Maker | Source | str,
    ) -> tuple[Change | None, bool, str]:
        """Apply one change to the input of layers: return the change, whether it is kept, a note.

        The change is None if it could not be applied.
        """
        why = taker if isinstance(taker, str) else cannot_take(taker.name)
        if keep != ALWAYS and not isinstance(taker, str) and self._fold(taker, change, names):
            return change, False, applied_note(transform.name, taker.name)
        if keep == NEVER:
            return None, False, unapplied_note(transform.name, why)
        linears = [linear_layers(self.block)[name] for name in names]
        if self._shared(linears):
            return None, False, unapplied_note(transform.name, "it shares parameters with others")
        tensors = tensors_of(transform, change)
        for linear in linears:
            attach(linear, InputOperator([KeptChange(transform, tensors)]))
        # The change as it will be stored, with the rounding of its tensors.
        made = cast(Change, KeptChange(transform, tensors).change)
        return made, True, kept_note(transform.name, names)

    def _fold(self, taker: Maker | Source, change: Change, names: Names) -> bool:
        if isinstance(taker, Source):
            return self._upstream.fold(taker, change, names)
        return fold(taker.module, change, taker.args, taker.kwargs)

    @property
    def _upstream(self) -> Upstream:
        windows, tokens = self.inputs.shape[:2]
        return Upstream(self.block, self.run, (windows, tokens), self._taken)

    def _taken(self, name: str) -> bool:
        """Whether a linear layer of the block may not be changed."""
        if f"{self.name}.{name}" in self.solved:
            return True
        return self._shared([linear_layers(self.block)[name]])

    def _shared(self, modules: Sequence[nn.Module]) -> bool:
        return shared(self._holders, modules)

    @cached_property
    def _holders(self) -> Counter[int]:
        return parameter_holders(self.model)

    def _require_same(self, before: Tensor, after: Tensor) -> None:
        """Raise QuantizationError unless the block's output is the same within rounding."""
        eps = torch.finfo(before.dtype).eps
        size, made = _norm(before), _norm(before.double() - self.inputs.double())
        apart = _norm(after.double() - before.double())
        # The block's own contribution may be small compared with the residual; both round.
        allowed = eps**0.5 * made + 4 * eps * size
        if not apart <= allowed:
            raise QuantizationError(
                f"{self.name}: its output moved by {apart:.3g} (allowed {allowed:.3g}, of "
                f"{size:.3g}) when {self._names} changed the inputs of its layers, so the "
                "block depends on them in a way that was not detected; quantize this model without "
                "transforms, and report the model class."
            )


@torch.no_grad()
def restore(
    model: nn.Module, beside: Mapping[str, Tensor], operators: Mapping[str, InputOperator]
) -> None:
    """Restore the parameters and operators that transforms changed, tensors by full name."""
    for name, value in beside.items():
        path, _, attribute = name.rpartition(".")
        getattr(model.get_submodule(path), attribute).copy_(value)
    for layer, operator in operators.items():
        attach(model.get_submodule(layer), operator)


def tensors_of(transform: Transform, change: Any) -> dict[str, Tensor]:
    """Return the tensors that define a change; QuantizationError if it does not provide them."""
    say = getattr(change, "tensors", None)
    tensors = say() if callable(say) else None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise QuantizationError(
            f"transform {transform.name} keeps its changes, but its {type(change).__name__} does "
            "not provide its tensors: add a method tensors() -> {name: tensor}."
        )
    return tensors


def _carried(
    reader: Transform, collected: InputStatistics | None, changes: Sequence[tuple[str, Change]]
) -> Statistics | None:
    """Return the statistics of the input after `changes`, for a transform that reads them."""
    if not reader.reads_statistics:
        return None
    assert collected is not None  # the stream collects them if a transform reads them
    found = collected.result()
    for name, change in changes:
        carry = getattr(change, "statistics", None)
        if carry is None:
            raise QuantizationError(
                f"transform {reader.name} reads statistics of inputs, which are unknown after "
                f"{name}: apply {reader.name} before {name}, or leave one of them out."
            )
        found = carry(found)
    return found


def _working(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float64 else weight.float()


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.double()))
