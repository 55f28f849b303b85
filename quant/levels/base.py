"""Levels and GridTensor: the spec of a kind of levels, and how a scheme loads it. No torch."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import quant.levels
from quant.errors import SchemeError
from quant.parts import Part, PartError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

# The tensors of a grid by name.
Tensors = Mapping[str, "Tensor"]
# Storage types of floating-point numbers in a grid, and their bits.
FLOATS = {"float8_e4m3fn": 8, "float8_e5m2": 8, "float16": 16, "bfloat16": 16, "float32": 32}
WIDTHS = (2, 3, 4, 5, 6, 7, 8)  # bits of a packed integer
# Names of grids that are searched among Levels.candidates (quant.grid_search).
MSE, HESSIAN = "mse", "hessian"
SEARCHES = (MSE, HESSIAN)
# Names that quant.linear.QuantLinear uses itself: its tensors, then its other attributes.
RESERVED = (
    "qweight", "g_idx", "bias", "weight", "input_operator", "tiles", "tile_scales", "tile_zeros",
    "tile_negative", "scheme", "in_features", "out_features", "requested", "kernel",
    "kernel_buffers", "tiled", "way", "packed", "quantized_weight", "from_quantized",
    "stored_bits", "dequantize", "dequantize_rows", "training", "forward", "type", "to", "half",
    "float", "double", "apply", "train", "eval", "buffers", "children", "modules", "parameters",
    "state_dict",
)  # fmt: skip


@dataclass(frozen=True)
class GridTensor:
    """One tensor of a grid, with an entry per output row and group, super-block or whole row.

    name    name in Grid and QuantizedWeight: "scale".
    buffer  name in the packed layout and in checkpoints: "scales".
    code    whether it has integers (uint8 in QuantizedWeight, packed in the buffer) instead of
            floating-point numbers.
    width   bits of an integer; None means the bit width of the codes.
    dtype   storage type of a floating-point number, one of FLOATS; None means scheme.scale_dtype.
    span    number of groups that share an entry: 1; N for a super-block (the last one may be
            smaller); None for all groups of a row.
    values  numbers per entry; None means one per code (a codebook). Unless it is 1, they are one
            more dimension, the last.
    """

    name: str
    buffer: str
    code: bool = False
    width: int | None = None
    dtype: str | None = None
    span: int | None = 1
    values: int | None = 1

    def __post_init__(self) -> None:
        of_the_other = self.dtype if self.code else self.width
        wrong = (
            (of_the_other is not None, "width is for code=True, and dtype for code=False"),
            (self.width not in (None, *WIDTHS), f"width={self.width} is not one of {WIDTHS}"),
            (
                self.dtype not in (None, *FLOATS),
                f"dtype={self.dtype!r} is not one of {list(FLOATS)}",
            ),
            (self.span is not None and self.span < 1, f"span={self.span} is below 1"),
            (self.values is not None and self.values < 1, f"values={self.values} is below 1"),
            (not self.buffer.isidentifier(), f"buffer={self.buffer!r} is not a tensor name"),
            (self.buffer in RESERVED, f"the name {self.buffer} is reserved by QuantLinear"),
        )
        for _, sentence in (each for each in wrong if each[0]):
            raise ValueError(f"grid tensor {self.name}: {sentence}; correct its GridTensor.")

    def entries(self, groups: int) -> int:
        """Return the number of entries of a row with `groups` groups."""
        return 1 if self.span is None else -(-groups // self.span)

    def count(self, scheme: Scheme) -> int:
        """Return the count of numbers in an entry."""
        return scheme.max_code + 1 if self.values is None else self.values

    def bits(self, scheme: Scheme) -> int:
        """Return the stored bits of one number."""
        return (self.width or scheme.bits) if self.code else FLOATS[self.storage(scheme)]

    def storage(self, scheme: Scheme) -> str:
        """Return the name of the dtype of its numbers in QuantizedWeight."""
        return "uint8" if self.code else self.dtype or scheme.scale_dtype

    def entry_shape(self, scheme: Scheme) -> tuple[int, ...]:
        """Return the dimensions after that of the entries: (), or (numbers per entry,)."""
        return () if self.values == 1 else (self.count(scheme),)


@dataclass(frozen=True)
class Levels:
    """A kind of levels: how to find grids, encode weights and decode codes.

    name            name in schemes: "uniform".
    prefix          beginning of the names of its schemes: "w" in w4g128.
    about           short description of the levels, for messages.
    tensors         tensors of a grid, in packing order.
    find            (weight [rows, columns], scheme, layer) -> tensors of each row's grid, in the
                    dtype of weight, with exactly the values that will be stored. The columns are
                    one group and the tensors are [rows]. If a tensor has a span, the columns are
                    the groups that are found together, of scheme.group_size columns each (the last
                    may be short, and there may be fewer), and the tensors are [rows, entries].
                    Several numbers per entry are the last dimension: [rows, values].
    encode          (values, tensors, scheme) -> the nearest code of each value, as floating-point
                    numbers. The tensors broadcast against the values; those with several numbers
                    per entry have them as one more dimension, the last.
    decode          (codes, tensors, scheme) -> values in the dtype of the tensors; the inverse of
                    encode on the levels.
    bits            supported bit widths; None means all. The names of a kind with a single width
                    omit it.
    codes           number of codes; None means 2^bits.
    symmetric       whether schemes may request symmetric grids.
    grids           supported grid searches. The first is what find returns; "mse" and "hessian"
                    are searched among candidates, if the levels have them.
    candidates      (weight [rows, columns], scheme, layer) -> tensors [candidates, rows] of the
                    grids that a search tries besides the one of find, in order. The columns are one
                    group, and no tensor may have a span.
    check           (scheme) raises SchemeError for other impossible combinations.
    refuses         (scheme, inputs): why a weight with `inputs` columns cannot be quantized to a
                    scheme that exists, as the end of a sentence with the next step; None: it can.
    alike           codes that stand for one level in every grid (two zeros); the entropy of the
                    codes counts them as one.
    loop_arguments  tensors [groups, rows] -> arguments scale, zero and negative of GPTQ's compiled
                    column loop (cuda_ext.column_loop). None: the compiled loop does not support
                    these levels, and the plain loop runs.
    operators       whether cuda_ext's operators multiply with these levels, from the same buffers;
                    if not, layers are dequantized before every product.
    draw            (words, shape, inputs, scheme, generator) -> random tensors of `shape` [groups,
                    out] for a weight of `inputs` columns with mean 0 and variance 1 / inputs; of
                    groups that share an entry, the first is used. `words` are the packed codes,
                    random in all bits; draw corrects invalid codes in place. None: no random
                    weights for these levels.
    version         increased when the same codes and tensors come to mean other values; artifacts
                    with another version are refused.
    """

    name: str
    prefix: str
    about: str
    tensors: tuple[GridTensor, ...]
    find: Callable[[Tensor, Scheme, str], Tensors]
    encode: Callable[[Tensor, Tensors, Scheme], Tensor]
    decode: Callable[[Tensor, Tensors, Scheme], Tensor]
    bits: tuple[int, ...] | None = None
    codes: int | None = None
    symmetric: bool = False
    grids: tuple[str, ...] = ("minmax",)
    candidates: Callable[[Tensor, Scheme, str], Tensors] | None = None
    check: Callable[[Scheme], None] | None = None
    refuses: Callable[[Scheme, int], str | None] | None = None
    alike: tuple[int, ...] = ()
    loop_arguments: Callable[[Tensors], dict[str, Tensor]] | None = None
    operators: bool = False
    draw: (
        Callable[[Tensor, tuple[int, ...], int, Scheme, torch.Generator], dict[str, Tensor]] | None
    ) = None
    version: int = 1

    def __post_init__(self) -> None:
        # Otherwise a name such as w4g128 would be ambiguous.
        ending = r"[a-z0-9]*" if self.one_width else r"([a-z0-9]*[a-z])?"
        if not re.fullmatch(r"[a-z]" + ending, self.prefix):
            raise ValueError(
                f"levels {self.name}: prefix={self.prefix!r} cannot begin the name of a scheme; "
                "use small letters and digits, and end with a letter if a bit width follows."
            )
        for field in ("name", "buffer"):
            called = [getattr(each, field) for each in self.tensors]
            if not called or len(set(called)) < len(called):
                raise ValueError(
                    f"levels {self.name}: the tensors of a grid have the {field}s "
                    f"{', '.join(called) or 'of nothing'}; declare one tensor or more, each with "
                    f"a {field} of its own."
                )
        if HESSIAN in self.grids and self.candidates is None:
            raise ValueError(
                f"levels {self.name}: grid={HESSIAN} chooses among candidates, and there are none; "
                "give candidates, or leave it out of grids."
            )
        if self.candidates is not None and self.span != 1:
            raise ValueError(
                f"levels {self.name}: candidates are those of one group, and a tensor has a span; "
                "leave candidates out and search in find."
            )
        if self.operators and any(
            (each.span, each.values, each.width, each.dtype) != (1, 1, None, None)
            for each in self.tensors
        ):
            raise ValueError(
                f"levels {self.name}: the operators of cuda_ext support one number per row and "
                "group, in scheme.scale_dtype or as a code; leave operators=False."
            )

    @property
    def span(self) -> int | None:
        """Number of groups whose grids are found together; None means all groups of a row."""
        spans = [each.span for each in self.tensors]
        return None if None in spans else math.lcm(*filter(None, spans))

    @property
    def scaled(self) -> bool:
        """Whether one of the tensors is stored in scheme.scale_dtype."""
        return any(not each.code and each.dtype is None for each in self.tensors)

    @property
    def one_width(self) -> bool:
        """Whether there is a single bit width; names of schemes then omit it."""
        return self.bits is not None and len(self.bits) == 1


def load_levels(levels: str | Part | Levels) -> Levels:
    """Return built-in levels by name, or load the LEVELS of a module.

    A module is given as its dotted name, or as a Part if it is in a user's folder. A Levels object
    is returned unchanged. Raises SchemeError, listing the known names, for anything else.
    """
    return levels if isinstance(levels, Levels) else _load(levels)


def module_of(levels: str | Part | Levels) -> str:
    """Return the name by which a configuration requests levels: a built-in name or the module."""
    if isinstance(levels, Part):
        return levels.module
    return levels.find.__module__ if isinstance(levels, Levels) else levels


def built_in_levels() -> tuple[Levels, ...]:
    """Return the levels that are part of Bitsweep."""
    return tuple(_load(name) for name in _built_in_names())


@cache
def _load(name: str | Part) -> Levels:
    if isinstance(name, Part):
        try:
            return name.load("LEVELS", Levels)
        except PartError as error:
            raise SchemeError(f"levels: {error}") from error
    outside = "." in name and all(piece.isidentifier() for piece in name.split("."))
    if not outside and name not in _built_in_names():
        raise SchemeError(
            f"levels={name!r} is unknown; choose one of {', '.join(_built_in_names())}, or a "
            "module such as my_package.my_levels that ends in LEVELS."
        )
    try:
        module = importlib.import_module(name if outside else f"quant.levels.{name}")
    except Exception as error:
        raise SchemeError(
            f"levels={name!r} cannot be imported ({type(error).__name__}: {error}); correct the "
            "module or its name, or install its package."
        ) from error
    found = getattr(module, "LEVELS", None)
    if not isinstance(found, Levels):
        raise SchemeError(
            f"levels={name!r}: the module has no LEVELS of type quant.levels.base.Levels; end it "
            "with LEVELS = Levels(...)."
        )
    return found


@cache
def _built_in_names() -> tuple[str, ...]:
    folder = pkgutil.iter_modules(quant.levels.__path__)
    names = {found.name for found in folder if not found.ispkg}
    return tuple(sorted(names - {__name__.rpartition(".")[2]}))
