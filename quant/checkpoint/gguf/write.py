"""Write a quantized model as one GGUF file: codes as they are, all other tensors unchanged.

The keys are made of config.json and the tokenizer and read back with the reader's own code before
anything is written (quant.checkpoint.gguf.metadata, vocabulary). Vectors are widened to float32, as
llama.cpp's converter does; matrices keep their type. One tensor at a time is in memory.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.checkpoint.gguf.architecture import Architecture, Config, Row
from quant.checkpoint.gguf.file import INSTALL, PACKAGE, read_gguf
from quant.checkpoint.gguf.metadata import (
    architecture_of,
    as_read,
    check_config,
    factors_of,
    keys_of,
)
from quant.checkpoint.gguf.pack import Packing, check_values, pack, packing_of
from quant.checkpoint.gguf.place import place
from quant.checkpoint.gguf.vocabulary import tokenizer_keys
from quant.checkpoint.one_file import Planned, WholeLayer, WholeModel
from quant.checkpoint.tensors import Entry
from quant.errors import ArtifactError
from quant.weight import QuantizedWeight

_PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_QUANTIZED_BY, _METHOD = "general.quantized_by", "bitsweep.method"
# general.file_type, which llama.cpp prints: of K types those without mixtures.
_FILE_TYPES = {"Q2_K": "MOSTLY_Q2_K", "Q3_K": "MOSTLY_Q3_K_S", "Q4_K": "MOSTLY_Q4_K_S",
               "Q5_K": "MOSTLY_Q5_K_S"}  # fmt: skip
_SLACK = 100_000  # bytes of the header beside tokens and merges
_OTHERWISE = "use --format gptq-v2 or compressed-tensors"


@dataclass(frozen=True)
class _Stored:
    """A tensor of the file: make() gives its bytes, uint8 [..., bytes of a row]."""

    name: str
    shape: tuple[int, ...]
    kind: str
    nbytes: int
    make: Callable[[], Tensor]


def plan(model: WholeModel) -> Planned:
    """Return the file that a model becomes; ArtifactError for what it cannot hold."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ArtifactError(
            f"GGUF files are written with the package {PACKAGE}, which is not installed: {INSTALL}."
        )
    head = any(name.startswith("lm_head.") for name in (*model.others, *_weights(model)))
    config = {**model.config, "tie_word_embeddings": not head}
    how = architecture_of(config, model.source)
    rows = _rows(how, config)
    factors = factors_of(config)
    packed = [
        _layer(layer, _row(rows, f"{name}.weight", model, how), config, model.scattered)
        for name, layer in model.layers.items()
    ]
    others = [
        _plain(entry, _row(rows, name, model, how), config) for name, entry in model.others.items()
    ]
    others += [_stored_as_it_is(name, values) for name, values in factors.items()]
    keys = _general(model, packed) | keys_of(how, config)
    tokens, notes = tokenizer_keys(model.source, config["vocab_size"])
    keys |= tokens
    shapes = {each.name: each.shape for each in (*packed, *others)}
    seen = as_read(model.source, {"general.architecture": how.name, **keys}, shapes, factors)
    place(seen, how, check_config(seen, how, config))
    order = {name: number for number, name in enumerate(_order(rows))}
    tensors = sorted((*packed, *others), key=lambda each: order.get(each.name, -1))
    texts = sum(len(str(value)) for value in keys.values())
    return Planned(
        nbytes=sum(each.nbytes + 32 for each in tensors) + 2 * texts + _SLACK,
        packed=sum(each.nbytes for each in packed),
        others=sum(math.prod(each.shape) for each in others),
        other_bytes=sum(each.nbytes for each in others),
        notes=(*_notes(how, packed, config, keys), *notes),
        write=functools.partial(_write, how.name, keys, tensors),
    )


def is_ours(path: Path) -> bool:
    """Whether a file is a GGUF that this module wrote."""
    try:
        return _METHOD in read_gguf(path).metadata
    except (ArtifactError, OSError):
        return False


def _weights(model: WholeModel) -> Iterator[str]:
    return (f"{name}.weight" for name in model.layers)


def _rows(how: Architecture, config: Config) -> dict[str, tuple[str, Row]]:
    """Return name in the model -> name in the file, and the row of the architecture's table."""
    whole = how.whole if config["tie_word_embeddings"] else (*how.whole, *how.head)
    found = {row.placed: (row.stored, row) for row in whole}
    block = (*how.block, *(row for rest in how.rests for row in rest.rows))
    for index in range(config["num_hidden_layers"]):
        for row in block:
            found[f"model.layers.{index}.{row.placed}"] = (f"blk.{index}.{row.stored}", row)
    return found


def _order(rows: Mapping[str, tuple[str, Row]]) -> list[str]:
    return [stored for stored, _ in rows.values()]


