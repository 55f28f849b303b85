"""What an architecture of GGUF is: tables of its keys and tensors, and what makes config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from quant.checkpoint.gguf.file import GgufFile

Config = dict[str, Any]
Change = Callable[[Tensor, Config], Tensor]


@dataclass(frozen=True)
class Key:
    """A key of the metadata, without the name of the architecture, and its field of config.json.

    default  if the file lacks the key; None: it must have it.
    whole    a whole number above 0; False: a real number.
    """

    name: str
    field: str
    default: float | None = None
    whole: bool = True


@dataclass(frozen=True)
class Row:
    """A kind of tensor; one outside the blocks, or one in each.

    stored  its name in the file, without blk.N.
    placed  its name in the Hugging Face folder, without model.layers.N.
    shape   names of sizes (`sizes`), PyTorch's order.
    change  change(values, config): what is done to the values; back undoes it for writing, so that
            the model computes the same, to the bit (None: it cannot be undone).
    """

    stored: str
    placed: str
    shape: tuple[str, ...]
    change: Change | None = None
    back: Change | None = None


@dataclass(frozen=True)
class Rest:
    """Rows that a file has all of, or none; `flag` of config.json says which."""

    flag: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Architecture:
    """How to read one architecture.

    name      general.architecture in the file.
    cls       class of transformers, model_type its name in config.json.
    fixed     fields of config.json that no key gives.
    keys      further keys than those of every decoder (`quant.checkpoint.gguf.config`).
    whole     tensors outside the blocks, without the head; head those of an untied head.
    block     tensors of every block; rests are there or not.
    partial   whether less than a head may be rotated.
    more      more(file, config): further fields, which may replace others; ArtifactError.
    also      keys that `more` reads.
    written   types of models (model_type) that are written as this architecture; (): none.
    unread    unread(config): keys that `more` reads, of a config.json that is written.
    windowed  whether llama.cpp reads the sliding window of the architecture.
    """

    name: str
    cls: str
    model_type: str
    fixed: Mapping[str, Any]
    keys: tuple[Key, ...]
    whole: tuple[Row, ...]
    block: tuple[Row, ...]
    head: tuple[Row, ...]
    rests: tuple[Rest, ...] = ()
    partial: bool = False
    more: Callable[[GgufFile, Config], Config] = field(default=lambda _file, _config: {})
    also: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    unread: Callable[[Config], dict[str, Any]] = field(default=lambda _config: {})
    windowed: bool = False


@dataclass(frozen=True)
class Placed:
    """A tensor of the file, by its name, and what is made of it.

    shape   of the result.
    rows    first and last + 1 of the rows that are taken; None: all.
    change  what is done to the values.
    """

    stored: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    change: Callable[[Tensor], Tensor] | None = None


def weight(stored: str, placed: str, *shape: str) -> Row:
    """The row of a weight that is taken as it is."""
    return Row(f"{stored}.weight", f"{placed}.weight", shape)


def bias(stored: str, placed: str, size: str) -> Row:
    """The row of a bias that is taken as it is."""
    return Row(f"{stored}.bias", f"{placed}.bias", (size,))


def sizes(config: Config) -> dict[str, int]:
    """Sizes of tensors, by the names that rows use."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head, inner = config["head_dim"], config["intermediate_size"]
    queries, keys = heads * head, kv_heads * head
    return {
        "vocabulary": config["vocab_size"],
        "width": config["hidden_size"],
        "inner": inner,
        "inner twice": 2 * inner,
        "head": head,
        "queries": queries,
        "keys": keys,
        "all three": queries + 2 * keys,
    }
