"""A memo of the outputs of a block's finished parts, so that no pass computes one again.

With stages (true_sequential) a block runs once for each of them, and once more for the inputs of
the next block. A part of it whose layers are all solved gives the same output in every later pass,
because what comes before it is solved, too. Such outputs are remembered and returned in the place
of the part, bit for bit, as far as they fit in quant.tiling.MEMO_BYTES. So is what
scaled_dot_product_attention returned before the first layer that is not solved: the pass that
collects what the layer behind it reads ends there, and the next one needs it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from quant.blocks import linear_layers
from quant.calibrate.structure import BlockStructure
from quant.tiling import MEMO_BYTES

ATTENTION = "attention "  # and the number of the call: no module has such a name


@dataclass(frozen=True)
class _Output:
    """What a part returned, and the versions of its tensors: a block may change them in place."""

    value: Any
    versions: list[int]
    bytes: int


@dataclass
class _Pass:
    """One pass of a block.

    known      outputs of the batch that are remembered.
    last       no later pass needs them.
    touched    what was returned from `known` or entered there, in order.
    attention  calls of scaled_dot_product_attention so far.
    solved     whether every linear layer that has run is solved.
    """

    known: dict[str, _Output]
    last: bool
    touched: list[str] = field(default_factory=list)
    attention: int = 0
    solved: bool = True


class Memo:
    """The outputs of the finished parts of one block, by batch.

    A part is a module with linear layers, all of them finished, inside no other such module. One
    that changes its input in place, or returns anything but tensors, is computed in every pass, and
    so is every part of a block in which a layer runs twice or reads the tokens of a router.
    """

    def __init__(self, block: nn.Module, structure: BlockStructure) -> None:
        self._block, self._linears = block, linear_layers(block)
        self._remembers = structure.single_pass and not structure.routed
        self._left = MEMO_BYTES
        self._finished: set[str] = set()
        self._parts: dict[str, nn.Module] = {}
        self._known: dict[int, dict[str, _Output]] = {}

    def finish(self, layers: Iterable[str]) -> None:
        """Take layers, named as in the block, as final from now on."""
        self._finished.update(layers)
        if self._remembers:
            self._parts = dict(self._finished_parts(self._block, ""))

    @contextmanager
    def during(self, batch: int, last: bool) -> Iterator[None]:
        """Let finished parts return what they have returned for this batch, inside one pass.

        last  no later pass needs an output of the batch.
        """
        known = self._known.pop(batch, {}) if last else self._known.setdefault(batch, {})
        run = _Pass(known, last)
        forwards = self._forwards(run) if known or (self._parts and not last) else {}
        before = {module: module.__dict__.get("forward") for module in forwards}
        for module, own in forwards.items():
            module.__dict__["forward"] = own
        try:
            with _Attention(partial(self._attention, run)) if forwards else nullcontext():
                yield
        finally:
            for module, forward in before.items():
                if forward is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = forward
            if last:
                self._left += sum(each.bytes for each in known.values())

    def _forwards(self, run: _Pass) -> dict[nn.Module, Callable[..., Any]]:
        """What modules do in a pass: finished parts remember, other layers say that they ran."""
        parts = [name for name in run.known if not name.startswith(ATTENTION)]
        forwards: dict[nn.Module, Callable[..., Any]] = {}
        for name in parts if run.last else [*parts, *self._parts]:
            module = self._block.get_submodule(name)
            forwards[module] = partial(self._part, run, name, module.forward)
        for name, layer in self._linears.items():
            if name not in self._finished:
                forwards[layer] = partial(_unsolved, run, layer.forward)
        return forwards

    def _finished_parts(self, module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            layers = linear_layers(child)
            names = {f"{prefix}{name}.{layer}".rstrip(".") for layer in layers}
            if names and names <= self._finished:
                yield f"{prefix}{name}", child
            elif names:
                yield from self._finished_parts(child, f"{prefix}{name}.")

    def _part(
        self, run: _Pass, name: str, compute: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The forward function of a finished part."""
        remembers = not run.last and name in self._parts
        return self._recall(run, name, remembers, compute, *args, **kwargs)

    def _attention(self, run: _Pass, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Attention inside the block; what an unsolved layer may have changed is not kept."""
        if not run.solved:
            return compute(*args, **kwargs)
        name = f"{ATTENTION}{run.attention}"
        run.attention += 1
        return self._recall(run, name, not run.last, compute, *args, **kwargs)

    def _recall(
        self,
        run: _Pass,
        name: str,
        remembers: bool,
        compute: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        found = run.known.get(name)
        if found is not None and found.versions == _versions(found.value):
            run.touched.append(name)
            return found.value
        given, at = (args, tuple(kwargs.values())), len(run.touched)
        before = _versions(given)
        value = compute(*args, **kwargs)
        if remembers and before == _versions(given):
            self._remember(run, name, value, run.touched[at:])
        return value

    def _remember(self, run: _Pass, name: str, value: Any, inside: Iterable[str]) -> None:
        known = run.known
        # What is inside the part is not asked for again.
        for inner in [
            each for each in known if each in inside or f"{each}.".startswith(f"{name}.")
        ]:
            self._left += known.pop(inner).bytes
        parts = value if isinstance(value, tuple) else (value,)
        if not all(part is None or isinstance(part, Tensor) for part in parts):
            return
        size = sum(each.untyped_storage().nbytes() for each in _tensors(value))
        if size <= self._left:
            self._left -= size
            known[name] = _Output(value, _versions(value), size)
            run.touched.append(name)


class _Attention(TorchFunctionMode):
    """Gives calls of scaled_dot_product_attention to `recall(function, *arguments)`."""

    def __init__(self, recall: Callable[..., Any]) -> None:
        super().__init__()
        self._recall = recall

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self._recall(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _unsolved(run: _Pass, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The forward function of a layer that is not finished."""
    run.solved = False
    return compute(*args, **kwargs)


def _versions(value: Any) -> list[int]:
    return [tensor._version for tensor in _tensors(value)]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
