"""Apply transforms to the layers of a block before they are solved: block, weights and Hessians."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quant.blocks import LINEAR_TYPES, linear_layers, set_weight_matrix, weight_matrix
from quant.calibrate.neighbours import Maker, Names, find_neighbours
from quant.errors import QuantizationError, failures_of
from quant.hessian import Hessian
from quant.input_operator import InputOperator, KeptChange, attach
from quant.transforms.base import (
    ALWAYS,
    NEVER,
    Change,
    Group,
    Transform,
    applied_note,
    kept_note,
    read_note,
    unapplied_note,
)
from quant.transforms.fold import fold


@dataclass(frozen=True)
class Changed:
    """What was done to a group of layers with one input.

    changes  in this order, of the input's coordinates; block and weights have them already.
    notes    for the records of the layers.
    """

    changes: tuple[Change, ...] = ()
    notes: list[str] = field(default_factory=list)

    def hessian(self, matrix: Tensor) -> Tensor:
        """A Hessian [in, in] of the untransformed input in the coordinates that layers have now."""
        for change in self.changes:
            matrix = change.hessian(matrix)
        return matrix


UNCHANGED = Changed()


class Noted(Protocol):
    """A layer's result, as far as transforms go."""

    @property
    def transforms(self) -> list[str]: ...


def require_changes(transforms: Sequence[tuple[Transform, Any]], layers: Sequence[Noted]) -> None:
    """Raise QuantizationError for a transform that changed no layer of the whole model.

    Its figures would be those without it, under its name.
    """
    notes = [read_note(note) for layer in layers for note in layer.transforms]
    for transform, _ in transforms:
        reasons = {why for name, why in notes if name == transform.name}
        if None not in reasons:
            why = "; ".join(sorted(filter(None, reasons))) or "no layer ran"
            raise QuantizationError(
                f"transform {transform.name} changed no layer of this model ({why}): leave it out, "
                "let it keep its changes in front of the layers, or use a model whose norms feed "
                "its layers alone."
            )


