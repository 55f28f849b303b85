"""Roofline of decoding: the bytes that one token must read, and the device's read bandwidth."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

READ_BYTES = {"cpu": 2**28, "cuda": 2**31}  # much larger than any cache
READ_TURNS = 7


def weight_bytes(model: Any) -> int:
    """Return the bytes of all parameters and buffers in memory; shared storage counts once."""
    return _unique_bytes([*model.parameters(), *model.buffers()])


def weight_count(model: Any) -> int:
    """Return the number of weights: of all parameters, shared ones once, packed layers unpacked."""
    from quant.factored import PackedLinear

    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    inside: int = sum(
        each.in_features * each.out_features + (0 if each.bias is None else each.bias.numel())
        for each in packed
    )
    outside: int = sum(parameter.numel() for parameter in model.parameters())
    return inside + outside


def embedding_bytes(model: Any) -> int:
    """Return the bytes of the embedding tables and the output layer, which may be packed."""
    return _unique_bytes([*_tables(model), *_output_layer(model)])


def weight_bytes_per_token(model: Any) -> int:
    """Return the bytes of weights that a decode step reads: all except embedding tables."""
    output = _output_layer(model)
    return weight_bytes(model) - (_unique_bytes([*_tables(model), *output]) - _unique_bytes(output))


def activation_bytes_per_token(model: Any, dtype: torch.dtype) -> int:
    """Return the bytes per token that the linear layers (packed ones and the output) move.

    Operations between them (norms, residual sums, attention scores) move about as much, little
    compared with the weights, and are usually fused or in cache; they are not counted.
    """
    from quant.embedding import looked_up

    ends, idle = 0, looked_up(model)
    for module in (each for each in model.modules() if each not in idle):
        shape = (getattr(module, "in_features", None), getattr(module, "out_features", None))
        if hasattr(module, "nf"):  # transformers' Conv1D: weight [in, out]
            shape = tuple(module.weight.shape)
        if None not in shape:
            ends += sum(shape)  # type: ignore[arg-type]
    return ends * dtype.itemsize


def read_bandwidth(device: str | torch.device, turns: int = READ_TURNS) -> float:
    """Return bytes per second of the fastest of `turns` sums over an array larger than any cache.

    The array is float32, 256 MiB on a CPU and 2 GiB on a GPU (at most an eighth of its free
    memory).
    """
    device = torch.device(device)
    size = READ_BYTES.get(device.type, READ_BYTES["cpu"])
    if device.type == "cuda":
        size = min(size, max(torch.cuda.mem_get_info(device)[0] // 8, 2**26))
    array = torch.ones(size // 4, device=device)
    array.sum()
    seconds = min(_sum_seconds(array) for _ in range(turns))
    return array.numel() * array.element_size() / seconds


def _sum_seconds(array: Tensor) -> float:
    if array.device.type != "cuda":
        start = time.perf_counter()
        array.sum()
        return time.perf_counter() - start
    with torch.cuda.device(array.device):
        start_event = torch.cuda.Event(enable_timing=True)
        end_event = torch.cuda.Event(enable_timing=True)
        start_event.record()
        array.sum()
        end_event.record()
        end_event.synchronize()
    result: float = start_event.elapsed_time(end_event) / 1e3
    return result


def _tables(model: Any) -> list[Tensor]:
    from quant.embedding import looked_up

    plain = [each.weight for each in model.modules() if isinstance(each, torch.nn.Embedding)]
    return plain + [part for each in looked_up(model) for part in each.buffers()]


def _output_layer(model: Any) -> list[Tensor]:
    layer = model.get_output_embeddings()
    return [] if layer is None else [*layer.parameters(), *layer.buffers()]


def _unique_bytes(tensors: list[Tensor]) -> int:
    """Sum the bytes of tensors; views of one storage (tied embeddings) count once."""
    storages: dict[int, int] = {}
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        pointer = tensor.untyped_storage().data_ptr()
        storages[pointer] = max(size, storages.get(pointer, 0))
    return sum(storages.values())
