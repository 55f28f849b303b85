"""Equalize: inputs of unequal size are divided, and the columns of their weights multiplied.

A column whose input is large contributes more to the output for the same rounding error. Scaled by
s_j = (a_j / geometric mean of a)^strength, a_j the root mean square of input j on the calibration
data, it takes a larger share of the row's grid, and its error shrinks by s_j (AWQ, arXiv
2306.00978, and SmoothQuant, 2211.10438, scale so; here strength is given, not searched). The
division goes into the norm in front of the layers, or is kept in front of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.transforms.base import ALWAYS, KEEP, NEVER, Group, Scaling, Transform


@dataclass(frozen=True)
class Options:
    """How far inputs are made equal.

    strength       0 leaves them as they are, 1 makes them all of one size.
    powers_of_two  scales are rounded to powers of two, so that the changed model computes the same
                   bits in any dtype (but for float16 under its smallest normal number, 6e-5, and
                   norms that multiply by 1 + weight). False: the same within rounding.
    keep           "never": what no module in front of the layers takes in is left as it is;
                   "where_needed": there an operator in front of each layer divides at run time;
                   "always": everywhere.
    """

    strength: float = 0.5
    powers_of_two: bool = True
    keep: str = NEVER

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(
                f"strength={self.strength} is not between 0 (inputs stay as they are) and 1 (all "
                "become equal); use 0.5, or any number in between."
            )
        if self.keep not in KEEP:
            raise ValueError(f"keep={self.keep} is none of {', '.join(KEEP)}; use one of these.")


DEFAULT_OPTIONS = Options()


def change(group: Group, options: Options = DEFAULT_OPTIONS) -> Scaling | None:
    """The scales of a group; inputs that were 0 on all of the calibration data keep 1.

    None when all scales are 1, so that nothing would change.
    """
    import torch

    squares = group.hessian.diagonal().double()
    live = squares > 0
    logarithms = squares[live].log2() / 2
    logarithms = (logarithms - logarithms.mean()) * options.strength
    if options.powers_of_two:
        logarithms = logarithms.round()
    scale = torch.ones_like(squares)
    scale[live] = logarithms.exp2().float().double()  # powers to the bit, whatever exp2 rounds
    return None if bool((scale == 1).all()) else Scaling(scale)


def describe(options: Options) -> list[str]:
    """The options that are not the defaults, as tables name them."""
    words = [] if options.strength == DEFAULT_OPTIONS.strength else [f"strength {options.strength}"]
    words += [] if options.powers_of_two else ["any scale"]
    if options.keep != NEVER:
        words.append("kept" if options.keep == ALWAYS else "kept where needed")
    return words


def keep(options: Options) -> str:
    return options.keep


TRANSFORM = Transform(
    name="equalize",
    label="equalized",
    change=change,
    options=Options,
    describe=describe,
    rebuild=Scaling.rebuild,
    keep=keep,
    kept_bytes=Scaling.kept_bytes,
)
