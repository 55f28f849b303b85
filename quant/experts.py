"""Split the fused expert tensors of a mixture of experts into one module per expert.

transformers stores the experts of a block as 3-D parameters (modules decorated with
use_experts_implementation, transformers/integrations/moe.py). Here each expert is a module with its
own linear layers, so that it is quantized, stored and loaded like any other layer, under the names
of checkpoints on the hub. The computation is the same: the same products, gate and routing weights,
summed in the order of the experts as in the model's eager forward pass.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

Names = tuple[str, ...]
_FLAGS = ("num_experts", "has_gate", "has_bias", "is_transposed", "is_concatenated", "_apply_gate")
_SOURCE = re.compile(r"experts\W*\.\*\.(\w+)\.weight$")


@dataclass(frozen=True)
class LayerNames:
    """Names of the linear layers of an expert; gate is None for an expert without one."""

    gate: str | None
    up: str
    down: str

    @property
    def first(self) -> Names:
        """The layers that read the tokens routed to the expert."""
        return (self.up,) if self.gate is None else (self.gate, self.up)


@dataclass(frozen=True)
class Part:
    """Position of one expert's tensor in a fused tensor [experts, ...].

    fused       full name of the fused tensor.
    expert      index in its first dimension.
    rows        the tensor's outputs among those of the fused tensor.
    transposed  whether the outputs are the last dimension of a fused weight.
    """

    fused: str
    expert: int
    rows: slice
    transposed: bool

    def of(self, one: Tensor) -> Tensor:
        """Return the tensor as a view of `one`, the expert's slice of the fused tensor."""
        return (one.t() if self.transposed and one.dim() == 2 else one)[self.rows]


class Expert(nn.Module):
    """One expert: gate and up read its tokens, down reads the gated product."""

    def __init__(self, names: LayerNames, layers: dict[str, nn.Linear], gate: Gate) -> None:
        super().__init__()
        self.names, self.gate = names, gate
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, tokens: Tensor) -> Tensor:
        made = [getattr(self, name)(tokens) for name in self.names.first]
        result: Tensor = getattr(self, self.names.down)(self.gate(*made))
        return result


class Gate:
    """Combine the outputs of gate and up [tokens, intermediate] with the model's own function.

    shell  the fused module without its weights; it has the activation and its limits.
    """

    def __init__(self, shell: nn.Module) -> None:
        self._shell = shell

    def __call__(self, *made: Tensor) -> Tensor:
        shell: Any = self._shell
        if not shell.has_gate:
            result: Tensor = shell.act_fn(made[0])
        elif shell.is_concatenated:
            result = shell._apply_gate(torch.cat(made, dim=-1))
        else:
            result = shell._apply_gate(torch.stack(made, dim=-1).flatten(-2))
        return result


