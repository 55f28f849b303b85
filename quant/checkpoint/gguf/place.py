"""Where every tensor of a file goes, with its shape checked against the metadata."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from quant.checkpoint.gguf.architecture import Architecture, Change, Config, Placed, Row, sizes
from quant.checkpoint.gguf.file import GgufFile
from quant.checkpoint.gguf.rope import FACTORS
from quant.errors import ArtifactError

# A newer converter can join these into one tensor of any architecture, in this order.
_JOINED = "attn_qkv"
_PARTS = ("attn_q", "attn_k", "attn_v")


def place(file: GgufFile, how: Architecture, config: Config) -> dict[str, Placed]:
    """Name in the Hugging Face folder -> tensor, for every tensor of the file.

    Raises ArtifactError for a tensor that is missing, has no place, or has another shape than the
    metadata says.
    """
    whole = how.whole if config["tie_word_embeddings"] else (*how.whole, *how.head)
    placed = {row.placed: _placed(file, row, "", config) for row in whole}
    rests = [row for rest in how.rests if config[rest.flag] for row in rest.rows]
    for index in range(config["num_hidden_layers"]):
        for row in (*how.block, *rests):
            name = f"model.layers.{index}.{row.placed}"
            placed[name] = _placed(file, row, f"blk.{index}.", config)
    odd = file.tensors.keys() - {each.stored for each in placed.values()} - set(FACTORS)
    if odd:
        raise ArtifactError(
            f"{file.path} has a tensor that no {how.name} has, {min(odd)}, so it is another "
            "variant than is read, or damaged: use the Hugging Face folder of the model."
        )
    return placed


def _placed(file: GgufFile, row: Row, block: str, config: Config) -> Placed:
    known = sizes(config)
    shape, stored, rows = tuple(known[size] for size in row.shape), block + row.stored, None
    expected, said = shape, row.shape
    kind, _, part = row.stored.partition(".")
    if kind in _PARTS and stored not in file.tensors:
        joined = f"{block}{_JOINED}.{part}"
        if joined in file.tensors:
            first = sum((known["queries"], known["keys"])[: _PARTS.index(kind)])
            stored, rows = joined, (first, first + shape[0])
            expected = (known["all three"], *shape[1:])
            said = ("all three", *row.shape[1:])
    found = file.shape(stored)
    if found != expected:
        raise ArtifactError(
            f"{file.path} has {stored} of shape {list(found)}, and its metadata says "
            f"{list(expected)} ({' x '.join(said)}; heads {config['num_attention_heads']}, of keys "
            f"{config['num_key_value_heads']}, each {config['head_dim']}): it is damaged or was "
            "changed; download it again."
        )
    change = None if row.change is None else partial(_changed, row.change, config)
    return Placed(stored, shape, rows, change)


def _changed(change: Change, config: Config, values: Tensor) -> Tensor:
    return change(values, config)
