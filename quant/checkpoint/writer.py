"""Write a quantized model as a Hugging Face folder, atomically."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quant.budget import AnyScheme, Budget
from quant.checkpoint import tables
from quant.checkpoint.card import Content, Count, Origin, write_card
from quant.checkpoint.choose import artifact_format
from quant.checkpoint.files import copy_files, tokenizer_files
from quant.checkpoint.folder import replace_folder
from quant.checkpoint.formats import bitsweep_factored
from quant.checkpoint.formats.base import QuantizedModel, StoredLayer, Writer
from quant.checkpoint.matching import say_untied, ties_hold
from quant.checkpoint.names import Names, names_of
from quant.checkpoint.operators import STEM, stored_operators, wrap
from quant.checkpoint.tensors import Entry, write_tensors
from quant.errors import ArtifactError, SchemeError
from quant.head import is_embeddings, is_head, tied, with_served_head
from quant.input_operator import NAME as OPERATOR
from quant.linear import Packed
from quant.scheme import Scheme, mixture, most_common
from quant.weight import AnyWeight, FactoredWeight, QuantizedWeight

MAX_SHARD_BYTES = 5_000_000_000
# Room for config.json, the manifest, the headers of the shards and the file system's own use.
SLACK_BYTES = 1_000_000


def save(
    folder: str | Path,
    model: PreTrainedModel,
    weights: Mapping[str, AnyWeight],
    *,
    method: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    origin: Origin | None = None,
) -> Path:
    """Write model to `folder` with `weights` in place of the layers that they name.

    weights maps full module names (nn.Linear, Conv1D or packed ones) to quantized weights of one
    scheme; head and embeddings (quant.head) may have their own. All other tensors keep their dtype,
    and tied ones are written once. method describes what made the weights and must be JSON.
    tokenizer is an object, or a folder whose tokenizer files are copied unchanged. The format is
    the first of Bitsweep's own that supports the scheme: GPTQ v2 for uniform levels. artifact.json
    has the sha256 of every file but README.md, the model card, which says what is known of the
    `origin`. Returns the folder.

    Raises ArtifactError if the weights do not fit the model or the folder cannot be written (a full
    disk is detected before anything is written); an existing artifact stays intact until the new
    one is complete.
    """
    folder = Path(folder)
    scheme = _check_weights(folder, model, weights)
    others, packed = full_precision(folder, model, weights), quantized(weights)
    entries = as_stored(others + packed, names_of(model))
    some_scattered = any(map(scattered, weights.values()))
    operators = stored_operators(model, weights)
    config = config_json(folder, model, weights, scheme, some_scattered, method, operators)
    copied = tokenizer_to_copy(folder, tokenizer)
    needed = sum(entry.nbytes for entry in entries) + SLACK_BYTES
    needed += sum(path.stat().st_size for path in copied)
    with replace_folder(folder, needed) as place:
        write_tensors(place, entries, max_shard_bytes, stem_of(scheme, bool(operators)))
        write_other_files(place, config, model, copied)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer.save_pretrained(place)
        count = Count.of(packed, others)
        content = content_of(model, weights, scheme, some_scattered, method, count, bool(operators))
        write_card(place, content, origin or Origin())
    return folder


def content_of(
    model: PreTrainedModel,
    layers: Iterable[str],
    scheme: AnyScheme,
    scattered: bool,
    method: Mapping[str, Any],
    count: Count,
    operators: bool,
) -> Content:
    """Return what the card of an artifact says of its content."""
    format, writer = artifact_format(scheme)
    stored = []
    for name in layers:
        module = model.get_submodule(name)
        shape = layer_shape(module, name)
        stored.append(StoredLayer(name, *shape, kind_of(module), model.dtype))
    return Content(
        architecture=type(model).__name__,
        format=format,
        scheme=scheme,
        layers=len(stored),
        weights=sum(each.outputs * each.inputs for each in stored),
        count=count,
        method=method,
        producer=producer(),
        notes=writer.notes(scheme, stored),
        scattered=scattered,
        operators=operators,
    )


def as_stored(entries: list[Entry], names: Names) -> list[Entry]:
    """Return the same entries with their names in files."""
    return [dataclasses.replace(entry, name=names.to_stored(entry.name)) for entry in entries]


def stem_of(scheme: AnyScheme, operators: bool = False) -> str:
    """Return the beginning of the names of tensor files; operators: whether layers have any."""
    if operators:
        return STEM
    return artifact_format(scheme)[1].stem if scheme.embeddings is None else tables.STEM


def write_other_files(
    folder: Path, config: str, model: PreTrainedModel, copied: list[Path]
) -> None:
    """Write the other files: config.json, generation_config.json, the tokenizer's."""
    (folder / "config.json").write_text(config, encoding="utf-8")
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.to_json_file(folder / "generation_config.json")
    copy_files([*copied, *own_code(model)], folder)


