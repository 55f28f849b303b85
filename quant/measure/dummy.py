"""Dummy models of any architecture with random weights, made directly in packed form.

They are for timing sizes that cannot be downloaded. A layer's random codes are drawn on its device,
so full-precision weights never exist, and the needed memory is checked before anything is
allocated. The values keep activations at the same size through any depth; they have no other
meaning.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cuda_ext.ops import resolve_kernel
from cuda_ext.tiles import TILE_ROWS, units_for
from quant.blocks import find_blocks, named_layers
from quant.checkpoint.skeleton import parameters_on_meta
from quant.embedding import QuantEmbedding, embed_scale
from quant.errors import NotEnoughMemory, SchemeError
from quant.experts import unfuse
from quant.grid import shared
from quant.head import alone, find_embeddings, find_head, serves_head, tied
from quant.linear import Packed, QuantLinear, pack_grid, packed_bytes, packed_shapes, takes_kernels
from quant.scheme import SCALE_DTYPES, Scheme
from quant.spread.connect import connect, move_computed
from quant.spread.draws import Draws
from quant.spread.place import Over, parts_of
from quant.spread.split import GIB, MARGIN, Parts, Spread

Numbers = Callable[[str], torch.Generator]  # by the name of a module or tensor, on its device

UNIT = 64  # bytes of one unit of the kernel layout


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that building a model takes.

    packed     codes, scales and zero-points of the quantized layers, in the kernel's layout.
    dense      everything else: embeddings, norms, biases, and all weights without a scheme.
    transient  additional bytes while the largest layer is converted to the kernel's layout.
    """

    packed: int
    dense: int
    transient: int

    @property
    def model(self) -> int:
        """Bytes of the finished model."""
        return self.packed + self.dense


def build_dummy(
    config: PreTrainedConfig,
    scheme: Scheme | None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    kernel: str = "auto",
    seed: int = 0,
    beside: int = 0,
    attn_implementation: str | None = None,
    over: Over | None = None,
) -> PreTrainedModel:
    """Return a causal LM of `config` with random weights on `device`, in eval mode.

    scheme               scheme of the linear layers in the blocks, which become QuantLinear, as the
                         head does if it has one, and embeddings QuantEmbedding; None: all weights
                         have dtype.
    seed                 the same seed gives the same weights on the same kind of device.
    beside               bytes that must stay free, for cache and activations.
    attn_implementation  of transformers; None: its default for the architecture.
    over                 several devices for its blocks, in place of `device`; `beside` is then in
                         their rooms. The weights are those that one of them would have.

    Raises NotEnoughMemory, with figures, before anything is allocated; SchemeError for levels
    without random weights; KernelUnavailable.
    """
    device = torch.device(device if over is None else over.home)
    kernel = resolve_kernel(kernel, device)
    model = _skeleton(config, dtype, attn_implementation, scheme is not None)
    if over is None:
        need = memory_need(model, scheme, kernel)
        require_memory(need, device, beside, type(model).__name__)
        spread = Spread(find_blocks(model).name, (str(device),), (len(find_blocks(model)),), None)
    else:
        spread = over.spread(model, packed_sizes(model, scheme, kernel))
    stream = Draws(seed)

    def draws(name: str) -> torch.Generator:
        return stream.at(spread.of(name))

    if scheme is not None:
        _pack_blocks(model, scheme, dtype, kernel, draws)
        _pack_outside(model, scheme, dtype, kernel, draws)
    _fill(model, dtype, draws)
    move_computed(model, spread)
    result: PreTrainedModel = model.eval()
    if over is not None:
        connect(result, spread)
    return result


def packed_sizes(model: PreTrainedModel, scheme: Scheme | None, kernel: str) -> dict[str, int]:
    """The bytes of every layer that will be packed, by full name; of a model on the meta device."""
    if scheme is None:
        return {}
    layers = {
        name: (scheme.of(name), layer) for name, layer in named_layers(find_blocks(model)).items()
    }
    serves = serves_head(model, scheme)
    if scheme.embeddings is not None:
        name, table = find_embeddings(model)
        layers[name] = (scheme.embeddings, table)
    if scheme.head is not None and not serves:
        name, head = find_head(model)
        layers[name] = (scheme.head, head)
    return {
        name: _packed_bytes(each, *layer_shape(layer), kernel)
        for name, (each, layer) in layers.items()
    }