class Experts(nn.ModuleList):
    """The experts of a block, with the call signature of the fused module.

    parts  position in the fused tensors of each tensor, by its name in the module
           ("3.up_proj.weight").
    """

    def __init__(self, experts: list[Expert], names: LayerNames, parts: dict[str, Part]) -> None:
        super().__init__(experts)
        self.names, self.parts = names, parts

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum [tokens, hidden] of the outputs of each token's experts.

        top_k_index and top_k_weights are [tokens, k]; an index outside the experts adds nothing.
        """
        total = torch.zeros_like(hidden_states)
        chosen = top_k_index.t()
        for index in sorted(set(top_k_index.unique().tolist()) & set(range(len(self)))):
            position, token = torch.where(chosen == index)
            made = self[index](hidden_states[token])
            made = made * top_k_weights[token, position, None]
            total.index_add_(0, token, made.to(total.dtype))
        return total


def unfuse(model: PreTrainedModel) -> None:
    """Replace every module of fused experts by `Experts`; weights may be on the meta device.

    Modules that do more than the interface defines (a norm after every expert, other parameters)
    are left unchanged.
    """
    fused = {name: module for name, module in model.named_modules() if _is_fused(module)}
    if not fused:
        return
    names = _layer_names(model)
    for name, module in fused.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _unfused(module, name, names))


def fused_parts(model: nn.Module) -> dict[str, Part]:
    """Return the position in the fused tensors of every expert tensor, by its full name."""
    return {
        f"{path}.{name}": part
        for path, module in model.named_modules()
        if isinstance(module, Experts)
        for name, part in module.parts.items()
    }


def routed_groups(block: nn.Module) -> list[tuple[Names, ...]]:
    """Return the layers of a block that receive only routed tokens, as stages of groups.

    Each mixture has two stages: all gates and ups (one group per expert), then all downs. They
    follow from the module structure, because a short window does not reach every expert.
    """
    stages: list[tuple[Names, ...]] = []
    for path, module in block.named_modules():
        if isinstance(module, Experts):
            for layers in (module.names.first, (module.names.down,)):
                stages.append(
                    tuple(
                        tuple(f"{path}.{expert}.{layer}" for layer in layers)
                        for expert in range(len(module))
                    )
                )
    return stages


def _is_fused(module: nn.Module) -> bool:
    """Whether a module implements the interface and has exactly the fused parameters."""
    if not all(hasattr(module, flag) for flag in _FLAGS) or isinstance(module, Experts):
        return False
    parameters = dict(module.named_parameters())
    return (
        set(parameters) == set(_fused_names(module))
        and all(value.shape[0] == module.num_experts for value in parameters.values())
        and not getattr(module, "has_post_expert_norm", False)
        and not any(True for _ in module.buffers())
    )


def _fused_names(module: Any) -> list[str]:
    weights = ["gate_up_proj" if module.has_gate else "up_proj", "down_proj"]
    return weights + [f"{name}_bias" for name in weights if module.has_bias]


def _layer_names(model: PreTrainedModel) -> LayerNames:
    """Return the layer names in checkpoints that transformers converts, or the default names."""
    found: dict[str, list[str]] = {}
    for entry in get_model_conversion_mapping(model, add_legacy=False):
        if isinstance(entry, WeightConverter):
            sources = [_SOURCE.search(source) for source in entry.source_patterns]
            target = entry.target_patterns[0].rpartition(".")[2]
            if all(sources):
                found[target] = [match.group(1) for match in sources if match]
    first, down = found.get("gate_up_proj", []), found.get("down_proj", ["down_proj"])
    if len(first) == 2:
        return LayerNames(first[0], first[1], down[0])
    return LayerNames("gate_proj", "up_proj", down[0])


def _unfused(module: Any, path: str, names: LayerNames) -> Experts:
    if not module.has_gate:
        names = LayerNames(None, "up_proj", "down_proj")
    shell = copy.copy(module)
    shell._parameters = {}
    gate = Gate(shell)
    parts: dict[str, Part] = {}
    experts = []
    for expert in range(module.num_experts):
        layers = {}
        for layer, fused, rows in _slices(module, names):
            tensors: dict[str, nn.Parameter] = {}
            for kind, suffix in (("weight", ""), ("bias", "_bias"))[: 1 + module.has_bias]:
                part = Part(f"{path}.{fused}{suffix}", expert, rows, module.is_transposed)
                parts[f"{expert}.{layer}.{kind}"] = part
                whole = getattr(module, f"{fused}{suffix}").detach()
                own = part.of(whole[expert]).clone(memory_format=torch.contiguous_format)
                tensors[kind] = nn.Parameter(own, requires_grad=False)
            layers[layer] = _linear(**tensors)
        experts.append(Expert(names, layers, gate))
    return Experts(experts, names, parts).train(module.training)


def _slices(module: Any, names: LayerNames) -> Iterator[tuple[str, str, slice]]:
    """Yield layer, fused parameter, and the slice of its outputs that belongs to the layer."""
    if names.gate is None:
        yield names.up, "up_proj", slice(None)
    else:
        fused = module.gate_up_proj
        half = fused.shape[-1 if module.is_transposed else -2] // 2
        for number, layer in enumerate(names.first):
            cut = slice(number * half, (number + 1) * half)
            yield layer, "gate_up_proj", cut if module.is_concatenated else slice(number, None, 2)
    yield names.down, "down_proj", slice(None)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None = None) -> nn.Linear:
    """Return a linear layer with these parameters, without initialising any."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer
