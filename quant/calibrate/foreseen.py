"""Look at a model without weights as the transforms will look at it when it is quantized.

The skeleton runs once: what depends on its parameters is on the meta device and has shapes alone;
integers and buffers (positions, masks, rotary frequencies) have their values, which the code of
models asks for. The observers of calibration see the same operators as in a quantization. Where a
number decides (whether a norm takes a scaling in), a module of its class and width is tried with
random parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from quant.blocks import LINEAR_TYPES, Blocks, find_blocks, linear_layers
from quant.calibrate.capture import capture, forwards_replaced, logits_after_blocks, run_block
from quant.calibrate.neighbours import (
    Maker,
    changeable_neighbours,
    parameter_holders,
    tensors_in,
)
from quant.calibrate.residual import (
    head_norm,
    normed_layers,
    norms_running,
    require_alone,
    require_plain,
    stream_parts,
)
from quant.calibrate.source import LoadedModel
from quant.calibrate.structure import evaluation, learn_structure
from quant.calibrate.survey import mark, unfit_layers
from quant.coverage import pattern
from quant.errors import ModelStructureError
from quant.experts import Experts, routed_groups
from quant.transforms.base import Change
from quant.transforms.fold import fold
from quant.transforms.foreseen import Input

_TOKENS = 4
_A_PART = "an expert's input is a part of what a module makes"
_META = torch.device("meta")


@dataclass(frozen=True)
class Foreseen:
    """What transforms will find.

    inputs  the inputs of the layers, one of every sort.
    stream  why the residual stream cannot be rotated; None if nothing is seen that prevents it.
    """

    inputs: tuple[Input, ...] = ()
    stream: str | None = None


class CannotLook(Exception):
    """The code of a model asks for values that a skeleton does not have."""


def foresee(model: PreTrainedModel) -> Foreseen:
    """Look at a skeleton, whose parameters are on the meta device; it cannot be used afterwards.

    Layers are marked (quant.calibrate.survey), and only the blocks up to the last new kind stay.

    Raises CannotLook, with the reason, for a model whose code cannot run without values, or whose
    blocks cannot be calibrated one by one.
    """
    try:
        _shorten(model)
        mixtures = [module for module in model.modules() if isinstance(module, Experts)]
        # Which expert a token goes to is a value. Their layers then have no maker, as in a pass
        # with values, where each reads a part of the tokens.
        shapes = _Shapes()  # type: ignore[no-untyped-call]  # torch's modes have no types
        with forwards_replaced(mixtures, [_like] * len(mixtures)), shapes, evaluation(model):
            groups, why = _look(model)
    except Exception as error:  # the code of models raises any type
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise CannotLook(said[:200]) from error
    inputs = {replace(each, layer=""): each for each in map(_Group.input, reversed(groups))}
    return Foreseen(tuple(reversed(inputs.values())), why)  # the first of each sort


@dataclass(frozen=True)
class _Group:
    """Layers that read one input: name of the first, its maker, and layers further in front."""

    layer: str
    biased: bool
    maker: Maker | str
    sources: tuple[str, ...]

    def input(self) -> Input:
        maker = self.maker
        if isinstance(maker, str):
            return Input(self.layer, self.biased, maker, further=bool(self.sources))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            takes = [_takes(maker, change) for change in _changes(maker)]
        return Input(self.layer, self.biased, None, maker.name, *takes)


def _look(model: PreTrainedModel) -> tuple[list[_Group], str | None]:
    """Return the groups of one block of every kind, and why the stream cannot be rotated."""
    source, ids = LoadedModel(model), torch.arange(_TOKENS)
    routed = {pattern(n) for each in source.blocks.modules for n in _routed(each)}
    unfit = {name: why for name, why in unfit_layers(source).items() if name not in routed}
    mark(source.blocks, unfit)
    structure = learn_structure(model, ids)
    with norms_running(model, source.blocks) as running:
        captured = capture(model, structure, [ids[None]])
    hidden, groups, holders = captured.hidden[0], [], parameter_holders(model)
    whys: list[str] = []
    width = hidden.shape[-1]
    after = partial(logits_after_blocks, model, structure, ids[None], hidden)
    with _noted(whys):
        require_alone(model, ModelStructureError)
        require_plain(running, ModelStructureError)
        head_norm(model, width, after, ModelStructureError)
    for index, block in _kinds(source.blocks):
        name, each = source.blocks.block_name(index), structure.structures[index]
        run = partial(run_block, block, each, captured.calls[index][0], hidden)
        linears = linear_layers(block)
        with normed_layers(block) as norm_after:
            found = changeable_neighbours(holders, block, each.groups, run)
        with _noted(whys):
            stream_parts(block, name, found, norm_after, width, ModelStructureError)
        for names, maker in found.makers.items():
            biased = all(linears[layer].bias is not None for layer in names)
            maker = _A_PART if pattern(names[0]) in routed else maker
            groups.append(_Group(f"{name}.{names[0]}", biased, maker, found.sources[names]))
    return groups, next(iter(whys), None)


@contextmanager
def _noted(whys: list[str]) -> Iterator[None]:
    """Note what a model is refused for, and go on."""
    try:
        yield
    except ModelStructureError as error:
        whys.append(str(error))


def _routed(block: nn.Module) -> Iterator[str]:
    """Yield the names of the layers of experts in a block."""
    return (name for stage in routed_groups(block) for group in stage for name in group)


def _shorten(model: PreTrainedModel) -> None:
    """Cut the blocks behind the last of a new kind off: passes through 126 alike take seconds."""
    blocks = find_blocks(model)
    count = max(2, *(index + 1 for index, _ in _kinds(blocks)))  # from two on, they form a chain
    if count < len(blocks):
        del blocks.modules[count:]
        model.config.get_text_config(decoder=True).num_hidden_layers = count


def _kinds(blocks: Blocks) -> Iterator[tuple[int, nn.Module]]:
    """Yield the first block of every kind: of one class, with layers and norms of the same size."""
    seen = set()
    for index, block in enumerate(blocks.modules):
        shapes = tuple((name, tuple(value.shape)) for name, value in block.named_parameters())
        kind = type(block), tuple(map(type, block.modules())), shapes
        if kind not in seen:
            seen.add(kind)
            yield index, block


@dataclass(frozen=True)
class _Moved:
    """x' = x / scale - shift, float64 [in] each."""

    scale: Tensor
    shift: Tensor

    def inputs(self, x: Tensor) -> Tensor:
        return x / self.scale - self.shift

    def weight(self, weight: Tensor) -> Tensor:
        return weight * self.scale

    def hessian(self, matrix: Tensor) -> Tensor:
        return matrix / torch.outer(self.scale, self.scale)