def predict_memory(
    config: PreTrainedConfig,
    scheme: Scheme | None,
    *,
    dtype: torch.dtype,
    kernel: str,
) -> MemoryNeed:
    """Return the memory that `build_dummy` needs; kernel is a resolved name. Allocates nothing."""
    return memory_need(_skeleton(config, dtype, None, scheme is not None), scheme, kernel)


def predict_parts(
    config: PreTrainedConfig, scheme: Scheme | None, *, dtype: torch.dtype, kernel: str
) -> Parts:
    """Return the bytes of the parts of the model that `build_dummy` makes. Allocates nothing."""
    model = _skeleton(config, dtype, None, scheme is not None)
    return parts_of(model, packed_sizes(model, scheme, kernel))


def memory_need(model: PreTrainedModel, scheme: Scheme | None, kernel: str) -> MemoryNeed:
    """Return the memory need of a model on the meta device whose linear layers will be packed."""
    quantized: dict[int, tuple[Scheme, int, int]] = {}
    untied: list[tuple[Scheme, int, int]] = []  # the head beside embeddings that it was tied to
    if scheme is not None:
        quantized |= {
            id(layer.weight): (scheme.of(name), *layer_shape(layer))
            for name, layer in named_layers(find_blocks(model)).items()
        }
        if scheme.embeddings is not None:
            table = find_embeddings(model)[1]
            quantized[id(table.weight)] = (scheme.embeddings, *layer_shape(table))
        if scheme.head is not None and not serves_head(model, scheme):
            head = find_head(model)[1]
            found = (scheme.head, *layer_shape(head))
            if head.weight is model.get_input_embeddings().weight:
                untied.append(found)
            else:
                quantized[id(head.weight)] = found
    layers = [*quantized.values(), *untied]
    dense = {
        id(each): each.numel() * each.element_size()
        for each in (*model.parameters(), *model.buffers())
        if id(each) not in quantized
    }
    packed = sum(_packed_bytes(*layer, kernel) for layer in layers)
    transient = max((packed_bytes(*layer) for layer in layers), default=0)
    return MemoryNeed(packed, sum(dense.values()), transient)


def require_memory(need: MemoryNeed, device: torch.device, beside: int, what: str) -> None:
    """Raise NotEnoughMemory, with needed and free bytes, if the model does not fit."""
    free = free_memory(device)
    total = need.model + need.transient + beside
    if free is not None and total > free * (1 - MARGIN):
        raise NotEnoughMemory(
            f"{what} needs {total / GIB:.2f} GiB on {device} ({need.packed / GIB:.2f} packed, "
            f"{need.dense / GIB:.2f} in full precision, {(need.transient + beside) / GIB:.2f} "
            f"beside it), and {free / GIB:.2f} GiB are free: use fewer bits, a smaller "
            "architecture or a larger device."
        )


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can be allocated on a device; None if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """Return (inputs, outputs) of an nn.Linear, a Conv1D, a QuantLinear or an nn.Embedding."""
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim, layer.num_embeddings
    if isinstance(layer, Conv1D):
        inputs, outputs = layer.weight.shape
        return inputs, outputs
    return layer.in_features, layer.out_features  # type: ignore[return-value]


def random_packed(scheme: Scheme, inputs: int, outputs: int, generator: torch.Generator) -> Packed:
    """Return GPTQ buffers (quant.linear.pack) with random codes, on the generator's device.

    Weights have mean 0 and variance 1 / inputs, so that a product keeps the size of its input.
    """
    draw = scheme.kind.draw
    if draw is None:
        raise SchemeError(
            f"{scheme.name}: {scheme.kind.name} levels have no random weights; use other levels "
            "for a dummy model, or add draw to their LEVELS."
        )
    shapes = packed_shapes(scheme, inputs, outputs)
    words = torch.randint(
        -(2**31),
        2**31,
        shapes["qweight"],
        dtype=torch.int32,
        device=generator.device,
        generator=generator,
    )
    used = inputs * scheme.bits % 32
    if used:  # the end of the last word has no codes
        words[-1] &= (1 << used) - 1
    grid = draw(words, (scheme.groups(inputs), outputs), inputs, scheme, generator)
    kept = {each.name: shared(grid[each.name], each, 0) for each in scheme.kind.tensors}
    return {"qweight": words} | pack_grid(kept, scheme)


