"""Find the module of a block that computes the input of its linear layers, and all its readers.

Names are not used. The block runs once under a dispatch mode, which sees every operator that reads
the output of a module, so that it detects residual connections and other readers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from quant.blocks import LINEAR_TYPES, linear_layers

Names = tuple[str, ...]
OUTPUT = "the output of the block"
NONE: frozenset[str] = frozenset()


@dataclass
class Maker:
    """A module, the arguments of its call, and the readers of its output.

    name  name in the block.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    readers: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Neighbours:
    """For every group of layers with one input: the module that computes it.

    makers   the module, or why no module can be changed.
    sources  the linear layers from whose outputs operators without parameters compute it, the one
             that ran last first: gate and up of an MLP; q, k and v of attention.
    output   what the block returned.
    """

    makers: Mapping[Names, Maker | str]
    sources: Mapping[Names, tuple[str, ...]]
    output: Tensor


def find_neighbours(
    block: nn.Module, groups: Sequence[Names], run: Callable[[], Tensor]
) -> Neighbours:
    """Run the block once and find the maker of each group's input, unless it has other readers.

    run() calls the block and returns its hidden states.
    """
    watch = _Watch(block)
    with ExitStack() as attached:
        for handle in watch.attach():
            attached.callback(handle.remove)
        with watch:
            output = run()
    return Neighbours(
        {names: watch.maker(names) for names in groups},
        {names: watch.sources(names) for names in groups},
        output,
    )


def changeable_neighbours(
    holders: Counter[int],
    block: nn.Module,
    groups: Sequence[Names],
    run: Callable[[], Tensor],
    taken: Callable[[str], bool] = lambda _: False,
) -> Neighbours:
    """As `find_neighbours`, with makers only where their parameters may be changed.

    holders  parameter_holders of the block's model.
    taken    taken(name of a linear layer of the block) -> whether it is quantized already.
    """
    found = find_neighbours(block, groups, run)
    linears = linear_layers(block)

    def changeable(names: Names, maker: Maker | str) -> Maker | str:
        if isinstance(maker, str):
            return maker
        if next(maker.module.parameters(), None) is None:
            return f"{maker.name}, which makes its input, has no parameters"
        if isinstance(maker.module, LINEAR_TYPES) and taken(maker.name):
            return f"{maker.name}, which makes its input, is quantized already"
        if shared(holders, [maker.module, *(linears[name] for name in names)]):
            return f"it or {maker.name}, which makes its input, shares parameters with others"
        return maker

    makers = {names: changeable(names, maker) for names, maker in found.makers.items()}
    return replace(found, makers=makers)


def parameter_holders(model: nn.Module) -> Counter[int]:
    """The number of modules of the model that hold a parameter, by its identity."""
    modules = model.named_modules(remove_duplicate=False)
    return Counter(id(value) for _, module in modules for value in module._parameters.values())


def shared(holders: Counter[int], modules: Sequence[nn.Module]) -> bool:
    """Whether other modules, or two of these, share parameters of these modules."""
    ours = {id(value) for module in modules for value in module.parameters()}
    return sum(holders[each] for each in ours) > len(ours)


class _Watch(TorchDispatchMode):
    """Follows the outputs of the modules of a block by their memory address.

    It keeps the tensors while the block runs, so that an address is not reused.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's modes have no types
        self._block = block
        self._made: dict[int, Maker] = {}
        self._calls: dict[str, int] = {}
        self._inputs: dict[str, list[Tensor]] = {}
        self._inside: list[str] = []  # linear layers that are running
        # Of every tensor, by memory: the linear layers that it comes from. A new tensor at the same
        # address is the result of an operator, which says anew where it comes from.
        self._sources: dict[int, frozenset[str]] = {}
        self._reached: dict[str, frozenset[str]] = {}  # the same of the inputs of linear layers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        views = {memory_of(tensor) for tensor in tensors_in(result)}
        for tensor in tensors_in((args, kwargs)):
            made = self._made.get(memory_of(tensor))
            # Making a view is not reading; an operator that reads the view is a reader.
            if made is not None and (func._schema.is_mutable or views != {memory_of(tensor)}):
                made.readers.add(self._inside[-1] if self._inside else str(func))
        given = (
            self._sources.get(memory_of(tensor), NONE) for tensor in tensors_in((args, kwargs))
        )
        sources = NONE.union(*given)
        self._sources |= dict.fromkeys(views, sources)
        return result

    def attach(self) -> Iterator[Any]:
        """Attach the hooks; yields their handles."""
        linears = linear_layers(self._block)
        for name, module in self._block.named_modules():
            if name in linears:
                yield module.register_forward_pre_hook(self._enter(name))
            if name:
                yield module.register_forward_hook(
                    self._leave(name, name in linears), with_kwargs=True
                )
        yield self._block.register_forward_hook(self._returned)

    def maker(self, names: Names) -> Maker | str:
        """Return the module that computes these layers' input, or why it cannot be changed."""
        inputs = self._inputs.get(names[0], [])
        if len(inputs) != 1:
            return f"{names[0]} runs {len(inputs)} times in a pass"
        made = self._made.get(memory_of(inputs[0]))
        if made is None:
            return "no module of the block makes its input"
        if self._calls[made.name] != 1:
            return (
                f"{made.name}, which makes its input, runs {self._calls[made.name]} times in a pass"
            )
        if made.output.numel() != inputs[0].numel() or made.output.shape[-1] != inputs[0].shape[-1]:
            return f"its input is only a part of what {made.name} makes"
        others = made.readers - set(names)
        if others:
            return f"{', '.join(sorted(others))} also reads what {made.name} makes"
        return made

    def sources(self, names: Names) -> tuple[str, ...]:
        """Return the linear layers that the input of these layers comes from, the latest first."""
        found = self._reached.get(names[0], NONE)
        return tuple(name for name in reversed(self._inputs) if name in found)

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._reached[name] = self._sources.get(memory_of(args[0]), NONE)
            self._inputs.setdefault(name, []).append(args[0])
            self._inside.append(name)

        return enter

    def _leave(self, name: str, linear: bool) -> Callable[..., None]:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
            if linear:
                self._inside.pop()
            self._calls[name] = self._calls.get(name, 0) + 1
            if any(each is not None for each in module._parameters.values()):
                # Nothing passes scales on through the parameters of a norm.
                here = frozenset({name}) if linear else NONE
                self._sources |= {memory_of(tensor): here for tensor in tensors_in(output)}
            given = {memory_of(tensor) for tensor in tensors_in((args, kwargs))}
            for tensor in tensors_in(output):
                # A tensor that a module only passes on belongs to the module that computed it.
                if tensor.numel() and memory_of(tensor) not in given | self._made.keys():
                    self._made[memory_of(tensor)] = Maker(name, module, args, dict(kwargs), tensor)

        return leave

    def _returned(self, _: nn.Module, __: Any, output: Any) -> None:
        for tensor in tensors_in(output):
            made = self._made.get(memory_of(tensor))
            if made is not None:
                made.readers.add(OUTPUT)


def memory_of(tensor: Tensor) -> int:
    """Return what views of one tensor share, also where there are no values (the meta device)."""
    address: int = tensor.untyped_storage()._cdata
    return address


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
