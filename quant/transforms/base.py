"""What a transform is, and what a change of coordinates must be able to do.

A transform is one module of this package, of another package or of a user's folder that ends with
`TRANSFORM = Transform(...)`. Importing it must be cheap: torch is imported inside its functions.

Layers that read the same input x get x' = x T instead, with an invertible T, and weights with
W' x' = W x: a diagonal T scales columns, an orthogonal one rotates them. Somebody has to make x':
the module whose output x is (a norm or a linear layer), which is found by watching the block run
and whose own parameters take T in (quant.calibrate.neighbours, quant.transforms.fold). What the
model computes stays the same; what a solver has to round does not.

Where no module can take T in, or a transform wants it so, x' is made at run time: T is kept as an
operator in front of each of the layers (quant.input_operator), and the artifact holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from quant.solvers.base import (
    NoOptions,
    nothing_to_say,
    require_names,
    require_options_type,
)

if TYPE_CHECKING:
    from torch import Tensor

# When a change is kept in front of its layers: in no case, where no module takes it in, in all.
NEVER, WHERE_NEEDED, ALWAYS = "never", "where_needed", "always"
KEEP = (NEVER, WHERE_NEEDED, ALWAYS)

_NOT_APPLIED = "not applied: "


def applied_note(transform: str, maker: str) -> str:
    """What a layer's result says of a transform that `maker`, a module's name, took in."""
    return f"{transform} into {maker}"


def kept_note(transform: str, layers: Sequence[str]) -> str:
    """What a layer's result says of a transform whose change stands in front of these layers."""
    return f"{transform} kept in front of {', '.join(layers)}"


def unapplied_note(transform: str, why: str) -> str:
    """What a layer's result says of a transform that could not change its input."""
    return f"{transform} {_NOT_APPLIED}{why}"


def read_note(note: str) -> tuple[str, str | None]:
    """The transform's name in a note, and why it was not applied; None: it was."""
    name, _, rest = note.partition(" ")
    return name, rest.removeprefix(_NOT_APPLIED) if rest.startswith(_NOT_APPLIED) else None


@dataclass(frozen=True)
class Group:
    """The layers of a block that read one input, as a transform sees them.

    name     of the first layer, for errors.
    layers   their full names.
    weights  of every layer, [out, in], float32 (float64 if the model is), in the coordinates that
             transforms before this one left.
    hessian  [in, in] = 2/n * sum x x^T of their input in the same coordinates; its diagonal is the
             mean square of every input, times a constant.
    """

    name: str
    layers: tuple[str, ...]
    weights: tuple[Tensor, ...]
    hessian: Tensor


class Change(Protocol):
    """A change of coordinates x' = x T of the last dimension of the input of a group."""

    def inputs(self, x: Tensor) -> Tensor:
        """x T, for x [..., in]; of a wider dtype than x where only the caller should round."""

    def weight(self, weight: Tensor) -> Tensor:
        """W T^-T, so that W' x' = W x, for a weight [out, in]."""

    def hessian(self, matrix: Tensor) -> Tensor:
        """T^T H T: the Hessian of x', for H [in, in]."""


class Keepable(Change, Protocol):
    """A change that can be kept: it is made of tensors."""

    def tensors(self) -> dict[str, Tensor]:
        """All that it is made of, by names that are identifiers; they are stored as they are."""


@dataclass(frozen=True)
class Scaling:
    """x' = x / scale: input j is divided, column j of the weights multiplied, by scale[j] > 0.

    scale is float64 [in], or float32 once it is kept.
    """

    scale: Tensor

    @staticmethod
    def kept_bytes(inputs: int) -> int:
        return 4 * inputs

    @classmethod
    def rebuild(cls, tensors: Mapping[str, Tensor]) -> Scaling:
        return cls(tensors["scale"])

    def tensors(self) -> dict[str, Tensor]:
        return {"scale": self.scale.float()}

    def inputs(self, x: Tensor) -> Tensor:
        return x / self.scale.to(x.device)

    def weight(self, weight: Tensor) -> Tensor:
        return weight * self.scale.to(weight)

    def hessian(self, matrix: Tensor) -> Tensor:
        scale = self.scale.to(matrix)
        return matrix / (scale * scale[:, None])


def _never(_options: Any) -> str:
    return NEVER


def _a_matrix(inputs: int) -> int:
    return 4 * inputs * inputs


@dataclass(frozen=True)
class Transform:
    """A change of coordinates for the layers of a block, chosen before they are solved.

    Unless `keep` says otherwise a change is folded, or left where it cannot be.

    name, label, version, describe  as of a solver (quant.solvers.base.Solver).
    change   change(group: Group, options) -> Change, for every group of layers whose input can be
             changed; None leaves the group as it is. The Hessian comes from calibration, so a
             transform needs calibration data whatever the solver needs.
    options  frozen dataclass; it refuses what cannot be with a ValueError of one sentence.
    rebuild  rebuild(tensors) -> the change that these tensors of one stand for, in the types and on
             the device that they have. It is called in every pass of a layer, so it should compute
             nothing. None: changes can only be folded.
    keep     keep(options) -> "never", "where_needed" (no module takes the change in) or "always".
    kept_bytes  kept_bytes(inputs) -> bytes of the tensors of one kept change of so many inputs, at
             most, for the memory plan; of a float32 matrix [in, in] unless the spec says otherwise.
    """

    name: str
    label: str
    change: Callable[..., Change | None]
    options: type = NoOptions
    version: int = 1
    describe: Callable[[Any], list[str]] = nothing_to_say
    rebuild: Callable[[Mapping[str, Tensor]], Keepable] | None = None
    keep: Callable[[Any], str] = _never
    kept_bytes: Callable[[int], int] = _a_matrix

    def __post_init__(self) -> None:
        require_names(self.name, self.label, "transform")
        if not callable(self.change):
            raise ValueError(
                f"transform {self.name}: change={self.change!r} is no function; give it "
                "change(group, options) -> Change or None."
            )
        require_options_type(self.options, f"transform {self.name}")
        if self.rebuild is not None and not callable(self.rebuild):
            raise ValueError(
                f"transform {self.name}: rebuild={self.rebuild!r} is no function; give "
                "rebuild(tensors) -> Change, or None if changes are only folded."
            )

    def keeps(self, options: Any) -> str:
        """When changes are kept in front of layers; ValueError for what cannot be."""
        word = self.keep(options)
        if word not in KEEP:
            raise ValueError(
                f"transform {self.name}: keep gave {word!r}; it gives one of {', '.join(KEEP)}."
            )
        if word != NEVER and self.rebuild is None:
            raise ValueError(
                f"transform {self.name} keeps changes ({word}), but has no rebuild that makes a "
                "change of its tensors again: add rebuild= to its spec."
            )
        return word