def own_code(model: PreTrainedModel) -> list[Path]:
    """Return the Python files of a model with its own, trusted code; [] for others."""
    module = type(model).__module__
    if not module.startswith("transformers_modules."):
        return []
    place = Path(str(sys.modules[module].__file__)).parent
    return sorted(path for path in place.glob("*.py") if path.name != "__init__.py")


def _check_weights(
    folder: Path, model: PreTrainedModel, weights: Mapping[str, AnyWeight]
) -> AnyScheme:
    """Return the scheme of the weights, with those of single layers, head and embeddings.

    Each weight must fit a module of the model.
    """
    if not weights:
        raise ArtifactError(f"{folder}: no quantized weights to write; quantize the model first.")
    schemes = {name: weight.scheme for name, weight in weights.items()}
    layers = {n: s for n, s in schemes.items() if not is_head(n) and not is_embeddings(n)}
    inside = layers or schemes
    outside = {
        "embeddings" if is_embeddings(name) else "head": each
        for name, each in schemes.items()
        if name not in inside
    }
    modules = dict(model.named_modules())
    for name, weight in weights.items():
        if name not in modules:
            raise ArtifactError(f"{folder}: {type(model).__name__} has no layer {name}.")
        outputs, inputs = layer_shape(modules[name], name)
        if weight.shape != (outputs, inputs):
            raise ArtifactError(
                f"{folder}: the quantized weight of {name} is {list(weight.shape)}, but the layer "
                f"is [{outputs}, {inputs}] (outputs, inputs)."
            )
    if "embeddings" in outside and tied(model):
        outside.setdefault("head", outside["embeddings"])
    budgets = [each for each in inside.values() if isinstance(each, Budget)]
    if len(set(budgets)) > 1 or (budgets and len(budgets) < len(schemes)):
        names = ", ".join(dict.fromkeys(each.name for each in schemes.values()))
        raise ArtifactError(
            f"{folder}: the layers have {names}; factored layers have one budget, and nothing that "
            "is quantized beside them."
        )
    if budgets:
        return budgets[0]
    try:
        return mixture(inside).beside(outside)  # type: ignore[arg-type]
    except SchemeError as error:
        raise ArtifactError(f"{folder}: {error}") from error


def layer_shape(module: nn.Module, name: str) -> tuple[int, int]:
    """Return (outputs, inputs) of an nn.Linear, Conv1D or QuantLinear, or (rows, width) of
    embeddings; ArtifactError for another module.
    """
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    if hasattr(module, "nf") and hasattr(module, "nx"):
        return int(module.nf), int(module.nx)  # type: ignore[arg-type]
    if hasattr(module, "num_embeddings") and hasattr(module, "embedding_dim"):
        return int(module.num_embeddings), int(module.embedding_dim)  # type: ignore[arg-type]
    raise ArtifactError(
        f"{name} is a {type(module).__name__}; only nn.Linear and Conv1D layers can be quantized."
    )


def full_precision(
    folder: Path,
    model: PreTrainedModel,
    layers: Iterable[str],
    among: Callable[[str], bool] = lambda _: True,
) -> list[Entry]:
    """Return the tensors that stay unchanged: all but the weights of quantized `layers`.

    among  among(name): whether a tensor is to be written.
    """
    layers = with_served_head(model, layers)
    replaced = tuple(f"{name}." for name in layers)
    kept = {f"{name}.bias" for name in layers}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = model.state_dict()
    entries: dict[Any, Entry] = {}
    # Tied names come last, so that the names that they are tied to are the ones written.
    for name in sorted(state, key=lambda name: name in tied):
        stays = name in kept or f".{OPERATOR}." in name or not name.startswith(replaced)
        if not stays or not among(name):
            continue
        tensor = state[name]
        if tensor.is_meta:
            raise ArtifactError(f"{folder}: {name} has no values (it is on the meta device).")
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        # Empty tensors share the address 0 without being tied.
        entry = Entry(name, tuple(tensor.shape), tensor.dtype, partial(_clone, tensor))
        entries.setdefault(key if tensor.numel() else name, entry)
    return list(entries.values())


def _clone(tensor: Tensor) -> Tensor:
    # safetensors refuses a view into a larger tensor, or writes all of that tensor.
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def quantized(weights: Mapping[str, AnyWeight]) -> list[Entry]:
    """Return the packed tensors of quantized weights, as an artifact stores them."""
    entries = []
    for name, weight in weights.items():
        if isinstance(weight, FactoredWeight):
            entries += [
                Entry(f"{name}.{part}", tuple(tensor.shape), tensor.dtype, partial(_clone, tensor))
                for part, tensor in bitsweep_factored.stored(weight).items()
            ]
            continue
        _, writer = artifact_format(weight.scheme)
        layer = StoredLayer(name, *weight.shape, scattered=weight.group_index is not None)
        read = partial(_as_it_is, weight)
        entries += layer_entries(writer, weight.scheme, layer, read)
    return entries


