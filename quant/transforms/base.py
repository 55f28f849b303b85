"""Transform: the spec of a change of coordinates, and the operations that a change implements.

A transform is one module (of this package, of another package or in a user's folder) that ends with
`TRANSFORM = Transform(...)`. Importing it must be cheap: torch is imported inside its functions.

Layers that read the same input x get x' = x T instead, with an invertible T, and weights with W' x'
= W x: a diagonal T scales columns, an orthogonal T rotates them. The change of x is *folded* into
the parameters of the module whose output x is (a norm or a linear layer). That module is found by
observing the block while it runs (quant.calibrate.neighbours, quant.transforms.fold). The model's
function stays the same; the weights that a solver rounds change.

If no module can absorb T, or if the transform requests it, x' is computed at run time: T is *kept*
as an operator in front of each of the layers (quant.input_operator) and stored in the artifact.

A transform may also rotate the hidden states between the blocks (`residual`), which all weights
that read or write them take in (quant.calibrate.residual).

Two kinds are not exact. One rounds the inputs of layers (`rounding`), as hardware that multiplies
with integers would, and is kept in front of the layers to simulate that (quant.calibrate.rounding).
The other removes parts of the model before anything else is done to it (`prune`, quant.pruning).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from quant.solvers.base import (
    Memory,
    NoOptions,
    nothing_to_say,
    require_names,
    require_options_type,
)

if TYPE_CHECKING:
    from torch import Tensor

    from quant.pruning.cut import Cut
    from quant.scheme import Scheme

# When a change is kept in front of its layers: never, if no module can absorb it, or always.
NEVER, WHERE_NEEDED, ALWAYS = "never", "where_needed", "always"
KEEP = (NEVER, WHERE_NEEDED, ALWAYS)

NOTHING = Memory(weights=0)


def require_keep(keep: str) -> None:
    """Raise ValueError for an option `keep` that is not one of KEEP."""
    if keep not in KEEP:
        raise ValueError(f"keep={keep} is unknown; choose one of {', '.join(KEEP)}.")


def keep_of(options: Any) -> str:
    """Return the option `keep`: the `keep` function of transforms that have it."""
    word: str = options.keep
    return word


def kept_words(keep: str) -> list[str]:
    """Return the option `keep` in the words of tables; none for "never"."""
    return {NEVER: [], WHERE_NEEDED: ["kept where needed"], ALWAYS: ["kept"]}[keep]


@dataclass(frozen=True)
class Statistics:
    """Statistics of every input over all calibration tokens, float64 [in] each.

    mean, magnitude  mean of x_j and of |x_j|.
    low, high        smallest and largest x_j.
    """

    mean: Tensor
    magnitude: Tensor
    low: Tensor
    high: Tensor

    @property
    def largest(self) -> Tensor:
        """The largest |x_j|."""
        import torch

        return torch.maximum(self.low.abs(), self.high.abs())

    def divided(self, scale: Tensor) -> Statistics:
        """Return the statistics of x / scale, for scale [in] > 0."""
        scale = scale.to(self.mean)
        return Statistics(
            self.mean / scale, self.magnitude / scale, self.low / scale, self.high / scale
        )


@dataclass(frozen=True)
class Group:
    """The layers of a block that read one input, as a transform sees them.

    name        name of the first layer, for errors.
    layers      full names of the layers.
    weights     weight of every layer [out, in] in float32 (float64 if the model is), in the
                coordinates after the transforms before this one.
    hessian     [in, in] = 2/n * sum x x^T of the layers' input in the same coordinates; its
                diagonal is the mean square of every input, times a constant.
    scheme      scheme of the model; scheme.of(name) is that to which a layer will be rounded.
    statistics  of the layers' input in the same coordinates, if the transform reads them.
    tied        int64 [in]: inputs with the same number need the same scale, because one row of a
                layer in front makes all of them; None if no inputs are tied.
    count       hessian / count is the mean of x x^T over all tokens.
    biased      whether every layer has a bias, as a shift of the input requires.
    """

    name: str
    layers: tuple[str, ...]
    weights: tuple[Tensor, ...]
    hessian: Tensor
    scheme: Scheme
    statistics: Statistics | None = None
    tied: Tensor | None = None
    count: float = 1.0
    biased: bool = False


class Change(Protocol):
    """A change of coordinates x' = x T of the last dimension of a group's input."""

    def inputs(self, x: Tensor) -> Tensor:
        """Return x T for x [..., in]; wider than x if the caller should do the only rounding."""

    def weight(self, weight: Tensor) -> Tensor:
        """Return W T^-T, so that W' x' = W x, for a weight [out, in]."""

    def hessian(self, matrix: Tensor) -> Tensor:
        """Return T^T H T, the Hessian of x', for H [in, in]."""


