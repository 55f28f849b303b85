"""Equalize: divide inputs of unequal size and multiply the columns of their weights.

A column with a large input contributes more to the output for the same rounding error. Input j is
scaled by s_j = (a_j / geometric mean of a)^strength, where a_j is its root mean square on the
calibration data. The column then takes a larger share of the row's grid, and its error shrinks by
s_j (the scaling of AWQ, arXiv 2306.00978, and SmoothQuant, 2211.10438, but with a given strength
instead of a search). The division is folded into the norm in front of the layers, or kept in front
of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.transforms.base import (
    NEVER,
    Group,
    Scaling,
    Transform,
    keep_of,
    kept_words,
    require_keep,
)


@dataclass(frozen=True)
class Options:
    """How far to equalize inputs, and where to divide them.

    strength       0 leaves the inputs unchanged, 1 makes all of them the same size.
    powers_of_two  round scales to powers of two, so that the changed model computes the same bits
                   in any dtype (except for float16 below its smallest normal number, 6e-5, and
                   norms that multiply by 1 + weight). False: the same within rounding.
    keep           "never": inputs that no module in front of the layers can absorb are left
                   unchanged; "where_needed": for those, an operator in front of each layer divides
                   at run time; "always": an operator divides everywhere.

    Raises ValueError, with a sentence that says what to change, for invalid values.
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
        require_keep(self.keep)


DEFAULT_OPTIONS = Options()


def change(group: Group, options: Options = DEFAULT_OPTIONS) -> Scaling | None:
    """Return the scales of a group; inputs that were 0 on all calibration data get 1.

    None if all scales are 1, so that nothing would change.
    """
    import torch

    squares = group.hessian.diagonal().double()
    live = squares > 0
    logarithms = squares[live].log2() / 2
    logarithms = (logarithms - logarithms.mean()) * options.strength
    if options.powers_of_two:
        logarithms = logarithms.round()
    scale = torch.ones_like(squares)
    scale[live] = logarithms.exp2().float().double()  # exact powers, however exp2 rounds
    return None if bool((scale == 1).all()) else Scaling(scale)


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    words = [] if options.strength == DEFAULT_OPTIONS.strength else [f"strength {options.strength}"]
    words += [] if options.powers_of_two else ["any scale"]
    return words + kept_words(options.keep)


TRANSFORM = Transform(
    name="equalize",
    label="equalized",
    change=change,
    options=Options,
    describe=describe,
    rebuild=Scaling.rebuild,
    keep=keep_of,
    kept_bytes=Scaling.kept_bytes,
)
