"""Write a quantized model as a Hugging Face folder in the GPTQ format, whole or not at all."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quant.checkpoint.folder import replace_folder
from quant.checkpoint.format import GPTQ_V2, describe
from quant.checkpoint.formats.gptq import to_tensors
from quant.checkpoint.tensors import STANDARD_STEM, Entry, write_tensors
from quant.errors import ArtifactError
from quant.linear import Packed, packed_shapes
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

# transformers only warns about a quant_method that it does not know, and would go on with random
# weights: files of another name make it stop.
TERNARY_STEM = "bitsweep-ternary"
MAX_SHARD_BYTES = 5_000_000_000
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
)
# Room for config.json, the manifest, the headers of the shards and the file system's own use.
SLACK_BYTES = 1_000_000


def save(
    folder: str | Path,
    model: PreTrainedModel,
    weights: Mapping[str, QuantizedWeight],
    *,
    method: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write model with `weights` in place of the layers they are named after; gives the folder.

    weights maps full module names (nn.Linear, Conv1D or QuantLinear) to quantized weights of one
    scheme; all other tensors keep their dtype, tied ones are written once. method is what made the
    weights and must be JSON. tokenizer is an object, or a folder whose tokenizer files are copied
    unchanged. GPTQ v2 zero-points, and checkpoint_format says so. Ternary levels are written as
    quant_method "bitsweep_ternary" into bitsweep-ternary.safetensors, so that other loaders stop.
    artifact.json holds the sha256 of every file.

    Raises ArtifactError when the weights do not fit the model or the folder cannot be written (a
    full disk is noticed before anything is written); an artifact that is there already stays
    intact until the new one is complete.
    """
    folder = Path(folder)
    scheme = _check_weights(folder, model, weights)
    entries = full_precision(folder, model, weights) + quantized(weights)
    scattered = any(weight.group_index is not None for weight in weights.values())
    config = config_json(folder, model, weights, scheme, scattered, method)
    copied = tokenizer_to_copy(folder, tokenizer)
    needed = sum(entry.nbytes for entry in entries) + SLACK_BYTES
    needed += sum(path.stat().st_size for path in copied)
    with replace_folder(folder, needed) as partial:
        write_tensors(partial, entries, max_shard_bytes, stem_of(scheme))
        write_beside(partial, config, model, copied)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer.save_pretrained(partial)
    return folder


def stem_of(scheme: Scheme) -> str:
    """What the names of the files of tensors begin with."""
    return TERNARY_STEM if scheme.ternary else STANDARD_STEM


def write_beside(folder: Path, config: str, model: PreTrainedModel, copied: list[Path]) -> None:
    """Write the files beside the tensors: config.json, generation_config.json, the tokenizer's."""
    (folder / "config.json").write_text(config, encoding="utf-8")
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.to_json_file(folder / "generation_config.json")
    for path in copied:
        shutil.copyfile(path, folder / path.name)


def _check_weights(
    folder: Path, model: PreTrainedModel, weights: Mapping[str, QuantizedWeight]
) -> Scheme:
    """The one scheme of the weights, each of which must fit a module of the model."""
    if not weights:
        raise ArtifactError(f"{folder}: no quantized weights to write; quantize the model first.")
    first, scheme = next((name, weight.scheme) for name, weight in weights.items())
    modules = dict(model.named_modules())
    for name, weight in weights.items():
        if weight.scheme != scheme:
            raise ArtifactError(
                f"{folder}: {first} is {scheme.name} and {name} is {weight.scheme.name}; the GPTQ "
                "format holds one scheme, so quantize all layers with the same."
            )
        if name not in modules:
            raise ArtifactError(f"{folder}: {type(model).__name__} has no layer {name}.")
        outputs, inputs = layer_shape(modules[name], name)
        if weight.shape != (outputs, inputs):
            raise ArtifactError(
                f"{folder}: the quantized weight of {name} is {list(weight.shape)}, but the layer "
                f"is [{outputs}, {inputs}] (outputs, inputs)."
            )
    return scheme