def _skeleton(
    config: PreTrainedConfig, dtype: torch.dtype, attn_implementation: str | None, apart: bool
) -> PreTrainedModel:
    """Return a model on the meta device; apart: split experts, so that they can be packed."""
    with parameters_on_meta():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=False,
        )
        if apart:
            unfuse(model)
    return model


def _pack_blocks(
    model: PreTrainedModel,
    scheme: Scheme,
    dtype: torch.dtype,
    kernel: str,
    draws: Numbers,
) -> None:
    """Replace the linear layers of the blocks, one after the other, by random packed layers."""
    layers = named_layers(find_blocks(model))
    scheme.require_layers(layers)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, _packed(layer, scheme.of(name), dtype, kernel, draws(name)))


def _pack_outside(
    model: PreTrainedModel,
    scheme: Scheme,
    dtype: torch.dtype,
    kernel: str,
    draws: Numbers,
) -> None:
    """Replace what the scheme quantizes outside the blocks by random packed matrices."""
    serves = serves_head(model, scheme)
    if scheme.embeddings is not None:
        name, table = find_embeddings(model)
        if scheme.head is None and tied(model):
            raise SchemeError(f"{type(model).__name__} {alone(scheme)}")
        like = find_head(model)[1] if serves else table
        matrix = _packed(like, scheme.embeddings, dtype, kernel, draws(name))
        if serves:
            model.set_output_embeddings(matrix)
        parent, _, child = name.rpartition(".")
        packed = QuantEmbedding(matrix, dtype, embed_scale(table), shared=serves)
        setattr(model.get_submodule(parent), child, packed)
    if scheme.head is not None and not serves:
        name, like = find_head(model)
        head = _packed(like, scheme.head, dtype, kernel, draws(name))
        model.set_output_embeddings(head)
        model.config.tie_word_embeddings = False


def _packed(
    layer: nn.Module, scheme: Scheme, dtype: torch.dtype, kernel: str, generator: torch.Generator
) -> QuantLinear:
    """Return a random packed layer of the shape of `layer`, on the generator's device."""
    inputs, outputs = layer_shape(layer)
    packed = random_packed(scheme, inputs, outputs, generator)
    bias = None
    if getattr(layer, "bias", None) is not None:
        bias = torch.zeros(outputs, dtype=dtype, device=generator.device)
    return QuantLinear(packed, scheme, inputs, bias, kernel)


def _fill(model: PreTrainedModel, dtype: torch.dtype, draws: Numbers) -> None:
    """Give every parameter on the meta device random values in place, tied ones once."""
    made: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in made:
                full = f"{path}.{name}"
                values = _random_values(parameter, module, full, draws(full))
                made[id(parameter)] = nn.Parameter(values.to(dtype), requires_grad=False)
            module._parameters[name] = made[id(parameter)]


def _random_values(
    parameter: Tensor,
    module: nn.Module,
    name: str,
    generator: torch.Generator,
) -> Tensor:
    """Return matrices of variance 1 / inputs (embedding tables: 1), scales of 1 and biases of 0."""
    values = torch.empty(parameter.shape, dtype=parameter.dtype, device=generator.device)
    if parameter.dim() < 2:
        return values.fill_(0.0 if name.endswith("bias") else 1.0)
    table = isinstance(module, nn.Embedding)
    inputs = parameter.shape[0] if isinstance(module, Conv1D) else parameter.shape[-1]
    return values.normal_(0, 1.0 if table else 1 / math.sqrt(inputs), generator=generator)


def _packed_bytes(scheme: Scheme, inputs: int, outputs: int, kernel: str) -> int:
    """Return the bytes of a layer's buffers in QuantLinear with `kernel`, without the bias."""
    if kernel == "reference" or not takes_kernels(scheme, inputs):
        return packed_bytes(scheme, inputs, outputs)
    rows = -(-outputs // TILE_ROWS) * TILE_ROWS
    scale = SCALE_DTYPES[scheme.scale_dtype] // 8
    grid = sum(1 if each.code else scale for each in scheme.kind.tensors)
    return rows * (units_for(inputs, scheme.bits) * UNIT + scheme.groups(inputs) * grid)
