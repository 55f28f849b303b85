"""What a kind of levels says about itself, and how a scheme finds it. Imports no torch."""

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

# The tensors of a grid by their names.
Tensors = Mapping[str, "Tensor"]
# Types that the numbers of a grid may be stored in, and their bits.
FLOATS = {"float8_e4m3fn": 8, "float8_e5m2": 8, "float16": 16, "bfloat16": 16, "float32": 32}
WIDTHS = (2, 3, 4, 5, 6, 7, 8)  # bits of a packed integer
# What a layer (quant.linear.QuantLinear) has besides its grid: tensors, then its other attributes.
RESERVED = (
    "qweight", "g_idx", "bias", "weight", "input_operator", "tiles", "tile_scales", "tile_zeros",
    "tile_negative", "scheme", "in_features", "out_features", "requested", "kernel", "tiled",
    "way", "packed", "quantized_weight", "from_quantized", "dequantize", "training", "forward",
    "type", "to", "half", "float", "double", "apply", "train", "eval", "buffers", "children",
    "modules", "parameters", "state_dict",
)  # fmt: skip


@dataclass(frozen=True)
class GridTensor:
    """One tensor of a grid: an entry for every output row and group, super-block or whole row.

    name    in Grid and QuantizedWeight: "scale".
    buffer  in the packed layout, as checkpoints call it: "scales".
    code    holds integers (uint8 in QuantizedWeight, packed in the buffer); else floating-point
            numbers.
    width   bits of such an integer; None: as many as a weight's code.
    dtype   type of such a number, one of FLOATS; None: scheme.scale_dtype.
    span    groups that share an entry: 1; N, a super-block (the last may have fewer); None: all
            groups of a row.
    values  numbers in an entry; None: one for every code, a codebook. Unless it is 1 they are one
            dimension more, the last.
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
            (self.width not in (None, *WIDTHS), f"width={self.width} is none of {WIDTHS}"),
            (self.dtype not in (None, *FLOATS), f"dtype={self.dtype!r} is none of {list(FLOATS)}"),
            (self.span is not None and self.span < 1, f"span={self.span} is no number of groups"),
            (self.values is not None and self.values < 1, f"values={self.values} is below 1"),
            (not self.buffer.isidentifier(), f"buffer={self.buffer!r} is no name of a tensor"),
            (self.buffer in RESERVED, f"a layer has something else called {self.buffer}"),
        )
        for _, sentence in (each for each in wrong if each[0]):
            raise ValueError(f"grid tensor {self.name}: {sentence}; correct its GridTensor.")

    def entries(self, groups: int) -> int:
        """Entries of a row that has so many groups."""
        return 1 if self.span is None else -(-groups // self.span)

    def count(self, scheme: Scheme) -> int:
        """Numbers in an entry."""
        return scheme.max_code + 1 if self.values is None else self.values

    def bits(self, scheme: Scheme) -> int:
        """Stored bits of a number."""
        return (self.width or scheme.bits) if self.code else FLOATS[self.storage(scheme)]

    def storage(self, scheme: Scheme) -> str:
        """The type of its numbers in QuantizedWeight."""
        return "uint8" if self.code else self.dtype or scheme.scale_dtype

    def behind(self, scheme: Scheme) -> tuple[int, ...]:
        """The sizes of the dimensions behind that of the entries: none, or the numbers in one."""
        return () if self.values == 1 else (self.count(scheme),)


@dataclass(frozen=True)
class Levels:
    """A kind of levels: how grids are found, and weights become codes and values on them.

    name       what a scheme calls it: "uniform".
    prefix     how the names of its schemes begin: "w" in w4g128.
    about      what its levels are, in a few words, for messages.
    tensors    of a grid, in the order in which they are packed.
    find       (weight [rows, columns], scheme, layer) -> tensors of each row's grid, in the dtype
               of weight and exactly as they will be stored. The columns are one group, and tensors
               [rows]. If a tensor has a span, they are the groups that are found together, of
               scheme.group_size columns each (the last may be short, and there may be fewer), and
               tensors [rows, entries]. Numbers of an entry come last: [rows, values].
    encode     (values, tensors, scheme) -> the code nearest to each value, as floating-point
               numbers. The tensors broadcast against the values; those with several numbers in an
               entry have these as one dimension more, the last.
    decode     (codes, tensors, scheme) -> values; the inverse of encode on the levels. In the dtype
               of the tensors.
    bits       widths of a code that there are; None: all. A kind with one is named without it.
    codes      number of codes; None: 2^bits.
    symmetric  whether schemes may ask for symmetric grids.
    grids      searches of a grid that schemes may ask for.
    check      (scheme): raises SchemeError for what else cannot be.
    loop_arguments  tensors [groups, rows] -> arguments of the compiled column loop of GPTQ
               (cuda_ext.column_loop): scale, zero, negative. None: it has no code for these
               levels and the plain loop runs.
    operators  whether the operators of cuda_ext multiply with these levels, from the same buffers;
               else layers are decoded before every product.
    draw       (words, shape, inputs, scheme, generator) -> random tensors of `shape` [groups, out]
               for a weight of `inputs` columns with mean 0 and variance 1 / inputs; of groups that
               share an entry the first is taken. `words` are its packed codes, all bits random;
               those that are no codes are mended in place. None: there are no random weights of
               these levels.
    version    raised when the same codes and tensors come to stand for other values: artifacts
               of another version are refused.
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
    check: Callable[[Scheme], None] | None = None
    loop_arguments: Callable[[Tensors], dict[str, Tensor]] | None = None
    operators: bool = False
    draw: (
        Callable[[Tensor, tuple[int, ...], int, Scheme, torch.Generator], dict[str, Tensor]] | None
    ) = None
    version: int = 1

    def __post_init__(self) -> None:
        # Else a name such as w4g128 could be read in two ways.
        ending = r"[a-z0-9]*" if self.one_width else r"([a-z0-9]*[a-z])?"
        if not re.fullmatch(r"[a-z]" + ending, self.prefix):
            raise ValueError(
                f"levels {self.name}: prefix={self.prefix!r} cannot begin the name of a scheme; "
                "use small letters and digits, and no digit at the end where a width follows."
            )
        for field in ("name", "buffer"):
            called = [getattr(each, field) for each in self.tensors]
            if not called or len(set(called)) < len(called):
                raise ValueError(
                    f"levels {self.name}: the tensors of a grid have the {field}s "
                    f"{', '.join(called) or 'of nothing'}; declare one tensor or more, each with "
                    f"a {field} of its own."
                )
        if self.operators and any(
            (each.span, each.values, each.width, each.dtype) != (1, 1, None, None)
            for each in self.tensors
        ):
            raise ValueError(
                f"levels {self.name}: the operators of cuda_ext know one number for every row and "
                "group, in the type of scales or as a code; leave operators=False."
            )

    @property
    def span(self) -> int | None:
        """Groups whose grids are found together; None: all groups of a row."""
        spans = [each.span for each in self.tensors]
        return None if None in spans else math.lcm(*filter(None, spans))

    @property
    def scaled(self) -> bool:
        """Whether a tensor is in scheme.scale_dtype."""
        return any(not each.code and each.dtype is None for each in self.tensors)

    @property
    def one_width(self) -> bool:
        """Whether codes have one width, which then is not in the names of schemes."""
        return self.bits is not None and len(self.bits) == 1


def load_levels(levels: str | Part | Levels) -> Levels:
    """A kind of levels: a built-in one by its name, or the module that ends in LEVELS.

    A module is given by its dotted name, or as a Part where it lies in a user's folder. An object
    is given back. SchemeError, naming what there is, for anything else.
    """
    return levels if isinstance(levels, Levels) else _load(levels)


def module_of(levels: str | Part | Levels) -> str:
    """The name under which a configuration asks for a kind: the built-in name or the module."""
    if isinstance(levels, Part):
        return levels.module
    return levels.find.__module__ if isinstance(levels, Levels) else levels


def built_in_levels() -> tuple[Levels, ...]:
    """The kinds that come with Bitsweep."""
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
            f"levels={name!r}: the module has no LEVELS of quant.levels.base.Levels; let it end in "
            "LEVELS = Levels(...)."
        )
    return found


@cache
def _built_in_names() -> tuple[str, ...]:
    names = {found.name for found in pkgutil.iter_modules(quant.levels.__path__)}
    return tuple(sorted(names - {__name__.rpartition(".")[2]}))