@dataclass(frozen=True)
class BlockTransformer:
    """Transforms the layers of one block.

    name    of the block in the model.
    solved  layers of the block that are quantized already, by their full names.
    inputs  hidden states of one batch of the calibration data.
    run     gives what the block makes of them.
    """

    transforms: Sequence[tuple[Transform, Any]]
    model: nn.Module
    block: nn.Module
    name: str
    solved: frozenset[str]
    inputs: Tensor
    run: Callable[[], Tensor]

    def apply(self, hessians: Mapping[Names, Hessian]) -> dict[Names, Changed]:
        """Change the coordinates of groups whose input one module makes for them alone, and others.

        Where no module takes the change in, or none shall, it is kept in front of the layers.
        The Hessians stay those of the untransformed inputs (see Changed.hessian). Raises
        QuantizationError, naming the block, when its output is no longer what it was.
        """
        found = find_neighbours(self.block, list(hessians), self.run)
        done = {
            names: self._group(names, hessian, found.makers[names])
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

    def _group(self, names: Names, hessian: Hessian, maker: Maker | str) -> Changed:
        maker = maker if isinstance(maker, str) else self._changeable(names, maker)
        may_keep = any(each.keeps(options) != NEVER for each, options in self.transforms)
        if isinstance(maker, str) and (not may_keep or hessian.tokens == 0):
            return Changed(notes=[unapplied_note(each.name, maker) for each, _ in self.transforms])
        linears = linear_layers(self.block)
        matrix = hessian.matrix()
        changes: list[Change] = []
        notes: list[str] = []
        for transform, options in self.transforms:
            weights = tuple(_working(weight_matrix(linears[name])) for name in names)
            layers = tuple(f"{self.name}.{name}" for name in names)
            with failures_of(f"{layers[0]}: transform {transform.name}"):
                change = transform.change(Group(hessian.layer, layers, weights, matrix), options)
                if change is None:
                    notes.append(unapplied_note(transform.name, "it finds nothing to change"))
                    continue
                change, kept, note = self._apply(
                    transform, transform.keeps(options), change, names, maker
                )
                notes.append(note)
                if change is None:
                    continue
                if kept:  # a module before it would change x, not x T
                    maker = f"{transform.name} is kept in front of it"
                for name, layer, weight in zip(names, layers, weights, strict=True):
                    set_weight_matrix(linears[name], change.weight(weight), layer)
                matrix = change.hessian(matrix)
                changes.append(change)
        return Changed(tuple(changes), notes)

    def _apply(
        self, transform: Transform, keep: str, change: Change, names: Names, maker: Maker | str
    ) -> tuple[Change | None, bool, str]:
        """Make x T of the input of layers: the change that was made, whether it is kept, a note.

        The change is None when nothing could be done.
        """
        why = maker if isinstance(maker, str) else f"{maker.name} cannot take the change in"
        taker = None if keep == ALWAYS or isinstance(maker, str) else maker
        if taker is not None and fold(taker.module, change, taker.args, taker.kwargs):
            return change, False, applied_note(transform.name, taker.name)
        if keep == NEVER:
            return None, False, unapplied_note(transform.name, why)
        linears = [linear_layers(self.block)[name] for name in names]
        if self._shared(linears):
            return None, False, unapplied_note(transform.name, "it shares parameters with others")
        tensors = _tensors(transform, change)
        for linear in linears:
            attach(linear, InputOperator([KeptChange(transform, tensors)]))
        # The very change that the artifact will hold, whatever rounding its tensors took.
        made = KeptChange(transform, tensors).change
        return made, True, kept_note(transform.name, names)

    def _changeable(self, names: Names, maker: Maker) -> Maker | str:
        """The maker, unless somebody else would feel the change of its parameters or weights."""
        if next(maker.module.parameters(), None) is None:
            return f"{maker.name}, which makes its input, has no parameters"
        if isinstance(maker.module, LINEAR_TYPES) and f"{self.name}.{maker.name}" in self.solved:
            return f"{maker.name}, which makes its input, is quantized already"
        linears = linear_layers(self.block)
        if self._shared([maker.module, *(linears[name] for name in names)]):
            return f"it or {maker.name}, which makes its input, shares parameters with others"
        return maker

    def _shared(self, modules: Sequence[nn.Module]) -> bool:
        """Whether parameters of these modules belong to others too, or to two of them."""
        ours = {id(value) for module in modules for value in module.parameters()}
        held = [
            id(value)
            for _, module in self.model.named_modules(remove_duplicate=False)
            for value in module._parameters.values()
            if id(value) in ours
        ]
        return len(held) > len(ours)

    def _require_same(self, before: Tensor, after: Tensor) -> None:
        """Raise unless the block's output is what it was, as far as rounding allows."""
        eps = torch.finfo(before.dtype).eps
        size, made = _norm(before), _norm(before.double() - self.inputs.double())
        apart = _norm(after.double() - before.double())
        # What a block adds may be small beside what passes through it; both round.
        allowed = eps**0.5 * made + 4 * eps * size
        if not apart <= allowed:
            raise QuantizationError(
                f"{self.name}: its output moved by {apart:.3g} (allowed {allowed:.3g}, of "
                f"{size:.3g}) when {self._names} changed the inputs of its layers, so the "
                "block depends on them in a way that was not seen; quantize this model without "
                "transforms, and report the model class."
            )


@torch.no_grad()
def restore(
    model: nn.Module, beside: Mapping[str, Tensor], operators: Mapping[str, InputOperator]
) -> None:
    """Put back what transforms changed beside the weights of layers, tensors by full name."""
    for name, value in beside.items():
        path, _, attribute = name.rpartition(".")
        getattr(model.get_submodule(path), attribute).copy_(value)
    for layer, operator in operators.items():
        attach(model.get_submodule(layer), operator)


def _tensors(transform: Transform, change: Any) -> dict[str, Tensor]:
    """What a change is made of; QuantizationError for one that does not say it."""
    say = getattr(change, "tensors", None)
    tensors = say() if callable(say) else None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise QuantizationError(
            f"transform {transform.name} keeps its changes, but its {type(change).__name__} does "
            "not say the tensors that it is made of: give it tensors() -> {name: tensor}."
        )
    return tensors


def _working(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float64 else weight.float()


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.double()))
