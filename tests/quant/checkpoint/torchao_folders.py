"""Folders of tiny models as transformers saves them with torchao, written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.oracles.textbook_torchao import state, state_int4
from tests.quant.tiny_checkpoints import CONFIGS, edit_config


class Kind(NamedTuple):
    """One of torchao's configurations for all layers; a group_size of None is a group per row."""

    name: str
    bits: int
    group_size: int | None
    symmetric: bool = True
    dtype: torch.dtype = torch.bfloat16

    @property
    def tensor(self) -> str:
        if self.name.startswith("Int4"):
            return "Int4Tensor"
        return "IntxUnpackedToInt8Tensor" if "Intx" in self.name else "Int8Tensor"


INT8 = Kind("Int8WeightOnlyConfig", 8, None, dtype=torch.float32)
INTX = Kind("IntxWeightOnlyConfig", 4, 8)
INT4 = Kind("Int4WeightOnlyConfig", 4, 8)


def _enum(kind: str, name: str) -> dict[str, str]:
    return {"_data": name, "_type": kind}


def data(kind: Kind) -> dict[str, Any]:
    """The fields of a configuration, as torchao 0.18 writes them."""
    group = {"_data": {"group_size": kind.group_size}, "_type": "PerGroup", "_version": 1}
    row = {"_data": {"dim": -1}, "_type": "PerRow", "_version": 1}
    axis = {"_data": {"axis": 0}, "_type": "PerAxis", "_version": 1}
    mapping = _enum("MappingType", "SYMMETRIC" if kind.symmetric else "ASYMMETRIC")
    if kind.tensor == "Int4Tensor":
        return {
            "group_size": kind.group_size,
            "int4_choose_qparams_algorithm": _enum("Int4ChooseQParamsAlgorithm", "TINYGEMM"),
            "int4_packing_format": _enum("Int4PackingFormat", "PLAIN"),
            "int4_tile_packed_ntile": 8,
            "set_inductor_config": True,
        }
    if kind.tensor == "Int8Tensor":
        return {"granularity": group if kind.group_size else row, "set_inductor_config": True}
    prefix = "weight_" if "Dynamic" in kind.name else ""
    return {
        f"{prefix}granularity": group if kind.group_size else axis,
        f"{prefix}mapping_type": mapping,
        "intx_packing_format": _enum("IntxPackingFormat", "UNPACKED_TO_INT8"),
        "weight_dtype": _enum("torch.dtype", f"int{kind.bits}"),
    }


def configuration(kind: Kind) -> dict[str, Any]:
    """What transformers 5.23 writes into config.json."""
    entry = {"_data": data(kind), "_type": kind.name, "_version": 2}
    return {
        "include_input_output_embeddings": False, "modules_to_not_convert": None,
        "quant_method": "torchao", "quant_type": {"default": entry},
        "untie_embedding_weights": False,
    }  # fmt: skip


def described(kind: Kind, inputs: int) -> str:
    """What a header says of a weight."""
    attributes: dict[str, Any] = {"block_size": [1, kind.group_size or inputs]}
    if kind.tensor == "IntxUnpackedToInt8Tensor":
        attributes["target_dtype"] = {"_type": "torch.dtype", "_data": f"int{kind.bits}"}
    names = ["qdata", "scale", "zero_point"]
    return json.dumps({"_type": kind.tensor, "_data": attributes, "_tensor_data_names": names})


def layer(kind: Kind, outputs: int, inputs: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of one layer, and its float32 weight."""
    size = kind.group_size or inputs
    if kind.tensor == "Int4Tensor":
        return state_int4(outputs, inputs, size, kind.dtype, seed=seed)
    return state(outputs, inputs, kind.bits, size, kind.dtype, symmetric=kind.symmetric, seed=seed)


def write(folder: Path, kind: Kind) -> tuple[PreTrainedModel, dict[str, dict[str, Tensor]]]:
    """Write a tiny model; return it with the textbook's values, and its layers' tensors."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    plain.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    said = {name: '{"_type": "Tensor"}' for name in tensors}
    layers = {}
    for index, (name, module) in enumerate(plain.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            stored, values = layer(kind, *module.weight.shape, seed=index)
            module.weight.data.copy_(values)
            layers[name] = stored
            said[f"{name}.weight"] = described(kind, module.weight.shape[1])
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.{part}": tensor for part, tensor in stored.items()}
    said["tensor_names"] = json.dumps(list(said))
    save_file(tensors, folder / "model.safetensors", metadata={**said, "format": "pt"})
    edit_config(lambda config: config.update(quantization_config=configuration(kind)))(folder)
    return plain, layers


def edit(
    folder: Path,
    tensors: Callable[[dict[str, Tensor]], None] = lambda _: None,
    header: Callable[[dict[str, str]], None] = lambda _: None,
) -> None:
    """Change tensors and what the header says, each in place."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as opened:
        said = dict(opened.metadata())
    held = load_file(path)
    tensors(held)
    header(said)
    save_file(held, path, metadata=said)
