"""Let a model whose blocks lie on several devices run as one.

A hook in front of every block brings its arguments to the block's device: hidden states where they
cross to the next device, masks and positions once a device and forward pass. Keys and values stay
where their block is. Tokens go in on the first device and logits come out there, so that whoever
calls the model sees one on one device.

accelerate's dispatch_model does this with a hook on every module that has weights, a dozen a block,
and moves masks anew for every block. That would be timed as the model's (docs/decisions/0022).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.blocks import find_blocks
from quant.errors import ModelStructureError
from quant.spread.split import Spread

_MARK = "bitsweep_spread"  # attribute of the model: its decoders and suites read it
# By the id of a tensor and a device: the tensor itself, so that no other gets its id, and its copy.
_Copies = dict[tuple[int, torch.device], tuple[Tensor, Tensor]]


def connect(model: PreTrainedModel, spread: Spread) -> None:
    """Connect the parts of a model that lie as `spread` says, and run one token through it.

    What is neither embeddings, block nor head (norms, projections) moves to where the hidden states
    are when they reach it. Raises ModelStructureError for a model that does not run like this.
    """
    blocks, copies = find_blocks(model), _Copies()
    for index, block in enumerate(blocks.modules):
        device = torch.device(spread.of_block(index))
        block.register_forward_pre_hook(
            partial(_enter, device, copies, index == 0), with_kwargs=True, prepend=True
        )
    blocks.modules[-1].register_forward_hook(lambda *_: copies.clear())
    head: nn.Module = model.get_output_embeddings()
    _bring(head, torch.device(spread.of(spread.head or "")))
    if spread.head is not None:
        home = torch.device(spread.home)
        head.register_forward_hook(lambda _module, _given, output: _to(output, home, None))
    _settle(model, spread, _outside(model, spread, head))
    setattr(model, _MARK, spread)


def spread_of(model: object) -> Spread | None:
    """Where the parts of a model lie; None for a model on one device."""
    return getattr(model, _MARK, None)


def devices_of(model: object) -> tuple[str, ...]:
    """The devices of a model that is spread; () for one on one device."""
    found = spread_of(model)
    return () if found is None else found.devices


def move_computed(model: nn.Module, spread: Spread) -> None:
    """Move buffers that no file has (rotary frequencies, masks) to where their module lies."""
    for name, buffer in list(model.named_buffers()):
        if buffer.device != torch.device(spread.of(name)):
            path, _, attribute = name.rpartition(".")
            model.get_submodule(path)._buffers[attribute] = buffer.to(spread.of(name))


def put(module: nn.Module, device: torch.device) -> None:
    """Move the tensors of a module and of those inside it; shared ones stay shared in it."""
    made: dict[int, nn.Parameter] = {}
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                moved = parameter.detach().to(device)
                made[id(parameter)] = nn.Parameter(moved, requires_grad=False)
            each._parameters[name] = made[id(parameter)]
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = buffer.to(device)


def _enter(
    device: torch.device,
    copies: _Copies,
    first: bool,
    _module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Bring a block's arguments to its device; the first block begins a forward pass."""
    if first:
        copies.clear()
    return _to(args, device, copies), _to(kwargs, device, copies)


def _to(value: Any, device: torch.device, copies: _Copies | None) -> Any:
    """The same on a device; what is no tensor, nor holds some (a cache), is handed on."""
    if isinstance(value, Tensor):
        if value.device == device:
            return value
        if copies is None:
            return value.to(device)
        key = (id(value), device)
        if key not in copies:
            copies[key] = (value, value.to(device))
        return copies[key][1]
    if type(value) in (tuple, list):
        return type(value)(_to(each, device, copies) for each in value)
    if type(value) is dict:
        return {name: _to(each, device, copies) for name, each in value.items()}
    return value


def _bring(module: nn.Module, device: torch.device) -> None:
    """Have a module's inputs brought to its device."""

    def move(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _to(args, device, None), _to(kwargs, device, None)

    module.register_forward_pre_hook(move, with_kwargs=True, prepend=True)


def _outside(model: PreTrainedModel, spread: Spread, head: nn.Module) -> list[nn.Module]:
    """The modules with tensors of their own, but embeddings, head and what is in blocks."""
    ends = {*head.modules(), *model.get_input_embeddings().modules()}
    return [
        module
        for name, module in model.named_modules()
        if module not in ends
        and not f"{name}.".startswith(f"{spread.blocks}.")
        and ([*module.parameters(recurse=False)] or [*module.buffers(recurse=False)])
    ]


def _settle(model: PreTrainedModel, spread: Spread, modules: list[nn.Module]) -> None:
    """Run one token; each of the modules follows the first tensor that it is given."""
    at: dict[nn.Module, torch.device] = {}

    def follow(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        if given and module not in at:
            at[module] = given[0].device
            if given[0].device != torch.device(spread.home):
                put(module, given[0].device)

    handles = [each.register_forward_pre_hook(follow, with_kwargs=True) for each in modules]
    try:
        with torch.no_grad():
            token = torch.zeros((1, 1), dtype=torch.int64).to(spread.home)
            model(input_ids=token, use_cache=False)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        said = " ".join(str(error).split())[:200]
        raise ModelStructureError(
            f"{type(model).__name__} does not run over {len(spread.devices)} devices ({said}): use "
            "runtime.devices=1."
        ) from error
    finally:
        for each in handles:
            each.remove()
    for module, device in at.items():
        _bring(module, device)
