"""A fused step over a model's own tensors, of whatever family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cuda_ext.step import Place, Step
from quant.decode.description import Description, Unsupported, norm_of, require_fit
from quant.decode.families import bloom, llama, neox, opt, phi
from quant.linear import QuantLinear

FAMILIES = (llama, opt, bloom, neox, phi)


def describe(model: Any) -> Description:
    """What a step takes of a model; Unsupported saying why it cannot."""
    for family in FAMILIES:
        description: Description | None = family.describe(model)
        if description is not None:
            require_fit(model, description)
            return description
    known = ", ".join(family.NAME for family in FAMILIES)
    raise Unsupported(f"{type(model.base_model).__name__} is not built like {known}")


def open_step(
    description: Description,
    embedding: Tensor,
    cache: Sequence[tuple[Tensor, Tensor]],
    most_tokens: int,
) -> tuple[Step, int]:
    """A step over the model's own tensors, and the keys and values of every layer; and how many
    bytes fewer than the model holds it reads a token, because its head is read as 16 bits.

    embedding [vocabulary, hidden] has the rows of the tokens that are passed; cache holds
    [1, kv_heads, positions, width] of keys and of values, layer by layer.
    """
    positions = cache[0][0].shape[2]
    step = Step(
        embedding,
        norm_of(description.norm),
        heads=description.heads,
        kv_heads=description.kv_heads,
        width=description.width,
        positions=positions,
        feed=description.feed,
        activation=description.activation,
        epsilon=description.epsilon,
        scale=description.scale,
        most_tokens=most_tokens,
        parallel=description.parallel,
    )
    description.set_positions(step, positions)
    if description.embedding_norm is not None:
        step.set_embedding_norm(norm_of(description.embedding_norm))
    for index, (layer, (keys, values)) in enumerate(zip(description.layers, cache, strict=True)):
        of_heads = (layer.query_norm, layer.key_norm)
        query, key = (None if norm is None else norm_of(norm).weight for norm in of_heads)
        norm, feed_norm = norm_of(layer.norm), norm_of(layer.feed_norm)
        step.add_layer(norm, feed_norm, keys, values, query_norm=query, key_norm=key)
        for place, linear in layer.matrices.items():
            _set(step, index, place, linear)
    head = description.head
    if isinstance(head, QuantLinear):
        _set(step, 0, Place.HEAD, head)
        return step, 0
    weight = head.weight.detach()
    held = halved(weight)
    step.set_dense(0, Place.HEAD, held, _detached(head.bias))
    return step, weight.nbytes - held.nbytes


def halved(weight: Tensor) -> Tensor:
    """The same numbers in 16 bits where these hold them all exactly, as they do for a checkpoint
    that was stored so; else the weight itself.
    """
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(part.to(dtype).float(), part) for part in weight.split(4096)):
            return weight.to(dtype)
    return weight


def _set(step: Step, layer: int, place: Place, linear: Any) -> None:
    if not isinstance(linear, QuantLinear):
        step.set_dense(layer, place, linear.weight.detach(), _detached(linear.bias))
        return
    step.set_packed(
        layer,
        place,
        linear.kernel_buffers(),
        bits=linear.scheme.bits,
        in_features=linear.in_features,
        out_features=linear.out_features,
        group_size=linear.scheme.group_size,
        bias=linear.bias,
    )


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
