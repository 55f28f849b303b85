"""What a solver is and what it returns.

A solver is one module of this package, of another package or of a user's folder that ends with
`SOLVER = Solver(...)`. Importing it must be cheap: torch is imported inside its functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.weight import QuantizedWeight


@dataclass(frozen=True)
class NoOptions:
    """The options of a solver or transform that has none."""


@dataclass(frozen=True)
class Layer:
    """What a solver may know about the layer besides its weight.

    name    what errors call it.
    tokens  calibration tokens that went into its Hessian; None when nobody counted.
    kernel  what carries out the work: "reference", "cpu", "cuda", or "auto" for the operator of the
            device where it can be had.
    """

    name: str = "this layer"
    tokens: int | None = None
    kernel: str = "auto"


@dataclass(frozen=True)
class Solution:
    """A quantized layer and what the solver can say about it.

    loss          GPTQ: sum over rows and columns of (w - q)^2 / U_jj^2 / 2 (the figure that the
                  authors' code prints), U the upper Cholesky factor of the inverse Hessian.
                  None for a solver that sees no Hessian.
    damping       absolute value that was added to the Hessian's diagonal; None without Hessian.
    dead_columns  inputs that were zero on all of the calibration data.
    fallback      what had to be done differently than asked for, and was allowed; None: nothing.
    """

    weight: QuantizedWeight
    loss: float | None = None
    damping: float | None = None
    dead_columns: int = 0
    fallback: str | None = None


@dataclass(frozen=True)
class Memory:
    """Float32 matrices that live at once, for the memory plan.

    weights    [outputs, inputs] while a layer is solved and its error is taken.
    prepared   [inputs, inputs] held while layers are solved.
    preparing  [inputs, inputs] beside the Hessian's sum while `prepare` works.
    """

    weights: int = 5
    prepared: int = 0
    preparing: int = 0


def not_sequential(options: Any) -> bool:  # noqa: ARG001
    """All layers of a block are solved with Hessians from one pass."""
    return False


def nothing_to_say(options: Any) -> list[str]:  # noqa: ARG001
    """No option is worth a word in a table."""
    return []


@dataclass(frozen=True)
class Solver:
    """How the weights of one layer become codes, and what that takes.

    name               in configurations, records and tables' data: "gptq".
    label              as people write it: "GPTQ".
    solve              solve(weight [out, in], scheme, prepared, options, layer: Layer) -> Solution;
                       computed in float32 (float64 if the weight is), the weight is left as it is.
    options            frozen dataclass; refuses what cannot be with a ValueError of one sentence.
    needs_calibration  `prepared` is made from the Hessian of the layer's inputs; else it is None.
    uses_kernel        results depend on Layer.kernel.
    prepare            prepare(hessian [in, in], options, layer: Layer) -> prepared, once for all
                       layers with the same inputs; None: `prepared` is the Hessian itself.
    memory             for the memory plan.
    version            raised when the solver computes something else; part of every key.
    reads_weights      False: it makes weights up, for models that have none.
    sequential         whether Hessians are collected stage by stage inside a block.
    describe           options that differ from the defaults, for tables: ["act-order", "damp 0.1"].

    Functions are those of a module, so that a spec travels between processes by name.
    """

    name: str
    label: str
    solve: Callable[..., Solution]
    options: type = NoOptions
    needs_calibration: bool = False
    uses_kernel: bool = False
    prepare: Callable[..., Any] | None = None
    memory: Memory = Memory()
    version: int = 1
    reads_weights: bool = True
    sequential: Callable[[Any], bool] = not_sequential
    describe: Callable[[Any], list[str]] = nothing_to_say

    def __post_init__(self) -> None:
        require_names(self.name, self.label, "solver")
        if not callable(self.solve):
            raise ValueError(
                f"solver {self.name}: solve={self.solve!r} is no function; give it "
                "solve(weight, scheme, prepared, options, layer) -> Solution."
            )
        require_options_type(self.options, f"solver {self.name}")
        if self.prepare is not None and not self.needs_calibration:
            raise ValueError(
                f"solver {self.name} has prepare, which reads a Hessian, but "
                "needs_calibration=False; set needs_calibration=True or leave prepare out."
            )


def require_names(name: object, label: object, owner: str) -> None:
    """Raise ValueError unless a part has a name for records and a label for tables."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{owner} is called {name!r}; use letters, digits and _.")
    if not isinstance(label, str) or not label:
        raise ValueError(f"{owner} {name} has the label {label!r}; use a word for tables.")


def words_of(part: Any, options: Any) -> list[str]:
    """What `describe` of a part says; ValueError unless it is a list of words."""
    words = part.describe(options)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(
            f"{part.name}: describe returned {words!r}; return a list of words, [] for none."
        )
    return words


def require_options_type(kind: object, owner: str) -> None:
    """Raise ValueError, naming the part, unless `kind` is a frozen dataclass."""
    frozen = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    if not frozen or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(
            f"{owner}: options={kind!r} is no frozen dataclass; declare its options in a class "
            "with @dataclass(frozen=True), or leave options out if it has none."
        )
