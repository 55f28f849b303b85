"""Observe how a model calls its blocks while it runs.

Nothing is assumed about a block's signature or return value: they change between versions of
transformers, and a replay that guesses them would silently compute wrong numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.blocks import Blocks, find_blocks, linear_layers
from quant.calibrate.neighbours import memory_of
from quant.embedding import rows_and_device
from quant.errors import ModelStructureError
from quant.experts import Names, routed_groups


@dataclass(frozen=True)
class BlockStructure:
    """How one block is called and what it returns, observed on one window.

    hidden_argument  position or keyword of the hidden states among the block's arguments.
    output_index     index of the hidden states in the returned tuple; None for a bare tensor.
    output_template  the returned tuple with None for its tensors; None for a bare tensor.
    groups           linear layers of the block that read the same input tensor, in the order of
                     execution: q, k and v together, then the output projection, ...
    single_pass      whether every linear layer of the block runs at most once per forward pass.
    routed           the groups that receive only tokens routed to an expert, by input: all gates
                     and ups of a mixture, all downs (quant.experts).
    """

    hidden_argument: int | str
    output_index: int | None
    output_template: tuple[Any, ...] | list[Any] | None
    groups: tuple[tuple[str, ...], ...]
    single_pass: bool
    routed: tuple[tuple[tuple[str, ...], ...], ...] = ()

    def stages(self) -> list[tuple[tuple[str, ...], ...]]:
        """Return groups that can be solved together, in execution order (a mixture's are one)."""
        stages: list[tuple[tuple[str, ...], ...]] = []
        together = {group: stage for stage in self.routed for group in stage}
        for group in self.groups:
            stage = together.get(group, (group,))
            if stage not in stages:
                stages.append(stage)
        return stages

    def hidden_of(self, output: Any) -> Tensor:
        """Return the hidden states in the block's return value."""
        result: Tensor = output if self.output_index is None else output[self.output_index]
        return result

    def output_with(self, hidden: Tensor) -> Any:
        """Return what the block would return for these hidden states."""
        if self.output_index is None or self.output_template is None:
            return hidden
        output = list(self.output_template)
        output[self.output_index] = hidden
        return type(self.output_template)(output)


@dataclass(frozen=True)
class ModelStructure:
    """The blocks of a model and how each one is called."""

    blocks: Blocks
    structures: tuple[BlockStructure, ...]


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Disable dropout and gradients inside; restore every module's training flag afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def run_model(model: PreTrainedModel, batch: Tensor) -> Any:
    """Run the model's own forward pass on ids [batch, tokens], without a KV cache."""
    _, device = rows_and_device(model)
    return model(input_ids=batch.to(device), use_cache=False, return_dict=True)


@contextmanager
def head_on_few(model: PreTrainedModel, positions: int = 1) -> Iterator[list[Tensor]]:
    """Let the head compute logits of the last `positions` only; yield a list of its whole inputs.

    A vocabulary is so large that the logits of a window, and their product, take more memory than
    anything else of a small model (measured: 430 of 490 MB). The list gets [batch, tokens, hidden]
    of every pass; it stays empty for a model that calls no module as its head.
    """
    inputs: list[Tensor] = []

    def narrow(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args:
            return None
        inputs.append(args[0])
        return (args[0][..., -positions:, :], *args[1:])

    head: nn.Module | None = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(narrow)
    try:
        yield inputs
    finally:
        if handle is not None:
            handle.remove()


def learn_structure(model: PreTrainedModel, window: Tensor) -> ModelStructure:
    """Run the model once on window [tokens] and observe how it calls its blocks.

    Raises ModelStructureError if the blocks do not form one chain of hidden states.
    """
    blocks = find_blocks(model)
    chain = _Chain(blocks)
    handles = []
    try:
        for index, observer in enumerate(chain.observers):
            handles += observer.attach(partial(chain.enter, index))
        # Changed inputs are detected by tensor versions, which inference mode does not have.
        with torch.inference_mode(False), evaluation(model), head_on_few(model):
            run_model(model, window[None].clone())
    finally:
        for handle in handles:
            handle.remove()
    if chain.order != list(range(len(blocks))):
        raise ModelStructureError(
            f"{type(model).__name__} ran the blocks of {blocks.name} in the order {chain.order}, "
            "not each once from first to last, so they cannot be calibrated one after the other."
        )
    return ModelStructure(blocks, chain.structures())


class _Observer:
    """Records a block's arguments, output and linear inputs during one real forward pass."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.output: Any = None
        self.template: tuple[Any, ...] | list[Any] | None = None
        # Keys of inputs by layer. The tensors are kept alive while the block runs, so that an
        # address is not reused.
        self._keys: dict[str, list[tuple[Any, ...]]] = {}
        self._alive: list[Tensor] = []

    def attach(self, on_call: Callable[[], None]) -> list[Any]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.args, self.kwargs = args, kwargs
            on_call()

        def after(_: nn.Module, __: Any, output: Any) -> None:
            self.output, self.template = output, _template(output)
            self._alive.clear()

        handles = [
            self.block.register_forward_pre_hook(before, with_kwargs=True),
            self.block.register_forward_hook(after),
        ]
        for name, module in linear_layers(self.block).items():
            handles.append(module.register_forward_pre_hook(self._reader(name)))
        return handles

    def forget(self) -> None:
        """Drop the tensors and keep the recorded facts."""
        self.args, self.kwargs, self.output = (), {}, None

    def _reader(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def read(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            place = memory_of(x), x.storage_offset(), tuple(x.shape), x.stride()
            key = (*place, x.dtype, x._version)
            self._keys.setdefault(name, []).append(key)
            self._alive.append(x)

        return read

    def single_pass(self) -> bool:
        return all(len(keys) == 1 for keys in self._keys.values())

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Group layers with equal inputs; layers that did not run are single groups at the end.

        The groups of experts follow from the structure; they stand where the first of them ran.
        """
        found: dict[tuple[Any, ...], list[str]] = {}
        mixture = _mixture_of(routed_groups(self.block))
        for name, keys in self._keys.items():
            for group in mixture.get(name, ()):
                found.setdefault(group, list(group))
            if name not in mixture:
                found.setdefault(tuple(keys), []).append(name)
        met = {name for names in found.values() for name in names}
        idle = [(name,) for name in linear_layers(self.block) if name not in met]
        return (*map(tuple, found.values()), *idle)


class _Chain:
    """Follows the hidden states from block to block while the model runs.

    It keeps only the hidden states of one block, so that memory does not grow with depth.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.observers = [_Observer(block) for block in blocks.modules]
        self.order: list[int] = []
        self._blocks = blocks
        self._arguments: list[int | str] = []
        self._indices: list[int | None] = []
        self._problem: ModelStructureError | None = None

    def enter(self, index: int) -> None:
        """Note that block `index` is about to run.

        A problem is stored, not raised, because a wrong order of blocks is reported first.
        """
        self.order.append(index)
        try:
            if self.order == [0]:
                first = _first_hidden_argument(self.observers[0], self._blocks.block_name(0))
                self._arguments.append(first)
            elif self.order[-2:] == [index - 1, index]:
                self._follow(self.observers[index - 1], self.observers[index], index - 1)
        except ModelStructureError as error:
            self._problem = self._problem or error

    def _follow(self, source: _Observer, target: _Observer, index: int) -> None:
        name = f"{self._blocks.block_name(index)} ({type(source.block).__name__})"
        output_index, argument = _link(source.output, target, name)
        self._indices.append(output_index)
        self._arguments.append(argument)
        source.forget()

    def structures(self) -> tuple[BlockStructure, ...]:
        """Return the structures of the blocks, if each ran once, from first to last."""
        if self._problem is not None:
            raise self._problem
        last, indices = self.observers[-1], self._indices
        like = indices[-1] if indices else self._only_output(last)
        return tuple(
            BlockStructure(
                hidden_argument=argument,
                output_index=output_index,
                output_template=observer.template,
                groups=observer.groups(),
                single_pass=observer.single_pass(),
                routed=tuple(routed_groups(observer.block)),
            )
            for argument, output_index, observer in zip(
                self._arguments, [*indices, like], self.observers, strict=True
            )
        )

    def _only_output(self, only: _Observer) -> int | None:
        return _only_hidden_output(only, self._arguments[0], self._blocks.block_name(0))


def _mixture_of(stages: Sequence[tuple[Names, ...]]) -> dict[str, list[Names]]:
    """Return, for every layer of a mixture, all groups of that mixture (downs last)."""
    found: dict[str, list[Names]] = {}
    for first, down in zip(stages[::2], stages[1::2], strict=True):
        groups = [*first, *down]
        found |= {name: groups for group in groups for name in group}
    return found


def _link(output: Any, target: _Observer, name: str) -> tuple[int | None, int | str]:
    """Find which part of a block's output is which argument of the next block."""
    if isinstance(output, Tensor):
        parts: list[tuple[int | None, Any]] = [(None, output)]
    elif type(output) in (tuple, list):
        parts = list(enumerate(output))
    else:
        raise ModelStructureError(
            f"{name} returns a {type(output).__name__}; only a tensor or a tuple can be replayed."
        )
    arguments: list[tuple[int | str, Any]] = [*enumerate(target.args), *target.kwargs.items()]
    links = [
        (index, argument)
        for index, part in parts
        for argument, value in arguments
        if isinstance(part, Tensor) and part is value
    ]
    if len(links) == 1:
        return links[0]
    problem = (
        "is not handed to the next block as it is (the model changes it in between)"
        if not links
        else f"reaches the next block in {len(links)} arguments ({[a for _, a in links]})"
    )
    raise ModelStructureError(
        f"the output of {name} {problem}; a chain of one tensor of hidden states is needed to "
        "calibrate block by block. method=rtn needs no such chain."
    )


def _first_hidden_argument(observer: _Observer, name: str) -> int | str:
    if observer.args and isinstance(observer.args[0], Tensor):
        return 0
    if isinstance(observer.kwargs.get("hidden_states"), Tensor):
        return "hidden_states"
    raise ModelStructureError(
        f"{name} is called without a first tensor or a hidden_states argument "
        f"(keywords: {', '.join(observer.kwargs)}), so its hidden states cannot be identified."
    )


def _only_hidden_output(observer: _Observer, argument: int | str, name: str) -> int | None:
    """Return the index of the hidden states in the output of a model's only block."""
    if isinstance(observer.output, Tensor):
        return None
    source = observer.args[argument] if isinstance(argument, int) else observer.kwargs[argument]
    parts = observer.output if type(observer.output) in (tuple, list) else ()
    for index, part in enumerate(parts):
        if isinstance(part, Tensor) and part.shape == source.shape and part.dtype == source.dtype:
            return index
    raise ModelStructureError(
        f"{name} returns no tensor of the shape of its hidden states {tuple(source.shape)}."
    )


def _template(output: Any) -> tuple[Any, ...] | list[Any] | None:
    if isinstance(output, Tensor):
        return None
    result: tuple[Any, ...] | list[Any] | None = type(output)(
        None if isinstance(part, Tensor) else part for part in output
    )
    return result
