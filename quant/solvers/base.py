"""Solver: the spec of a quantization method, with its inputs and results.

A solver is one module (of this package, of another package or in a user's folder) that ends with
`SOLVER = Solver(...)`. Importing it must be cheap: torch is imported inside its functions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quant.budget import AnyScheme, Budget
from quant.errors import NonFiniteError
from quant.rules import DAMP, RTN

if TYPE_CHECKING:
    from torch import Tensor

    from quant.hessian import Factor
    from quant.rules import Rules
    from quant.scheme import Scheme
    from quant.solvers.outside import Made
    from quant.weight import AnyWeight


@dataclass(frozen=True)
class NoOptions:
    """The options of a solver or transform that has none."""


@dataclass(frozen=True)
class Layer:
    """What a solver is told about the layer besides its weight.

    name    name in errors.
    tokens  calibration tokens that were added to its Hessian; None if they were not counted.
    kernel  "reference", "cpu", "cuda", or "auto" for the compiled operator of the device if it is
            available.
    """

    name: str = "this layer"
    tokens: int | None = None
    kernel: str = "auto"


@dataclass(frozen=True)
class Solution:
    """A quantized layer, with the figures that the solver reports.

    loss          GPTQ: sum over rows and columns of (w - q)^2 / U_jj^2 / 2 (the figure that the
                  authors' code prints), where U is the upper Cholesky factor of the inverse
                  Hessian. None for a solver without a Hessian.
    damping       absolute value that was added to the Hessian's diagonal; None without a Hessian.
    dead_columns  number of inputs that were zero on all calibration data.
    fallback      allowed deviation from the options (such as more damping); None if there was none.
    """

    weight: AnyWeight
    loss: float | None = None
    damping: float | None = None
    dead_columns: int = 0
    fallback: str | None = None


@dataclass(frozen=True)
class Memory:
    """Number of float32 matrices in memory at the same time, for the memory plan.

    weights    [outputs, inputs] matrices while a layer is solved and its error is computed.
    prepared   [inputs, inputs] matrices held while layers are solved.
    preparing  [inputs, inputs] matrices besides the Hessian's sum while `prepare` runs.
    beside     numbers held besides while layers are solved, whatever the size of the layer.
    """

    weights: int = 5
    prepared: int = 0
    preparing: int = 0
    beside: int = 0


def not_sequential(options: Any) -> bool:  # noqa: ARG001
    """Return False: one pass collects the Hessians of all layers of a block."""
    return False


def all_of_the_drift(options: Any) -> bool:  # noqa: ARG001
    """Return False: every entry of the drift is used."""
    return False


def nothing_to_say(options: Any) -> list[str]:  # noqa: ARG001
    """Return no words: tables show none of the options."""
    return []


def refuses_nothing(options: Any, scheme: Scheme) -> str | None:  # noqa: ARG001
    """Return None: the solver can be asked for any scheme."""
    return None


def refuses_no_shape(options: Any, scheme: AnyScheme, shape: tuple[int, int]) -> str | None:  # noqa: ARG001
    """Return None: the solver can solve a layer of any (outputs, inputs)."""
    return None


def solves_no_layer(*_: object) -> Solution:
    """Stand for `solve` in a spec that has `whole` in its place; never called."""
    raise AssertionError("a program that quantizes whole models was asked for a layer")


@dataclass(frozen=True)
class Solver:
    """A quantization method: how to quantize the weight of one layer, and what that requires.

    name               name in configurations, records and the data of tables: "gptq".
    label              name for readers: "GPTQ".
    solve              solve(weight [out, in], scheme, prepared, options, layer: Layer) -> Solution;
                       computes in float32 (float64 if the weight is) and does not modify the
                       weight.
    options            frozen dataclass that raises a one-sentence ValueError for invalid values.
    needs_calibration  whether `prepared` is made from the Hessian of the layer's inputs; if not, it
                       is None.
    needs_reference    whether the inputs x of the layer in the full-precision model are needed
                       beside the inputs x~ in the quantized one. prepare then has a fourth
                       argument, drift [in, in] = 2/n sum (x - x~) x~^T in the coordinates of the
                       Hessian 2/n sum x~ x~^T; None where no layer before is quantized.
    upper_drift        upper_drift(options): whether the drift is used on and above its diagonal
                       alone, which takes half of the products.
    weighted_drift     whether prepare takes W D [out, in], too, in the place of D, where one layer
                       reads the input.
    uses_kernel        whether results depend on Layer.kernel.
    prepare            prepare(hessian [in, in], options, layer: Layer) -> prepared, once for all
                       layers with the same inputs; None: `prepared` is the Hessian itself.
    memory             matrices for the memory plan.
    version            increased when the solver computes something else; part of every key.
    reads_weights      False if the solver generates weights, for models that have none.
    sequential         sequential(options): whether Hessians are collected stage by stage inside a
                       block.
    describe           describe(options): options that differ from the defaults, for tables:
                       ["act-order", "damp 0.1"].
    whole              whole(request: quant.solvers.outside.Request, options) -> Made, in place of
                       `solve`: another program quantizes the whole model into request.out.
    oracle             oracle(weight [out, in], scheme, hessian, damping, options) -> values
                       [out, in] in float64: the method as a textbook has it, slow and without the
                       solver's shortcuts. damping is that of the Solution; it and the Hessian are
                       None without calibration. With needs_reference, drift follows as in prepare.
                       Runs compare the solver with it on pieces of the model
                       (quant.calibrate.self_check). None: they cannot.
    refuses            refuses(options, scheme): why the solver cannot be asked for a scheme, as the
                       end of a sentence with the next step; None: it can (`refusal`).
    factors            whether it makes factored weights (quant.weight) within a quant.budget, in
                       the place of codes of a scheme.
    refuses_shape      refuses_shape(options, scheme, (outputs, inputs)): why it cannot solve layers
                       of this shape, as the end of a sentence with the next step; None: it can.
    searches_with_hessian
                       whether it passes blocks of the Hessian to find_groups, which schemes with
                       grid=hessian need.

    All functions must be module-level, so that a spec is pickled by name.
    """

    name: str
    label: str
    solve: Callable[..., Solution] = solves_no_layer
    options: type = NoOptions
    needs_calibration: bool = False
    needs_reference: bool = False
    upper_drift: Callable[[Any], bool] = all_of_the_drift
    weighted_drift: bool = False
    uses_kernel: bool = False
    prepare: Callable[..., Any] | None = None
    memory: Memory = Memory()
    version: int = 1
    reads_weights: bool = True
    sequential: Callable[[Any], bool] = not_sequential
    describe: Callable[[Any], list[str]] = nothing_to_say
    whole: Callable[..., Made] | None = None
    oracle: Callable[..., Tensor] | None = None
    refuses: Callable[[Any, Any], str | None] = refuses_nothing
    factors: bool = False
    refuses_shape: Callable[[Any, Any, tuple[int, int]], str | None] = refuses_no_shape
    searches_with_hessian: bool = False

    def __post_init__(self) -> None:
        require_names(self.name, self.label, "solver")
        if self.whole is not None:
            self._require_only_whole()
        elif not callable(self.solve) or self.solve is solves_no_layer:
            raise ValueError(
                f"solver {self.name}: solve={self.solve!r} is not a function; pass "
                "solve(weight, scheme, prepared, options, layer) -> Solution."
            )
        require_options_type(self.options, f"solver {self.name}")
        if self.prepare is not None and not self.needs_calibration:
            raise ValueError(
                f"solver {self.name} has prepare, which reads a Hessian, but "
                "needs_calibration=False; set needs_calibration=True or leave prepare out."
            )
        if self.searches_with_hessian and not self.needs_calibration:
            raise ValueError(
                f"solver {self.name} searches grids with a Hessian, but needs_calibration=False; "
                "set needs_calibration=True or leave searches_with_hessian out."
            )
        if self.needs_reference and self.prepare is None:
            raise ValueError(
                f"solver {self.name} needs the inputs of the full-precision model "
                "(needs_reference=True), which only prepare is given: add prepare(hessian, "
                "options, layer, drift)."
            )

    def _require_only_whole(self) -> None:
        if not callable(self.whole) or self.solve is not solves_no_layer or self.prepare:
            raise ValueError(
                f"solver {self.name} quantizes whole models (whole={self.whole!r}): give a "
                "function whole(request, options) -> Made, and neither solve nor prepare."
            )


def refusal(solver: Solver, options: Any, scheme: AnyScheme, rules: Rules) -> str | None:
    """Return why a solver cannot be asked for a scheme, as the end of a sentence; None: it can."""
    if isinstance(scheme, Budget):
        if not solver.factors:
            return (
                f"a budget has no levels, and {solver.label} gives weights codes on a grid; use a "
                "scheme of as many bits, such as w4g64 for 4.3125, or method=svd_whitened"
            )
        if rules.few_tokens == RTN:
            return (
                f"few_tokens={RTN} rounds experts to a grid, and a budget has none; use "
                f"few_tokens={DAMP}"
            )
    elif solver.factors:
        return (
            f"{solver.label} stores no codes on a grid; use scheme=budget with as many bits, such "
            "as scheme.budget=4.3125 for w4g64"
        )
    if scheme.needs_hessian and not solver.searches_with_hessian:
        return (
            "its grids are searched with the Hessian of each layer's inputs, which "
            f"{solver.label} does not have; use scheme.grid=mse, or method=rtn_calibrated or gptq"
        )
    if scheme.needs_hessian and rules.few_tokens == RTN:
        return (
            f"few_tokens={RTN} rounds experts without a Hessian, and its grids are searched with "
            f"one; use few_tokens={DAMP}, or scheme.grid=mse"
        )
    return solver.refuses(options, scheme)


def begin(
    weight: Tensor, factor: Factor, damping: float, act_order: bool, layer: str
) -> tuple[Tensor, int]:
    """Return weight [out, in] as a solver with a factored Hessian takes it, and its dead inputs.

    In the dtype of the computation (float64 if weight or factor is, else float32), with weights of
    dead inputs set to 0; the weight given is not modified. Raises NonFiniteError, and ValueError
    for a factor of other inputs or made with another damping or order.
    """
    import torch

    from quant.grid import check_finite, working

    weight = weight.detach()
    check_finite(weight, layer)
    inputs = weight.shape[1]
    if len(factor.root) != inputs:
        raise ValueError(
            f"{layer}: the Hessian is for {len(factor.root)} inputs, the weight has {inputs}."
        )
    if factor.share != damping or (factor.order is not None) != act_order:
        raise ValueError(
            f"{layer}: the factor was made with damping={factor.share:g}, "
            f"act_order={factor.order is not None}, but the options say {damping:g}, "
            f"{act_order}; call prepare with the same options."
        )
    weight = weight.to(torch.promote_types(working(weight).dtype, factor.root.dtype))
    dead = int(factor.dead.sum())
    return weight.masked_fill(factor.dead, 0) if dead else weight, dead


def finite_loss(loss: float, label: str, layer: str) -> float:
    """Return the loss of the solver `label`; NonFiniteError, naming the layer, if it is not."""
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"{layer}: the loss of {label} is {loss}: its updates overflowed the dtype; raise "
            "damping (0.01 is the paper's, 0.1 is strong) or look for huge weights or activations."
        )
    return loss


def require_names(name: object, label: object, owner: str) -> None:
    """Raise ValueError unless a part has a valid name for records and a label for tables."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{owner} is called {name!r}; use letters, digits and _.")
    if not isinstance(label, str) or not label:
        raise ValueError(f"{owner} {name} has the label {label!r}; use a word for tables.")


def words_of(part: Any, options: Any) -> list[str]:
    """Return the words of a part's `describe` for `options`; ValueError unless a list of str."""
    words = part.describe(options)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(
            f"{part.name}: describe returned {words!r}; return a list of words, [] for none."
        )
    return words


def method_description(
    solver: Solver, options: Any, rules: Rules, arithmetic: str | None
) -> dict[str, Any]:
    """Return what keys and checkpoints say of a method: name, options, rules, arithmetic.

    arithmetic  None without calibration text: plain rounding has the same codes in each.
    """
    found = {"name": solver.name, **dataclasses.asdict(options), **rules.given()}
    return found if arithmetic is None else {**found, "arithmetic": arithmetic}


def require_options_type(kind: object, owner: str) -> None:
    """Raise ValueError, naming the part, unless `kind` is a frozen dataclass."""
    frozen = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    if not frozen or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(
            f"{owner}: options={kind!r} is not a frozen dataclass; declare options in a class "
            "with @dataclass(frozen=True), or leave options out if it has none."
        )
