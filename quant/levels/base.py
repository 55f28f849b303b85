"""What a kind of levels says about itself, and how a scheme finds it. Imports no torch."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import quant.levels
from quant.errors import SchemeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

# The tensors of a grid by their names.
Tensors = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class GridTensor:
    """One tensor of a grid: a number for every output row and group.

    name    in Grid and QuantizedWeight: "scale".
    buffer  in the packed layout, as checkpoints call it: "scales".
    code    stored in as many bits as a weight (uint8 in QuantizedWeight, packed in the buffer);
            else a floating-point number in scheme.scale_dtype.
    """

    name: str
    buffer: str
    code: bool = False


@dataclass(frozen=True)
class Levels:
    """A kind of levels: how grids are found, and weights become codes and values on them.

    name       what a scheme calls it: "uniform".
    prefix     how the names of its schemes begin: "w" in w4g128.
    about      what its levels are, in a few words, for messages.
    tensors    of a grid, in the order in which they are packed.
    find       (weight [rows, columns], scheme, layer) -> tensors [rows] of each row's grid, in the
               dtype of weight and exactly as they will be stored. A group of columns is quantized
               by handing in just these columns.
    encode     (values, tensors, scheme) -> the code nearest to each value, as floating-point
               numbers. The tensors broadcast against the values.
    decode     (codes, tensors, scheme) -> values; the inverse of encode on the levels. In the dtype
               of the tensors.
    bits       widths of a code that there are; None: all. A kind with one is named without it.
    codes      number of codes; None: 2^bits.
    symmetric  whether schemes may ask for symmetric grids.
    grids      searches of a grid that schemes may ask for.
    check      (scheme): raises SchemeError for what else cannot be.
    sweep      tensors [groups, rows] -> arguments of the compiled column loop of GPTQ
               (cuda_ext.sweep.gptq_sweep): scale, zero, negative. None: it has no code for these
               levels and the plain loop runs.
    operators  whether the operators of cuda_ext multiply with these levels, from the same buffers;
               else layers are decoded before every product.
    draw       (words, shape, inputs, scheme, generator) -> random tensors of `shape` [groups, out]
               for a weight of `inputs` columns with mean 0 and variance 1 / inputs. `words` are its
               packed codes, all bits random; those that are no codes are mended in place. None:
               there are no random weights of these levels.
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
    sweep: Callable[[Tensors], dict[str, Tensor]] | None = None
    operators: bool = False
    draw: (
        Callable[[Tensor, tuple[int, ...], int, Scheme, torch.Generator], dict[str, Tensor]] | None
    ) = None

    def __post_init__(self) -> None:
        # Else a name such as w4g128 could be read in two ways.
        ending = r"[a-z0-9]*" if self.one_width else r"([a-z0-9]*[a-z])?"
        if not re.fullmatch(r"[a-z]" + ending, self.prefix):
            raise ValueError(
                f"levels {self.name}: prefix={self.prefix!r} cannot begin the name of a scheme; "
                "use small letters and digits, and no digit at the end where a width follows."
            )

    @property
    def one_width(self) -> bool:
        """Whether codes have one width, which then is not in the names of schemes."""
        return self.bits is not None and len(self.bits) == 1


def load_levels(levels: str | Levels) -> Levels:
    """A kind of levels by its name: a built-in one, or a dotted module that ends in LEVELS.

    An object is given back. SchemeError, naming what there is, for any other name.
    """
    return levels if isinstance(levels, Levels) else _load(levels)


def built_in_levels() -> tuple[Levels, ...]:
    """The kinds that come with Bitsweep."""
    return tuple(_load(name) for name in _built_in_names())


@cache
def _load(name: str) -> Levels:
    module = name if "." in name else f"quant.levels.{name}"
    if module == f"quant.levels.{name}" and name not in _built_in_names():
        raise SchemeError(
            f"levels={name!r} is unknown; choose one of {', '.join(_built_in_names())}, or a "
            "module such as my_package.my_levels that ends in LEVELS."
        )
    try:
        found = getattr(importlib.import_module(module), "LEVELS", None)
    except ImportError as error:
        raise SchemeError(
            f"levels={name!r} cannot be imported ({error}); correct the name of the module or "
            "install its package."
        ) from error
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
