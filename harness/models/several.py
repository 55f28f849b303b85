"""Load full-precision models over several devices, and find what is free on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.models import dummy
from quant.spread.split import Room, block_of

if TYPE_CHECKING:
    from quant.spread.place import Over
    from quant.spread.split import Spread


def over_devices(
    devices: Sequence[str], dtype: str, shape: Mapping[str, Any], positions: int
) -> Over | None:
    """Devices with what may be used on each, and a block's keys and values of `positions` tokens
    for a model of this config.json; None for fewer than two devices.
    """
    if len(devices) < 2:
        return None
    import torch

    from quant.measure.dummy import free_memory
    from quant.spread.place import Over

    rooms = [
        Room(device, dummy.usable(free_memory(torch.device(device)), device)) for device in devices
    ]
    hidden = next((int(shape[name]) for name in dummy.HIDDEN if name in shape), 0)
    block = dummy.cache_bytes(positions, hidden, getattr(torch, dtype).itemsize)
    return Over(tuple(rooms), block)


def device_map(spread: Spread, model: Any) -> dict[str, str]:
    """The map that transformers' loader takes, by modules; every tensor is under one of them.

    The whole model is not among them: accelerate would bring all of it to one device first.
    """
    found = {}
    for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        path = name.rpartition(".")[0]
        index = block_of(path, spread.blocks)
        if index is not None:
            path = f"{spread.blocks}.{index}"
        found[path or name] = spread.of(name)
    return found


def planned(folder: Path, dtype: str, trust: bool, over: Over) -> tuple[Spread, dict[str, str]]:
    """Where the parts of the model in a folder are to lie. Raises NotEnoughMemory."""
    import torch

    from quant.checkpoint.skeleton import build_causal_lm

    advice = "Correct it, or use a decoder-only model that this version of transformers knows."
    options = {"trust_remote_code": trust}
    model = build_causal_lm(folder, getattr(torch, dtype), options, advice)
    spread = over.spread(model)
    return spread, device_map(spread, model)


def connected(model: Any, spread: Spread) -> Any:
    """A model that transformers has loaded by a map, with hooks of ours in place of accelerate's.

    Those stand before every module that has weights, and would be timed (quant.spread.connect).
    """
    from accelerate.hooks import remove_hook_from_module

    from quant.spread.connect import connect, move_computed

    remove_hook_from_module(model, recurse=True)
    for name in ("to", "cuda"):  # accelerate's, which warn
        vars(model).pop(name, None)
    for module in model.modules():  # it gave each its own back as an attribute
        if getattr(vars(module).get("forward"), "__func__", None) is type(module).forward:
            del module.forward
    model.eval()
    move_computed(model, spread)
    connect(model, spread)
    return model
