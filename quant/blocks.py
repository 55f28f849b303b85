"""Find the decoder blocks of a Hugging Face model and the linear layers inside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from quant.errors import ModelStructureError, NonFiniteError

LINEAR_TYPES = (nn.Linear, Conv1D)
_KEPT = "keeps_precision"  # attribute with the reason why a layer stays in full precision


@dataclass(frozen=True)
class Blocks:
    """The decoder blocks of a model, in order of execution.

    name     dotted name of their ModuleList, such as "model.decoder.layers".
    modules  the ModuleList.
    """

    name: str
    modules: nn.ModuleList

    def block_name(self, index: int) -> str:
        """Return the dotted name of block `index` in the model."""
        return f"{self.name}.{index}"

    def __len__(self) -> int:
        return len(self.modules)


def find_blocks(model: PreTrainedModel) -> Blocks:
    """Find the ModuleList of config.num_hidden_layers modules that contain linear layers.

    If several lists match, the one whose modules have a single class is taken; a hybrid's blocks
    may have several classes (Jamba). Raises ModelStructureError, listing every ModuleList of the
    model, if no list or more than one list remains.
    """
    config = model.config.get_text_config(decoder=True)
    count = getattr(config, "num_hidden_layers", None)
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    found = {n: m for n, m in lists.items() if len(m) == count and all(map(_has_layers, m))}
    # A list inside a block (experts, adapters) may be as long by chance: keep the outermost.
    outer = [n for n in found if not any(n.startswith(f"{other}.") for other in found)]
    if len(outer) > 1:  # a vision tower may be as deep as the text decoder
        outer = [n for n in outer if not any(n.startswith(f"{tower}.") for tower in _towers(model))]
    if len(outer) > 1:
        outer = [n for n in outer if len({type(each) for each in found[n]}) == 1] or outer
    if len(outer) == 1:
        return Blocks(outer[0], found[outer[0]])
    seen = "; ".join(f"{name}: {_describe(modules)}" for name, modules in lists.items()) or "none"
    problem = "several lists of modules" if outer else "no list of modules"
    raise ModelStructureError(
        f"{type(model).__name__}: {problem} could be the decoder blocks: expected exactly one with "
        f"num_hidden_layers={count} members that hold linear layers. ModuleLists of "
        f"the model: {seen}. Use a decoder-only model (AutoModelForCausalLM) with uniform blocks."
    )


def _towers(model: PreTrainedModel) -> list[str]:
    """Return the names of the submodels of a multimodal model other than its text decoder."""
    decoder = model.get_decoder()
    inside = set(map(id, decoder.modules()))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel)
        and id(module) not in inside
        and all(part is not decoder for part in module.modules())
    ]


def linear_layers(block: nn.Module) -> dict[str, nn.Module]:
    """Return the nn.Linear and Conv1D modules of a block by name, in definition order.

    Layers that `keep_precision` marked are left out.
    """
    return {n: m for n, m in _linears(block) if not hasattr(m, _KEPT)}


def named_layers(blocks: Blocks) -> dict[str, nn.Module]:
    """Return the linear layers of all blocks by full name, as `linear_layers` has those of one."""
    return {
        f"{blocks.block_name(index)}.{name}": module
        for index, block in enumerate(blocks.modules)
        for name, module in linear_layers(block).items()
    }


def kept_layers(block: nn.Module) -> dict[str, str]:
    """Return the linear layers of a block that stay in full precision, with the reason."""
    return {n: getattr(m, _KEPT) for n, m in _linears(block) if hasattr(m, _KEPT)}


def keep_precision(module: nn.Module, why: str) -> None:
    """Mark a linear layer to stay in full precision, with the reason.

    The mark is an attribute of the module, because both quantization and export read it.
    """
    setattr(module, _KEPT, why)


def _linears(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((n, m) for n, m in block.named_modules() if isinstance(m, LINEAR_TYPES))


def weight_matrix(module: nn.Module) -> Tensor:
    """Return the weight as a view [out, in] in its own dtype, detached (transposed for Conv1D)."""
    weight = module.weight.detach()  # type: ignore[operator]
    return weight.t() if isinstance(module, Conv1D) else weight


def set_weight_matrix(module: nn.Module, matrix: Tensor, layer: str = "this layer") -> None:
    """Write matrix [out, in] into the module's weight in place, rounded to the weight's dtype.

    Raises ModelStructureError for a wrong shape and NonFiniteError if a finite value exceeds the
    dtype's range (65504 for float16).
    """
    view = weight_matrix(module)
    if matrix.shape != view.shape:
        raise ModelStructureError(
            f"{layer}: a weight [out, in] of shape {tuple(matrix.shape)} does not fit a "
            f"{type(module).__name__} of shape {tuple(view.shape)}."
        )
    rounded = matrix.to(view.dtype)
    overflowed = _not_finite(rounded)
    if overflowed:
        raise NonFiniteError(
            f"{layer}: {overflowed} quantized weights are not finite in {view.dtype}; "
            "load the model in float32 or bfloat16."
        )
    view.copy_(rounded)


def require_quantizable(blocks: Blocks) -> None:
    """Check that every linear layer in the blocks can be quantized; reads no values.

    Raises ModelStructureError for weights that are not floating point (already quantized).
    """
    for index, block in enumerate(blocks.modules):
        name = blocks.block_name(index)
        for layer, module in linear_layers(block).items():
            weight = weight_matrix(module)
            if not weight.is_floating_point() or weight.dim() != 2:
                raise ModelStructureError(
                    f"{name}.{layer}: its weight is {weight.dtype} of shape {tuple(weight.shape)}, "
                    "not a matrix of floating-point numbers; start from a model that is not "
                    "quantized."
                )


def require_sound(block: nn.Module, name: str) -> None:
    """Check the values of every weight matrix in a block.

    Raises NonFiniteError with the layer and the number of NaN or infinite values, and
    ModelStructureError for a weight without values (on the meta device).
    """
    for layer, module in linear_layers(block).items():
        require_sound_weight(module, f"{name}.{layer}")


def _not_finite(values: Tensor) -> int:
    """Return the number of NaN or infinite values; builds no mask if there are none."""
    # A sum propagates NaN and infinity, but finite values may overflow in it.
    return 0 if torch.isfinite(values.sum()) else int((~torch.isfinite(values)).sum())


def require_sound_weight(module: nn.Module, layer: str) -> None:
    """Check the values of one weight matrix, as `require_sound` does."""
    weight = weight_matrix(module)
    if weight.is_meta:
        raise ModelStructureError(
            f"{layer}: its weight is on the meta device; load the model with its weights and "
            "without offloading (no device_map) before quantizing it."
        )
    broken = _not_finite(weight)
    if broken:
        raise NonFiniteError(
            f"{layer}: {broken} of {weight.numel()} weights are NaN or infinite; the checkpoint is "
            "damaged or overflowed in float16: load it in its own dtype or in float32."
        )


def _has_layers(block: nn.Module) -> bool:
    """Whether a block contains linear layers or packed layers."""
    return any(isinstance(m, LINEAR_TYPES) or hasattr(m, "in_features") for m in block.modules())


def _describe(modules: nn.ModuleList) -> str:
    classes = sorted({type(m).__name__ for m in modules})
    return f"{len(modules)} x {' / '.join(classes)}"