@runtime_checkable
class Shifting(Change, Protocol):
    """A change with a shift, x' = x T - t, of layers that all have a bias."""

    def bias(self, weight: Tensor) -> Tensor:
        """Return W' t [out], which is added to the bias, for a weight W [out, in]."""


class Operation(Protocol):
    """What an operator in front of a layer computes, defined by its tensors."""

    def inputs(self, x: Tensor) -> Tensor:
        """Return the layer's input made of x [..., in]; wider than x as in Change."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that define it, by identifier; they are stored unchanged."""


class Keepable(Change, Operation, Protocol):
    """A change that can be kept in front of layers, because tensors define it."""


@dataclass(frozen=True)
class Inputs:
    """The input of a group of layers, as a rounding sees it.

    name        name of the first layer, for errors.
    width       number of inputs.
    statistics  of the input after all changes of coordinates, if the rounding is static and
                calibration tokens reached the layers.
    """

    name: str
    width: int
    statistics: Statistics | None = None


@dataclass(frozen=True)
class Scaling:
    """x' = x / scale: input j is divided, and column j of the weights multiplied, by scale[j] > 0.

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

    def statistics(self, statistics: Statistics) -> Statistics:
        return statistics.divided(self.scale)

    def inputs(self, x: Tensor) -> Tensor:
        return x / self.scale.to(x.device)

    def weight(self, weight: Tensor) -> Tensor:
        return weight * self.scale.to(weight)

    def hessian(self, matrix: Tensor) -> Tensor:
        scale = self.scale.to(matrix)
        return matrix / (scale * scale[:, None])


def transform_description(transform: Transform, options: Any) -> dict[str, Any]:
    """Return what keys and checkpoints say of a transform: name, version and options."""
    return {"name": transform.name, "version": transform.version, **dataclasses.asdict(options)}


def _never(_options: Any) -> str:
    return NEVER


def _a_matrix(inputs: int) -> int:
    return 4 * inputs * inputs


def _never_so(_options: Any) -> bool:
    return False


def _always_so(_options: Any) -> bool:
    return True


def _fits(_options: Any, _facts: Any, _scheme: Scheme) -> str | None:
    return None


def _no_tag(_options: Any) -> str:
    return ""


def _refuses_nothing(_options: Any, _hidden: int, _widths: Sequence[int]) -> str | None:
    return None


@dataclass(frozen=True)
class Transform:
    """What is done to a model before layers are solved: a change of coordinates, of their inputs
    (`change`) or of the residual stream (`residual`), a rounding of their inputs (`rounding`), or
    the removal of parts (`prune`). The last two are not exact.

    Unless `keep` says otherwise, a change is folded, or dropped if it cannot be folded. A rounding
    is the last of the transforms, and kept in front of every layer that is quantized.

    name, label, version, describe  see quant.solvers.base.Solver.
    change                          change(group: Group, options) -> Change, for every group of
                                    layers whose input can be changed; None leaves the group
                                    unchanged. The Hessian comes from calibration, so a transform
                                    needs calibration data even if the solver does not. None for
                                    a transform of the residual stream.
    residual                        residual(hidden, keeps_mean, options) -> an orthogonal Change of
                                    hidden states with so many features; with keeps_mean it maps the
                                    vector of ones to itself. None for a transform of inputs.
    prune                           prune(running: quant.pruning.running.Running, options) -> the
                                    quant.pruning.cut.Cut that keeps the model within options.bits.
                                    The parts are scored on options.windows calibration windows.
    unfit                           unfit(options, facts: quant.memory.shapes.ModelFacts, scheme) ->
                                    why a model cannot be changed so, as the end of a sentence with
                                    the next step; None if it can. A plan asks it; scheme is one
                                    Scheme if the transform prunes.
    rounding                        rounding(inputs: Inputs, options) -> the Operation that rounds
                                    the input of a group of layers at run time: activations on a
                                    grid, simulated in the model's dtype. It is not exact: outputs
                                    change, the solver's Hessian is that of the rounded inputs, and
                                    no time is measured. None for changes of coordinates.
    static                          static(options) -> whether a rounding reads Inputs.statistics.
    partial                         partial(options) -> whether the options leave layers out, which
                                    a transform behind it may still change.
    tag                             tag(options) -> what a rounding adds to the names of schemes in
                                    tables, as a8 in w4g64-a8.
    options                         frozen dataclass that raises a one-sentence ValueError for
                                    invalid values; of one that prunes, quant.pruning.budget.Options
                                    with its own fields.
    rebuild                         rebuild(tensors) -> the change that these tensors define, with
                                    their dtypes and device. It is called in every forward pass of a
                                    layer, so it should compute nothing. None: changes can only be
                                    folded. Of a rounding it is rebuild(tensors, options), because
                                    the artifact holds its options, too.
    keep                            keep(options) -> "never", "where_needed" (if no module can
                                    absorb the change) or "always".
    kept_bytes                      kept_bytes(inputs) -> maximum bytes of the tensors of one kept
                                    change with `inputs` inputs, for the memory plan; by default
                                    those of a float32 matrix [in, in].
    refuses                         refuses(options, hidden, widths) -> why a model cannot be
                                    transformed whose hidden states have `hidden` features and whose
                                    layers have these numbers of inputs; None if it can. The plan
                                    says so after the name of the transform.
    reads_statistics                whether `change` reads Group.statistics. They are collected only
                                    for transforms that do; a change before them has to say them in
                                    its own coordinates, by a method statistics(Statistics).
    says_statistics                 says_statistics(options) -> whether its changes have it.
    folds_through                   whether a change that no module in front can absorb may be
                                    folded into a linear layer further in front, through operators
                                    that pass scales on: the product of a gated MLP, attention's
                                    mixing of values, ReLU (quant.calibrate.upstream). For scalings,
                                    with equal scales of inputs that Group.tied ties.
    shifts                          shifts(options) -> whether changes may subtract a constant from
                                    the input (Shifting), as solvers with two inputs do not know it.
    memory                          matrices of the largest layer while `change` runs, or `prune`
                                    (float64), for the memory plan: `weights` and `prepared`.
    """

    name: str
    label: str
    change: Callable[..., Change | None] | None = None
    options: type = NoOptions
    version: int = 1
    describe: Callable[[Any], list[str]] = nothing_to_say
    rebuild: Callable[..., Operation] | None = None
    keep: Callable[[Any], str] = _never
    kept_bytes: Callable[[int], int] = _a_matrix
    refuses: Callable[[Any, int, Sequence[int]], str | None] = _refuses_nothing
    reads_statistics: bool = False
    says_statistics: Callable[[Any], bool] = _always_so
    folds_through: bool = False
    shifts: Callable[[Any], bool] = _never_so
    memory: Memory = NOTHING
    residual: Callable[..., Change] | None = None
    prune: Callable[..., Cut] | None = None
    unfit: Callable[[Any, Any, Scheme], str | None] = _fits
    rounding: Callable[..., Operation] | None = None
    static: Callable[[Any], bool] = _never_so
    partial: Callable[[Any], bool] = _never_so
    tag: Callable[[Any], str] = _no_tag

    def __post_init__(self) -> None:
        require_names(self.name, self.label, "transform")
        kinds = ("change", "residual", "rounding", "prune")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(
                f"transform {self.name} has both {' and '.join(given)}; make it two transforms."
            )
        if not callable(self.function):
            raise ValueError(
                f"transform {self.name}: change={self.change!r} is not a function; pass "
                "change(group, options) -> Change or None."
            )
        require_options_type(self.options, f"transform {self.name}")
        if self.rebuild is not None and not callable(self.rebuild):
            raise ValueError(
                f"transform {self.name}: rebuild={self.rebuild!r} is not a function; pass "
                "rebuild(tensors) -> Change, or None if changes are only folded."
            )

    @property
    def function(self) -> Callable[..., Any]:
        """The function that makes its changes."""
        return self.change or self.residual or self.rounding or self.prune  # type: ignore[return-value]

    @property
    def rounds(self) -> bool:
        """Whether it rounds the inputs of layers, which is simulated."""
        return self.rounding is not None

    def keeps(self, options: Any) -> str:
        """Return when changes are kept in front of layers; ValueError for an invalid answer."""
        word = self.keep(options)
        if word not in KEEP:
            raise ValueError(
                f"transform {self.name}: keep returned {word!r}; return one of {', '.join(KEEP)}."
            )
        if self.rounds and word != ALWAYS:
            raise ValueError(
                f"transform {self.name}: keep returned {word!r}, but no module can take a rounding "
                f"in; return {ALWAYS!r}."
            )
        if word != NEVER and self.rebuild is None:
            raise ValueError(
                f"transform {self.name} keeps changes ({word}), but has no rebuild function that "
                "makes a change from its tensors: add rebuild= to its spec."
            )
        return word