def _row(
    rows: Mapping[str, tuple[str, Row]], name: str, model: WholeModel, how: Architecture
) -> tuple[str, Row]:
    if name not in rows:
        raise ArtifactError(
            f"{model.source} has the tensor {name}, for which GGUF's {how.name} has no place: "
            f"{_OTHERWISE}."
        )
    return rows[name]


def _layer(layer: WholeLayer, row: tuple[str, Row], config: Config, scattered: bool) -> _Stored:
    name, rule = row
    packing = packing_of(layer.scheme, layer.stored.inputs)
    assert packing is not None, "refused before"
    if scattered or packing.minimum or layer.scheme.scale_dtype != "float16":
        check_values(layer.read(), packing, layer.stored.name)
    shape = (layer.stored.outputs, layer.stored.inputs)
    nbytes = math.prod(shape) // packing.block * packing.size
    make = functools.partial(_packed, layer, packing, rule, config)
    return _Stored(name, shape, packing.name, nbytes, make)


def _packed(layer: WholeLayer, packing: Packing, rule: Row, config: Config) -> Tensor:
    weight = layer.read()
    check_values(weight, packing, layer.stored.name)
    if rule.back is not None:
        order = rule.back(torch.arange(weight.shape[0]), config)
        grid = {name: part[order] for name, part in weight.grid.items()}
        weight = QuantizedWeight(weight.codes[order], weight.scheme, None, grid)
    return pack(weight, packing)


def _plain(entry: Entry, row: tuple[str, Row], config: Config) -> _Stored:
    name, rule = row
    if entry.dtype not in _PLAIN:
        raise ArtifactError(
            f"{entry.name} is {str(entry.dtype).removeprefix('torch.')}, which is not written to "
            f"GGUF, only {', '.join(_PLAIN.values())}: {_OTHERWISE}."
        )
    dtype = torch.float32 if len(entry.shape) == 1 else entry.dtype

    def make() -> Tensor:
        values = entry.make()
        if rule.back is not None:
            values = rule.back(values, config)
        return values.to(dtype).contiguous().view(torch.uint8)

    nbytes = math.prod(entry.shape) * dtype.itemsize
    return _Stored(name, entry.shape, _PLAIN[dtype], nbytes, make)


def _stored_as_it_is(name: str, values: Tensor) -> _Stored:
    make = functools.partial(values.view, torch.uint8)
    return _Stored(name, tuple(values.shape), _PLAIN[values.dtype], values.nbytes, make)


def _general(model: WholeModel, packed: list[_Stored]) -> dict[str, Any]:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    (kind, _), *_ = Counter(each.kind for each in packed).most_common(1)
    said = _FILE_TYPES.get(kind, f"MOSTLY_{kind}")
    # No class: llama.cpp looks for tokens of Phi-3 in any file with "phi3" in its name (Phi 4 has
    # that class too, and other tokens), and refuses one that lacks them.
    name = model.base[0].rpartition("/")[2] if model.base else "model"
    keys: dict[str, Any] = {
        "general.type": "model",
        "general.name": f"{name} {model.scheme.name}",
        "general.file_type": int(LlamaFileType[said]),
        "general.quantization_version": GGML_QUANT_VERSION,
        _QUANTIZED_BY: model.producer,
        _METHOD: json.dumps({"scheme": model.scheme.name, "method": model.method}, sort_keys=True),
    }
    if model.licence is not None:
        keys["general.license"] = model.licence
    if model.base:
        keys["general.base_model.count"] = len(model.base)
    for number, repository in enumerate(model.base):
        keys[f"general.base_model.{number}.repo_url"] = f"https://huggingface.co/{repository}"
    return keys


def _notes(
    how: Architecture, packed: list[_Stored], config: Config, keys: Mapping[str, Any]
) -> Iterator[str]:
    kinds = ", ".join(f"{count} as {kind}" for kind, count in Counter(
        each.kind for each in packed).most_common())  # fmt: skip
    yield (
        f"{kinds} of GGUF hold the codes as they are; llama.cpp rounds activations to 8 bits in "
        "front of such layers, so its figures differ a little from those of other readers."
    )
    if config.get("sliding_window") is not None and not how.windowed:
        yield (
            f"llama.cpp does not read the sliding window of {config['sliding_window']} tokens for "
            "this architecture: longer contexts see more there."
        )
    if keys.get("tokenizer.ggml.pre") == "qwen2":
        yield "llama.cpp does not compose characters first (NFC), as this model's tokenizer does."


def _write(architecture: str, keys: Mapping[str, Any], tensors: list[_Stored], path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, architecture)
    of_bytes = torch.empty(0, dtype=torch.uint8).numpy().dtype
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in keys.items():
        add[type(value)](key, value)
    for each in tensors:
        kind = GGMLQuantizationType[each.kind]
        bytes_of_row = each.nbytes // math.prod(each.shape[:-1])
        shape = (*each.shape[:-1], bytes_of_row)
        writer.add_tensor_info(each.name, shape, of_bytes, each.nbytes, kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for each in tensors:
            writer.write_tensor_data(each.make().numpy())
    finally:
        writer.close()