def _changes(maker: Maker) -> tuple[Change, Change]:
    """Return a scaling, and one with a shift, of what a module makes."""
    numbers = torch.arange(maker.output.shape[-1])
    scale = 2.0 ** (numbers % 4 - 1).double()
    return _Moved(scale, torch.zeros_like(scale)), _Moved(scale, numbers.double() % 3 / 4)


def _takes(maker: Maker, change: Change) -> bool:
    """Whether a module of this class and width takes a change of its output in."""
    width = maker.output.shape[-1]
    if isinstance(maker.module, LINEAR_TYPES):  # of any number of inputs
        module: nn.Module = nn.Linear(2, width, bias=maker.module.bias is not None)
        args: Any = (torch.rand(_TOKENS, 2),)
        return fold(module, change, args, {})
    parameters = list(maker.module.parameters())
    if any(each.dim() != 1 for each in parameters):
        return False  # fold knows no way
    module = copy.deepcopy(maker.module).to_empty(device="cpu").float()
    for each in module.parameters():
        each.detach().normal_(1, 0.1)

    def real(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape) if tensor.is_meta else tensor

    args, kwargs = tree_map_only(Tensor, real, (maker.args, maker.kwargs))
    return fold(module, change, args, kwargs)


def _like(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.zeros_like(hidden)


class _Shapes(TorchDispatchMode):
    """Runs on meta what has an operand there, and everything else with its values.

    Tensors that a model makes where its hidden states are, positions and masks, get values.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        operands = list(tensors_in((args, kwargs)))
        if not any(each.is_meta for each in operands):
            return func(*args, **_placed(kwargs, torch.device("cpu")))
        if func._schema.is_mutable and not operands[0].is_meta:
            return operands[0]  # has the right shape; its values were real until now
        args, kwargs = tree_map_only(Tensor, lambda each: each.to(_META), (args, kwargs))
        return func(*args, **_placed(kwargs, _META))


def _placed(kwargs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    given = kwargs.get("device") is not None
    return {**kwargs, "device": device} if given else dict(kwargs)
