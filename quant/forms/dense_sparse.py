"""Dense times sparse: W = dense [out, inner] times a semi-structured sparse matrix [inner, in].

Of every `group` of adjacent inputs a row of the sparse factor uses the same number (N:M sparsity
along the inputs, over which products sum, as sparse tensor cores have it). Numbers are float16;
where in its group each of them stands takes log2(group) bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.forms.base import Form, Shape, Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BITS = 16  # of a number
PLACE_BITS = {4: 2, 8: 3, 16: 4}  # by the size of a group
GROUP_BITS = 8  # the size of groups is stored, once


def stored_bits(shape: Shape, inner: int, used: int, group: int) -> int:
    """Return the stored bits of a weight (outputs, inputs), of `used` inputs in every `group`."""
    from cuda_ext.layout import words_for

    outputs, inputs = shape
    numbers = inputs // group * used
    places = 32 * words_for(numbers, PLACE_BITS[group])
    return GROUP_BITS + inner * (BITS * (outputs + numbers) + places)


def most_inner(shape: Shape, used: int, group: int, most_bytes: int) -> int:
    """Return the largest inner size that takes at most so many bytes; 0 if none does.

    No more than the shorter side of the weight, which has no further directions.
    """
    each = stored_bits(shape, 1, used, group) - GROUP_BITS
    return max(0, min((8 * most_bytes - GROUP_BITS) // each, *shape))


def pack(dense: Tensor, sparse: Tensor, mask: Tensor, used: int, group: int) -> dict[str, Tensor]:
    """Return the tensors of two factors; bool mask [inner, in] has `used` in every group of inputs.

    Both factors are rounded to float16.
    """
    import torch

    from cuda_ext.layout import pack_codes

    inner, inputs = sparse.shape
    places = mask.view(inner, inputs // group, group).nonzero()[:, 2].view(inner, -1, used)
    values = sparse.view(inner, inputs // group, group).gather(2, places)
    return {
        "dense": dense.half().contiguous(),
        "values": values.half().contiguous(),
        "places": pack_codes(places.flatten(1).to(torch.uint8), PLACE_BITS[group]),
        "group": torch.tensor([group], dtype=torch.uint8, device=dense.device),
    }


def places_of(tensors: Tensors) -> Tensor:
    """Return the places int64 [inner, groups, used] of the numbers in their groups."""
    from cuda_ext.layout import unpack_codes

    values, group = tensors["values"], int(tensors["group"])
    found = unpack_codes(tensors["places"], PLACE_BITS[group], values.shape[1] * values.shape[2])
    return found.view(values.shape).long()


def sparse_of(tensors: Tensors, dtype: torch.dtype) -> Tensor:
    """Return the sparse factor [inner, in] with its zeros."""
    values, group = tensors["values"], int(tensors["group"])
    whole = values.new_zeros(*values.shape[:2], group, dtype=dtype)
    return whole.scatter_(2, places_of(tensors), values.to(dtype)).flatten(1)


def fault(tensors: Tensors) -> str | None:
    from cuda_ext.layout import words_for

    (inner, groups, used), other = tensors["values"].shape, tensors["dense"].shape[1]
    if tensors["group"].numel() != 1 or int(tensors["group"][0]) not in PLACE_BITS:
        return f"has the group {tensors['group'].tolist()}, which is none of {list(PLACE_BITS)}"
    group = int(tensors["group"][0])
    words = (inner, words_for(groups * used, PLACE_BITS[group]))
    if inner != other or used >= group or tensors["places"].shape != words:
        sizes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        return f"has tensors that do not fit each other: {sizes} for groups of {group}"
    places = places_of(tensors)
    if used > 1 and not bool((places.diff(dim=2) > 0).all()):
        return "has places that do not rise within a group"
    return None


def shape(tensors: Tensors) -> Shape:
    return tensors["dense"].shape[0], tensors["values"].shape[1] * int(tensors["group"])


def dense(tensors: Tensors) -> Tensor:
    import torch

    return tensors["dense"].float() @ sparse_of(tensors, torch.float32)


def product(x: Tensor, tensors: Tensors) -> Tensor:
    """Two products; the sparse factor is expanded before the first, on any device."""
    return (x @ sparse_of(tensors, x.dtype).T) @ tensors["dense"].to(x.dtype).T


FORM = Form(
    name="dense_sparse",
    title="dense times sparse",
    tensors={
        "dense": ("float16", 2),
        "values": ("float16", 3),
        "places": ("int32", 2),
        "group": ("uint8", 1),
    },
    fault=fault,
    shape=shape,
    dense=dense,
    product=product,
    way="two products, the sparse factor expanded first",
)
