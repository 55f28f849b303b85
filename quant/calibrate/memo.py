"""A memo of the outputs of a block's finished parts, so that no pass computes one again.

With stages (true_sequential) a block runs once for each of them, and once more for the inputs of
the next block. A part of it whose layers are all solved gives the same output in every later pass,
because what comes before it is solved, too. Such outputs are remembered and returned in the place
of the part, bit for bit, as far as they fit in quant.tiling.MEMO_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from quant.blocks import linear_layers
from quant.calibrate.structure import BlockStructure
from quant.tiling import MEMO_BYTES


@dataclass(frozen=True)
class _Output:
    """What a part returned, and the versions of its tensors: a block may change them in place."""

    value: Any
    versions: list[int]
    bytes: int


class Memo:
    """The outputs of the finished parts of one block, by batch.

    A part is a module with linear layers, all of them finished, inside no other such module. One
    that changes its input in place, or returns anything but tensors, is computed in every pass, and
    so is every part of a block in which a layer runs twice or reads the tokens of a router.
    """

    def __init__(self, block: nn.Module, structure: BlockStructure) -> None:
        self._block = block
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
        changed = [*known] if last else [*known, *self._parts]
        modules = {name: self._block.get_submodule(name) for name in changed}
        before = {name: module.__dict__.get("forward") for name, module in modules.items()}
        for name, module in modules.items():
            module.__dict__["forward"] = self._remembering(name, module, known, last)
        try:
            yield
        finally:
            for name, module in modules.items():
                if before[name] is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = before[name]
            if last:
                self._left += sum(each.bytes for each in known.values())

    def _finished_parts(self, module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            layers = linear_layers(child)
            names = {f"{prefix}{name}.{layer}".rstrip(".") for layer in layers}
            if names and names <= self._finished:
                yield f"{prefix}{name}", child
            elif names:
                yield from self._finished_parts(child, f"{prefix}{name}.")

    def _remembering(
        self, name: str, module: nn.Module, known: dict[str, _Output], last: bool
    ) -> Callable[..., Any]:
        compute = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            found = known.get(name)
            if found is not None and found.versions == _versions(found.value):
                return found.value
            given = (args, tuple(kwargs.values()))
            before = _versions(given)
            value = compute(*args, **kwargs)
            if not last and name in self._parts and before == _versions(given):
                self._remember(name, value, known)
            return value

        return forward

    def _remember(self, name: str, value: Any, known: dict[str, _Output]) -> None:
        # What is inside the part is not asked for again.
        for inner in [each for each in known if f"{each}.".startswith(f"{name}.")]:
            self._left += known.pop(inner).bytes
        parts = value if isinstance(value, tuple) else (value,)
        if not all(part is None or isinstance(part, Tensor) for part in parts):
            return
        size = sum(each.untyped_storage().nbytes() for each in _tensors(value))
        if size <= self._left:
            self._left -= size
            known[name] = _Output(value, _versions(value), size)


def _versions(value: Any) -> list[int]:
    return [tensor._version for tensor in _tensors(value)]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
