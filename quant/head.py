"""What a scheme may quantize outside the blocks: the language-model head and the token embeddings.

The head is the linear layer after the blocks, which gives the logits; the embeddings are the table
[vocabulary, width] whose rows are the first hidden states. Where a model ties them and both have
one scheme, one packed matrix serves both. Importing this module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from quant.errors import ModelStructureError
from quant.solvers import rtn

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from quant.allocation import AskedScheme
    from quant.budget import AnyScheme

# What models of transformers call them. Checkpoints have other settings for them under these names.
NAMES = ("lm_head", "embed_out")
EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "word_embeddings", "embeddings")
# No Hessian of the head's inputs is collected: they are known only when the last block is finished,
# after one more pass through the model. At 8 bits rounding to nearest loses next to nothing.
SOLVER = rtn.SOLVER
HOW = "rounded to nearest"
# Weights rounded at a time: a head may have a tenth of a model's weights, and rows are independent.
AT_ONCE = 1 << 22
_PATTERN = re.compile(rf"\^?(\.\*)?(\\?\.)?({'|'.join(NAMES)})(\.\*)?\$?")


def is_head(layer: str) -> bool:
    """Whether a layer with this full name is the head."""
    return layer.rpartition(".")[2] in NAMES


def is_embeddings(layer: str) -> bool:
    """Whether a layer with this full name is the table of token embeddings."""
    return layer.rpartition(".")[2] in EMBEDDINGS


def means_head(pattern: str) -> bool:
    """Whether a pattern of layer names in a configuration means the head alone: "^lm_head$"."""
    return _PATTERN.fullmatch(pattern) is not None


def find_head(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """Return the full name of a model's head and its module, which may be a skeleton's.

    Raises ModelStructureError if the model has no head that can be packed.
    """
    from torch import nn

    found = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is found), "")
    if type(found) is nn.Linear and is_head(name):
        return name, found
    what = "no head" if found is None else f"{name or 'its head'}, a {type(found).__name__}"
    raise ModelStructureError(
        f"{type(model).__name__} has {what}; only an nn.Linear called {' or '.join(NAMES)} can be "
        "quantized as the head: leave scheme.head out."
    )


def find_embeddings(model: PreTrainedModel) -> tuple[str, nn.Embedding]:
    """Return the full name of a model's token embeddings and their module, perhaps a skeleton's.

    Raises ModelStructureError if the table cannot be packed.
    """
    from torch import nn

    found = model.get_input_embeddings()
    name = next((name for name, module in model.named_modules() if module is found), "")
    scaled = type(found) is nn.Embedding or hasattr(found, "embed_scale")
    if isinstance(found, nn.Embedding) and scaled and is_embeddings(name) and not found.max_norm:
        return name, found
    raise ModelStructureError(
        f"{type(model).__name__} has {name or 'its embeddings'}, a {type(found).__name__}; only an "
        f"nn.Embedding called {', '.join(EMBEDDINGS[:-1])} or {EMBEDDINGS[-1]}, whose rows are at "
        "most multiplied by embed_scale, can be quantized: leave scheme.embeddings out."
    )


def tied(model: PreTrainedModel) -> bool:
    """Whether the head multiplies by the table of the embeddings, packed or not."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if hasattr(table, "matrix"):  # packed (quant.embedding)
        return table.matrix is head
    return hasattr(head, "weight") and head.weight is table.weight


def one_matrix(scheme: AskedScheme) -> bool:
    """Whether head and embeddings, where they are tied, become one packed matrix."""
    return scheme.head is not None and scheme.head == scheme.embeddings


def serves_head(model: PreTrainedModel, scheme: AnyScheme) -> bool:
    """Whether the packed embeddings of a model with this scheme will be its head too."""
    return one_matrix(scheme) and tied(model)


def alone(scheme: AskedScheme) -> str:
    """Why embeddings are not quantized without a head that is tied to them: after "The model"."""
    assert scheme.embeddings is not None
    own = scheme.embeddings.name
    return (
        "ties its head to its embeddings, and with quantized embeddings alone the table would be "
        "stored a second time, in full: give scheme.head the same keys, as in scheme="
        f"w4g64_head_{own}_emb_{own}, and one packed matrix serves both."
    )


def with_served_head(model: PreTrainedModel, layers: Iterable[str]) -> list[str]:
    """Return the names of quantized layers, with the head if the packed embeddings serve it too."""
    found = list(layers)
    if any(map(is_head, found)) or not any(map(is_embeddings, found)) or not tied(model):
        return found
    head = model.get_output_embeddings()
    return found + [name for name, module in model.named_modules() if module is head]


def with_outside(method: Mapping[str, Any], scheme: AskedScheme) -> dict[str, Any]:
    """What config.json says of a method: with what quantized the head and the embeddings, if the
    scheme has one for them.
    """
    return {**method, **{what: method_outside() for what in scheme.outside}}


def method_outside() -> dict[str, object]:
    """Return what quantizes the head and the embeddings, as JSON for keys and records."""
    return {"method": SOLVER.name, "version": SOLVER.version}
