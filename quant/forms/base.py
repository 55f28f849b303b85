"""Form: the spec of a way to store a weight [out, in] in other tensors than codes and grids.

A form is a module of this package that ends in FORM. It is stored and loaded by its name, so it is
found by being there, as levels are; a method of any package may make weights of a form. Importing
it is cheap: torch is imported inside its functions.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import quant.forms

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, int]  # of the weight: (outputs, inputs)
Tensors = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Form:
    """How a weight is stored, read back and multiplied.

    name     the module's name, in files and records: "low_rank".
    title    name for people: "low rank".
    tensors  name -> (dtype, number of dimensions), in the order of the files; exactly these are
             stored.
    fault    fault(tensors) -> why tensors of these dtypes and dimensions, all finite, cannot be a
             weight, as the end of a sentence that begins with the layer; None: they can. Files may
             be damaged: sizes must fit each other, and indices must be in range.
    shape    shape(tensors) -> (outputs, inputs) of the weight.
    dense    dense(tensors) -> the weight [out, in] in float32.
    product  product(x [..., in], tensors) -> x W^T [..., out] in the dtype of x, which is float32
             or float64, without a dense W where that saves work.
    way      how products are computed, in words, for records of timings.
    """

    name: str
    title: str
    tensors: Mapping[str, tuple[str, int]]
    fault: Callable[[Tensors], str | None]
    shape: Callable[[Tensors], Shape]
    dense: Callable[[Tensors], Tensor]
    product: Callable[[Tensor, Tensors], Tensor]
    way: str

    @property
    def first(self) -> str:
        """The tensor by which files are known to hold a weight of this form."""
        return next(iter(self.tensors))

    def check(self, tensors: Tensors) -> str | None:
        """Return why tensors cannot be a weight of this form, as `fault` does; None: they can."""
        import torch

        if tensors.keys() != self.tensors.keys():
            found = ", ".join(sorted(tensors)) or "no tensor"
            return f"has {found} where {', '.join(self.tensors)} belong"
        for name, (dtype, dims) in self.tensors.items():
            tensor = tensors[name]
            if tensor.dtype != getattr(torch, dtype) or tensor.dim() != dims or not tensor.numel():
                found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
                return f"has {name} {found} where {dtype} with {dims} dimensions belongs"
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return f"has NaN or infinite values in {name}"
        return self.fault(tensors)


@cache
def forms() -> dict[str, Form]:
    """Return all forms by name."""
    found = {}
    for module in pkgutil.iter_modules(quant.forms.__path__):
        if module.name != __name__.rpartition(".")[2]:
            form = importlib.import_module(f"quant.forms.{module.name}").FORM
            if not isinstance(form, Form) or form.name != module.name:
                raise TypeError(f"quant.forms.{module.name} must end in FORM = Form({module.name})")
            found[form.name] = form
    return found
