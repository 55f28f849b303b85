"""Round inputs: the inputs of quantized layers on a grid of 2 to 8 bits, simulated at run time.

Hardware that multiplies integers needs activations on a grid, too: x becomes scale * code, with a
scale for every token, found when the token comes (dynamic), or one for the whole tensor, found on
the calibration data (static). SmoothQuant, arXiv 2211.10438, section 3, and QuaRot, 2404.00456,
section 4, round activations so. Here the product itself is that of the model's dtype: accuracy is
that of W8A8, W4A8 or W4A4, speed and memory are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.errors import QuantizationError
from quant.transforms.base import ALWAYS, Inputs, Transform

if TYPE_CHECKING:
    from torch import Tensor

TOKEN, TENSOR = "token", "tensor"
MOST_BITS = 8
SMALLEST = 2.0**-126  # scale: the smallest normal float32, so that tokens of zeros give zeros


@dataclass(frozen=True)
class Options:
    """The grid of inputs.

    bits       of a code, 2 to 8.
    per        "token": a scale for every token, from its own values (dynamic); "tensor": one scale
               for all, from the values of the calibration data (static).
    symmetric  codes from -2^(bits-1), whose scale is the largest magnitude / (2^(bits-1) - 1).
               False: codes from 0, with a zero-point, between the smallest value and the largest.
    clip       share of the range that the grid covers; values outside get its ends.

    Raises ValueError, with a sentence that says what to change, for invalid values.
    """

    bits: int = 8
    per: str = TOKEN
    symmetric: bool = True
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= MOST_BITS:
            raise ValueError(
                f"bits={self.bits} is not between 2 and {MOST_BITS}; use 8 or 4, or leave "
                "round_inputs out for inputs in the model's dtype."
            )
        if self.per not in (TOKEN, TENSOR):
            raise ValueError(
                f"per={self.per} is unknown; use {TOKEN} (a scale for every token, at run time) or "
                f"{TENSOR} (one scale, from calibration)."
            )
        if not 0 < self.clip <= 1:
            raise ValueError(
                f"clip={self.clip} is no share of the range above 0; use 1 for all of it, or 0.9."
            )

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.symmetric else (0, 2 * half - 1)


DEFAULT_OPTIONS = Options()


@dataclass(frozen=True)
class Rounding:
    """x' = scale * (code - zero), code = round(x / scale) + zero within the smallest and largest.

    scale  static: float32 [1]; None: found for every token.
    zero   static with a zero-point: uint8 [1].
    """

    options: Options
    scale: Tensor | None = None
    zero: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        held = {"scale": self.scale, "zero": self.zero}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def inputs(self, x: Tensor) -> Tensor:
        """Return the rounded x [..., in] in float64, where quotients of float32 numbers tie right.

        NaN and infinite values make their token NaN.
        """
        if self.scale is None:
            low, high = x.aminmax(dim=-1, keepdim=True)
            scale, zero = grid(low, high, self.options)
        else:
            scale = self.scale.double()
            zero = None if self.zero is None else self.zero.double()
        codes = (x / scale).round_()
        if zero is not None:
            codes += zero
        codes.clamp_(*self.options.codes)
        if zero is not None:
            codes -= zero
        return codes.mul_(scale)


def grid(low: Tensor, high: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero-point of values from low to high, float64 of the same shape.

    The scale has the value of a float32 number, in which kernels hold it. A symmetric grid has no
    zero-point; otherwise it is a code, and 0 is on the grid.
    """
    import torch

    low, high = options.clip * low.double(), options.clip * high.double()
    smallest, largest = options.codes
    if options.symmetric:
        size = torch.maximum(-low, high) / largest
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        size = (high - low) / (largest - smallest)
    scale = size.float().clamp(min=SMALLEST).double()
    return scale, None if options.symmetric else (-low / scale).round().clamp(smallest, largest)


def rounding(inputs: Inputs, options: Options = DEFAULT_OPTIONS) -> Rounding:
    """Return the rounding of a group's input; QuantizationError for a range that nothing shows."""
    import torch

    if options.per == TOKEN:
        return Rounding(options)
    if inputs.statistics is None:
        raise QuantizationError(
            f"transform round_inputs: no calibration token reached {inputs.name}, so its inputs "
            f"have no range; use per={TOKEN}, or more calibration text."
        )
    low, high = inputs.statistics.low.min(), inputs.statistics.high.max()
    scale, zero = grid(low.reshape(1), high.reshape(1), options)
    return Rounding(options, scale.float(), None if zero is None else zero.to(torch.uint8))


def rebuild(tensors: Mapping[str, Tensor], options: Options) -> Rounding:
    return Rounding(options, tensors.get("scale"), tensors.get("zero"))


def static(options: Options) -> bool:
    return options.per == TENSOR


def tag(options: Options) -> str:
    """Return the grid as names of schemes have it: a8, a4_tensor, a8_asym."""
    words = [f"a{options.bits}"]
    words += [TENSOR] if options.per == TENSOR else []
    return "_".join(words if options.symmetric else [*words, "asym"])


def describe(options: Options) -> list[str]:
    """Return what the tag does not say, in the words of tables."""
    return [] if options.clip == 1 else [f"inputs clipped at {options.clip:g}"]


def keep(_options: Options) -> str:
    return ALWAYS


def kept_bytes(_inputs: int) -> int:
    return 5  # a float32 number and a code


TRANSFORM = Transform(
    name="round_inputs",
    label="simulated activations",
    rounding=rounding,
    options=Options,
    describe=describe,
    rebuild=rebuild,
    keep=keep,
    kept_bytes=kept_bytes,
    static=static,
    tag=tag,
)
