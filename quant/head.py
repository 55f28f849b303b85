"""The language-model head: the linear layer after the blocks, which gives the logits.

A scheme with `head` quantizes it too. Importing this module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quant.budget import AnyScheme
from quant.errors import ModelStructureError
from quant.solvers import rtn

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


# What models of transformers call it. Checkpoints have other settings for it under these names.
NAMES = ("lm_head", "embed_out")
# No Hessian of its inputs is collected: they are known only when the last block is finished, after
# one more pass through the model. At 8 bits rounding to nearest loses next to nothing.
SOLVER = rtn.SOLVER
HOW = "rounded to nearest"
# Weights rounded at a time: a head may have a tenth of a model's weights, and rows are independent.
AT_ONCE = 1 << 22
_PATTERN = re.compile(rf"\^?(\.\*)?(\\?\.)?({'|'.join(NAMES)})(\.\*)?\$?")


def is_head(layer: str) -> bool:
    """Whether a layer with this full name is the head."""
    return layer.rpartition(".")[2] in NAMES


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


def with_head(method: Mapping[str, Any], scheme: AnyScheme) -> dict[str, Any]:
    """What config.json says of a method: with what quantized the head, if the scheme has one."""
    return {**method, **({} if scheme.head is None else {"head": method_of_head()})}


def method_of_head() -> dict[str, object]:
    """Return what quantizes the head, as JSON for keys and records."""
    return {"method": SOLVER.name, "version": SOLVER.version}
