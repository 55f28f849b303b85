"""Several devices on a machine that has a processor alone.

`several()` gives torch's device type for backends in Python tensors that say they lie on devices
0, 1, ... of it. Operators compute on the processor, so that figures are true ones, and refuse
tensors of two devices in the words of torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from quant.spread.connect import connect, put
from quant.spread.place import Over
from quant.spread.split import Room, Spread

KIND = "privateuseone"
_MOVES = ("aten._to_copy.", "aten.to.", "aten.copy_.")
_registered = False
_Generator = torch.Generator


def names(count: int) -> tuple[str, ...]:
    return tuple(f"{KIND}:{index}" for index in range(count))


class Lying(torch.Tensor):
    """A tensor on the processor, `held`, that says it lies elsewhere."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> Lying:
        made: Lying = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Lying({self.device}, {self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Numbers(torch.Generator):
    """A random generator of such a device; its numbers are those of the processor."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.lies

    lies: torch.device

    def manual_seed(self, seed: int) -> Numbers:
        super().manual_seed(seed)
        return self


def _generator(device: Any = "cpu") -> Any:
    if torch.device(device).type != KIND:
        return _Generator(device)
    made = Numbers()
    made.lies = torch.device(device)
    return made


@dataclass
class Devices(TorchDispatchMode):
    """Counts the numbers that cross from a device to another, by both."""

    crossed: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = _run(func, args, kwargs or {})
        both = isinstance(found, Lying) and args and isinstance(args[0], Lying)
        if both and args[0].device != found.device:
            self.crossed[str(args[0].device), str(found.device)] += found.numel()
        return found

    __hash__ = object.__hash__


class _Makers(TorchFunctionMode):
    """What torch does below the dispatcher: copies of lists to a device, and the way back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        there = device is not None and torch.device(device).type == KIND
        if there and func in (torch.tensor, torch.as_tensor):
            return func(*args, **kwargs | {"device": None}).to(device)
        if func is torch.Tensor.tolist:
            return func(*here(args))
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            index = [torch.tensor(each) if type(each) is list else each for each in args[1]]
            args = (args[0], tuple(index))
        return func(*args, **kwargs)


@contextmanager
def several() -> Iterator[Devices]:
    """Inside, tensors may lie on devices of KIND."""
    global _registered
    if not _registered:
        backend_registration._setup_privateuseone_for_python_backend()
        _registered = True
    devices = Devices()
    with devices, _Makers(), mock.patch.object(torch, "Generator", _generator):
        yield devices


def spread_loaded(model: Any, count: int) -> Spread:
    """Move a model that is loaded to `count` devices and connect its parts."""
    found = Over(tuple(Room(name) for name in names(count))).spread(model)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            put(module, torch.device(found.of(name)))
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    connect(model, found)
    return found


def here(value: Any) -> Any:
    """The values on the processor."""
    return tree_map(lambda each: each.held if isinstance(each, Lying) else each, value)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    leaves = tree_leaves((args, kwargs))
    tensors = [each for each in leaves if isinstance(each, torch.Tensor)]
    asked = next((each for each in leaves if isinstance(each, torch.device)), None)
    name = str(func)
    # As torch has it: numbers without dimensions and indices may be on the processor.
    lying = {each.device for each in tensors if isinstance(each, Lying)}
    others = [each for each in tensors if not isinstance(each, Lying) and each.dim()]
    if not name.startswith(_MOVES):
        if len(lying) > 1 or (lying and others and not name.startswith("aten.index")):
            found = sorted({str(each.device) for each in tensors})
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, but found at least two "
                f"devices, {' and '.join(found)}!"
            )
        device = asked or next(iter(lying), None)
    else:
        device = asked if name != "aten.copy_.default" else args[0].device
        device = device or next(iter(lying), None)

    def plain(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == KIND:
            return torch.device("cpu")
        return value.held if isinstance(value, Lying) else value

    result = func(*tree_map(plain, tuple(args)), **tree_map(plain, dict(kwargs)))
    if device is None or device.type != KIND:
        return result
    known = {(id(each.held), each.device): each for each in tensors if isinstance(each, Lying)}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        given = known.get((id(value), device))
        return Lying(value, device) if given is None else given

    return tree_map(wrapped, result)
