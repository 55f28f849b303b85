"""InputOperator: what is done to a linear layer's input at run time: changes and roundings.

It is a child module of the layer, called NAME. Its tensors are in the state dict under the layer's
name: `q_proj.input_operator.0.scale` is the tensor `scale` of the first change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from quant.errors import QuantizationError
from quant.transforms.base import Operation, Transform

NAME = "input_operator"


class KeptChange(nn.Module):
    """One change x' = x T, or a rounding, rebuilt from its tensors by the transform that made it.

    The tensors move between devices with the module but keep their dtypes, because rounding them
    would make another T, which W' does not undo.
    """

    def __init__(
        self, transform: Transform, tensors: Mapping[str, Tensor], options: Any = None
    ) -> None:
        """Copy the tensors; `options` are those of a transform that rounds, and None for others.

        Raises QuantizationError for names that a module cannot have and for values that are not
        finite.
        """
        super().__init__()
        self.transform, self.options = transform, options
        self._names = tuple(tensors)
        for name, tensor in tensors.items():
            if not name.isidentifier() or hasattr(self, name):
                raise QuantizationError(
                    f"transform {transform.name}: a tensor of its change is called {name!r}, which "
                    "a module cannot have; choose a name of letters, digits and _."
                )
            narrow = tensor.dtype.itemsize == 1  # torch.isfinite does not support float8
            if not bool((tensor.float() if narrow else tensor).isfinite().all()):
                raise QuantizationError(
                    f"transform {transform.name}: {name} of its change has NaN or infinite values; "
                    "correct the function change, or look for damage in its weights and Hessian."
                )
            self.register_buffer(name, tensor.detach().clone())

    @property
    def change(self) -> Operation:
        """The change that the current tensors define."""
        assert self.transform.rebuild is not None  # QuantizationConfig and the loader check it
        given = () if not self.transform.rounds else (self.options,)
        return self.transform.rebuild(self.tensors(), *given)

    def tensors(self) -> dict[str, Tensor]:
        return {name: cast(Tensor, self._buffers[name]) for name in self._names}

    def forward(self, x: Tensor) -> Tensor:
        """Return x T for x [..., in]; wider than x if the change computes in a wider dtype."""
        return self.change.inputs(x)

    def extra_repr(self) -> str:
        held = [
            f"{name} {str(each.dtype).removeprefix('torch.')} {list(each.shape)}"
            for name, each in self.tensors().items()
        ]
        tag = [] if not self.transform.rounds else [self.transform.tag(self.options)]
        return ", ".join([self.transform.name, *tag, *held])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        held = self.tensors()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types
        for name, moved in self.tensors().items():
            if moved.dtype != held[name].dtype:
                self._buffers[name] = held[name].to(moved.device)
        return self


class InputOperator(nn.ModuleList):
    """Changes of a layer's input, applied in order and rounded once, to the dtype of the input."""

    def __init__(self, changes: list[KeptChange]) -> None:
        super().__init__(changes)

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., in] in the coordinates of the layer's weight, in the dtype of x."""
        changed = x
        for each in self:
            changed = each(changed)
        return changed.to(x.dtype)

    def changes(self) -> list[KeptChange]:
        return [cast(KeptChange, each) for each in self]


def operator_of(module: nn.Module) -> InputOperator | None:
    """Return the operator in front of a layer, packed or not; None if it has none."""
    return cast(InputOperator | None, module._modules.get(NAME))


def operator_bits(module: nn.Module) -> int:
    """Return the stored bits of all operators in a module and its submodules."""
    kept = (each for each in module.modules() if isinstance(each, KeptChange))
    return sum(8 * tensor.nbytes for each in kept for tensor in each.tensors().values())


def rounds_inputs(model: nn.Module) -> bool:
    """Whether an operator in a model rounds its input, so that activations are simulated."""
    return any(isinstance(each, KeptChange) and each.transform.rounds for each in model.modules())


@torch.no_grad()
def attach(linear: nn.Module, operator: InputOperator) -> None:
    """Put an operator in front of an nn.Linear or Conv1D, after the one that it already has."""
    operator = operator.to(next(linear.parameters()).device)
    present = operator_of(linear)
    if present is not None:
        present.extend(operator)
        return
    linear.add_module(NAME, operator)
    # First of all hooks: those that observe the layer's input see what its weight multiplies.
    linear.register_forward_pre_hook(_operate, prepend=True)


def detach(block: nn.Module) -> None:
    """Remove the operators of the nn.Linear and Conv1D layers of a block."""
    for module in list(block.modules()):
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is _operate]:
            del hooks[key], module._modules[NAME]


@contextmanager
def absorbed(block: nn.Module, tokens: int) -> Iterator[None]:
    """Let the float32 layers of a block have weights W' T^T, which read x, in the place of W'.

    For passes of `tokens` tokens: a weight has fewer rows than that, and layers that read the same
    x would each make x T again. What rounds x, shifts it or is not differentiable stays in front.
    """
    taken = []
    for module in block.modules():
        operator = operator_of(module)
        if operator is not None and type(module) is nn.Linear and 2 * len(module.weight) < tokens:
            weight = _transposed(operator, module.weight)
            if weight is not None:
                taken.append((module, operator, module.weight.data, weight))
    for module, _, _, weight in taken:
        detach(module)
        module.weight.data = weight
    try:
        yield
    finally:
        for module, operator, weight, _ in taken:
            module.weight.data = weight
            attach(module, operator)


def _transposed(operator: InputOperator, weight: Tensor) -> Tensor | None:
    """Return weight T^T for an operator x T: its rows are gradients of x T at x = 0.

    None if the operator is not that, or would be rounded to a narrower dtype than float32.
    """
    if weight.dtype != torch.float32 or rounds_inputs(operator):
        return None
    with torch.enable_grad():
        zero = torch.zeros_like(weight[0], requires_grad=True)
        found = operator(zero.clone())
    if found.grad_fn is None or bool(found.any()):
        return None
    # All rows in one batch: one x for each would be as much work forward as backward.
    (gradients,) = torch.autograd.grad(found, zero, weight.detach(), is_grads_batched=True)
    return gradients


def _operate(linear: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Apply the operator as a forward pre-hook."""
    operator = operator_of(linear)
    assert operator is not None
    return (operator(args[0]), *args[1:])