def scattered(weight: AnyWeight) -> bool:
    """Whether the columns of a group are not adjacent; a factored weight has no groups."""
    return isinstance(weight, QuantizedWeight) and weight.group_index is not None


def _as_it_is(weight: QuantizedWeight) -> QuantizedWeight:
    return weight


def layer_entries(
    writer: Writer, scheme: Scheme, layer: StoredLayer, read: Callable[[], QuantizedWeight]
) -> list[Entry]:
    """Return the tensors of one layer; its weight is read when its first tensor is written.

    Raises ArtifactError for what the format cannot store, as far as it is known without the weight.
    """
    _refuse(writer, scheme, layer)

    def make() -> Packed:
        weight = read()
        known = dataclasses.replace(layer, scattered=weight.group_index is not None)
        _refuse(writer, scheme, known)
        return writer.write_layer(weight, known)

    pending = Pending(make)
    return [
        Entry(f"{layer.name}.{part}", shape, dtype, partial(pending.take, part))
        for part, (shape, dtype) in writer.entries(scheme, layer).items()
    ]


def _refuse(writer: Writer, scheme: Scheme, layer: StoredLayer) -> None:
    reason = writer.refuses(scheme, layer)
    if reason is not None:
        raise ArtifactError(f"{layer.name} {reason}")


def kind_of(module: nn.Module) -> str:
    """Return StoredLayer.module for the module of a layer."""
    return "Linear" if isinstance(module, nn.Linear) else type(module).__name__


def describe(
    writer: Writer,
    model: PreTrainedModel,
    layers: Iterable[str],
    scheme: AnyScheme,
    scattered: bool,
    method: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the quantization_config of a model whose `layers` are quantized.

    scheme  that of the layers in the blocks, with that of the head if it is among the layers.
    Embeddings among the layers are left to `quant.checkpoint.tables`.
    """
    stored = names_of(model).to_stored
    layers = [name for name in layers if not is_embeddings(name)]
    chosen = dict.fromkeys(map(stored, layers))
    linears = [stored(n) for n, module in model.named_modules() if isinstance(module, nn.Linear)]
    kept = tuple(name for name in linears if name not in chosen)
    head = next(filter(is_head, chosen), None) if scheme.head is not None else None
    blocks = tuple(name for name in chosen if name != head)
    schemes = {stored(name): scheme.of(name) for name in layers if stored(name) != head}
    usual = most_common(schemes.values()) if schemes else scheme.without_head
    own = {name: each for name, each in schemes.items() if each != usual}
    if isinstance(usual, Scheme):
        usual = dataclasses.replace(usual, head=scheme.head)
    return writer.describe(
        QuantizedModel(usual, blocks, kept, scattered, method, producer(), head, own)
    )


class Pending:
    """Makes the tensors of a layer on the first request, and drops each one once it is taken."""

    def __init__(self, make: Callable[[], Packed]) -> None:
        self._make = make
        self._made: Packed = {}

    def take(self, name: str) -> Tensor:
        """Return the tensor with this name, and drop it."""
        if name not in self._made:
            self._made = self._make()
        return self._made.pop(name)


def config_json(
    folder: Path,
    model: PreTrainedModel,
    layers: Iterable[str],
    scheme: AnyScheme,
    scattered: bool,
    method: Mapping[str, Any],
    operators: Mapping[str, Any],
) -> str:
    """Return the config.json of a model whose `layers` are quantized.

    scattered  whether the columns of a group may be not adjacent.
    operators  description of the operators, from `stored_operators`.
    """
    config = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    layers = list(layers)
    if not ties_hold(model, layers):
        say_untied(config)
    _, writer = artifact_format(scheme)
    quantization = describe(writer, model, layers, scheme, scattered, method)
    quantization = tables.wrap(quantization, scheme.embeddings)
    config["quantization_config"] = wrap(quantization, operators)
    try:
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
    except TypeError as error:
        raise ArtifactError(
            f"{folder}: method={dict(method)} cannot be written as JSON: {error}."
        ) from error


def producer() -> str:
    """Return the producer's name and version for the configuration."""
    try:
        return f"bitsweep {importlib.metadata.version('bitsweep')}"
    except importlib.metadata.PackageNotFoundError:
        return "bitsweep, run from its source without being installed"


def tokenizer_to_copy(
    folder: Path, tokenizer: PreTrainedTokenizerBase | str | Path | None
) -> list[Path]:
    """Return the files to copy from the tokenizer's folder; [] for an object or None."""
    if not isinstance(tokenizer, str | Path):
        return []
    found = tokenizer_files(Path(tokenizer))
    if not found:
        raise ArtifactError(
            f"{folder}: no tokenizer files (tokenizer.json, vocab.json, ...) in {tokenizer}; pass "
            "the folder of the model's tokenizer, or tokenizer=None to write none."
        )
    return found
