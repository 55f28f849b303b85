"""SmoothQuant: move the size of input outliers into the weights, by a given share.

Xiao et al., arXiv 2211.10438, section 4, equation 4: input j is divided, and column j of the
weights multiplied, by

    s_j = max|x_j|^alpha / max_i|W_ij|^(1 - alpha),

with the maxima over the calibration data and over the rows of all layers that share the input. It
makes inputs easier to quantize; of weights alone it knows nothing of their grids.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.solvers.base import Memory
from quant.transforms.base import (
    NEVER,
    Group,
    Scaling,
    Transform,
    keep_of,
    kept_words,
    require_keep,
)

LEAST = 1e-5  # smallest column of weights and smallest scale, as in the authors' code


@dataclass(frozen=True)
class Options:
    """How far to move outliers, and where inputs are divided.

    alpha  0 makes all columns of the weights equally large, 1 all inputs.
    keep   "never": inputs that no norm in front can absorb are left unchanged; "where_needed": for
           those, an operator in front of each layer divides at run time; "always": an operator
           divides everywhere.

    Raises ValueError, with a sentence that says what to change, for invalid values.
    """

    alpha: float = 0.5
    keep: str = NEVER

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(
                f"alpha={self.alpha} is not between 0 (weights become equal) and 1 (inputs do); "
                "use 0.5 (the paper's), or more where inputs have larger outliers."
            )
        require_keep(self.keep)


DEFAULT_OPTIONS = Options()


def change(group: Group, options: Options = DEFAULT_OPTIONS) -> Scaling | None:
    """Return the scales of a group; inputs that were 0 on all calibration data get 1.

    None if all scales are 1, so that nothing would change.
    """
    import torch

    assert group.statistics is not None  # the spec says that they are read
    inputs = group.statistics.largest
    columns = torch.stack([weight.abs().amax(dim=0) for weight in group.weights]).amax(dim=0)
    weights = columns.to(inputs).clamp(min=LEAST)
    scale = (inputs**options.alpha / weights ** (1 - options.alpha)).clamp(min=LEAST)
    scale[inputs == 0] = 1
    scale = scale.float().double()  # the same on every machine, and as it is stored if kept
    return None if bool((scale == 1).all()) else Scaling(scale)


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    words = [] if options.alpha == DEFAULT_OPTIONS.alpha else [f"alpha {options.alpha:g}"]
    return words + kept_words(options.keep)


TRANSFORM = Transform(
    name="smoothquant",
    label="SmoothQuant",
    change=change,
    options=Options,
    describe=describe,
    rebuild=Scaling.rebuild,
    keep=keep_of,
    kept_bytes=Scaling.kept_bytes,
    reads_statistics=True,
    memory=Memory(weights=2),
)