def layer_shape(module: torch.nn.Module, name: str) -> tuple[int, int]:
    """(outputs, inputs) of an nn.Linear, Conv1D or QuantLinear; ArtifactError for anything else."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    if hasattr(module, "nf") and hasattr(module, "nx"):
        return int(module.nf), int(module.nx)  # type: ignore[arg-type]
    raise ArtifactError(
        f"{name} is a {type(module).__name__}; only nn.Linear and Conv1D layers can be quantized."
    )


def full_precision(
    folder: Path,
    model: PreTrainedModel,
    layers: Iterable[str],
    among: Callable[[str], bool] = lambda _: True,
) -> list[Entry]:
    """The tensors that stay as they are: all but those of quantized `layers`, whose bias stays.

    among  tells by its name whether a tensor is one of those to be written.
    """
    layers = list(layers)
    replaced = tuple(f"{name}." for name in layers)
    kept = {f"{name}.bias" for name in layers}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = model.state_dict()
    entries: dict[Any, Entry] = {}
    # Names that are tied to others come last, so that the others are the ones written.
    for name in sorted(state, key=lambda name: name in tied):
        if (name.startswith(replaced) and name not in kept) or not among(name):
            continue
        tensor = state[name]
        if tensor.is_meta:
            raise ArtifactError(f"{folder}: {name} has no values (it is on the meta device).")
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        # Empty tensors share the address 0 without being tied.
        entry = Entry(name, tuple(tensor.shape), tensor.dtype, functools.partial(_clone, tensor))
        entries.setdefault(key if tensor.numel() else name, entry)
    return list(entries.values())


def _clone(tensor: Tensor) -> Tensor:
    # A view into a larger tensor would be refused by safetensors, or written with all of it.
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def quantized(weights: Mapping[str, QuantizedWeight]) -> list[Entry]:
    """The packed tensors of quantized weights, as they are stored."""
    entries = []
    for layer, weight in weights.items():
        outputs, inputs = weight.shape
        pending = Pending(functools.partial(to_tensors, weight, GPTQ_V2, layer))
        for name, shape in packed_shapes(weight.scheme, inputs, outputs, g_idx=True).items():
            dtype = weight.scale.dtype if name.startswith("scales") else torch.int32
            make = functools.partial(pending.take, name)
            entries.append(Entry(f"{layer}.{name}", shape, dtype, make))
    return entries


class Pending:
    """Makes the tensors of a layer when its first one is asked for, and holds each until then."""

    def __init__(self, make: Callable[[], Packed]) -> None:
        self._make = make
        self._made: Packed = {}

    def take(self, name: str) -> Tensor:
        """The tensor of this name; it is not held any longer."""
        if name not in self._made:
            self._made = self._make()
        return self._made.pop(name)


def config_json(
    folder: Path,
    model: PreTrainedModel,
    layers: Iterable[str],
    scheme: Scheme,
    scattered: bool,
    method: Mapping[str, Any],
) -> str:
    """config.json of a model whose `layers` are quantized; scattered: groups are not neighbours."""
    config = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    config["quantization_config"] = describe(scheme, layers, scattered, method, producer())
    try:
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
    except TypeError as error:
        raise ArtifactError(
            f"{folder}: method={dict(method)} cannot be written as JSON: {error}."
        ) from error


def producer() -> str:
    """Who writes the checkpoint, as its configuration names it."""
    try:
        return f"bitsweep {importlib.metadata.version('bitsweep')}"
    except importlib.metadata.PackageNotFoundError:
        return "bitsweep, run from its source without being installed"


def tokenizer_to_copy(
    folder: Path, tokenizer: PreTrainedTokenizerBase | str | Path | None
) -> list[Path]:
    """The files to copy from the tokenizer's folder; none for an object or None."""
    if not isinstance(tokenizer, str | Path):
        return []
    found = tokenizer_files(Path(tokenizer))
    if not found:
        raise ArtifactError(
            f"{folder}: no tokenizer files (tokenizer.json, vocab.json, ...) in {tokenizer}; pass "
            "the folder of the model's tokenizer, or tokenizer=None to write none."
        )
    return found


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer in a folder of a model."""
    found = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)
