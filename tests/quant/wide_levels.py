"""Number formats of others: k-quants, NVFP4 and codebooks, as small as they can be declared."""

from dataclasses import replace

import torch

from quant.levels.base import GridTensor, Levels
from quant.scales import round_scale

# The magnitudes of e2m1 (FP4) by their codes; codes 8 to 15 are their negatives.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def find_q4k(weight, scheme, layer):
    """The scales and minima of groups in 6 bits each, on two float16 steps a super-block."""
    groups = weight.split(scheme.group_size or weight.shape[1], dim=1)
    low = torch.stack([-group.amin(1).clamp(max=0) for group in groups], 1)
    high = torch.stack([group.amax(1).clamp(min=0) for group in groups], 1)
    scale = (high + low) / scheme.max_code
    steps = [round_scale(each.amax(1) / 63, scheme, layer) for each in (scale, low)]
    codes = [
        (each / step[:, None]).round().clamp(0, 63)
        for each, step in zip((scale, low), steps, strict=True)
    ]
    return {
        "scale": codes[0],
        "minimum": codes[1],
        "step": steps[0][:, None],
        "minimum_step": steps[1][:, None],
    }


def encode_q4k(values, grid, scheme):
    scale = grid["step"] * grid["scale"]
    codes = ((values + grid["minimum_step"] * grid["minimum"]) / scale).round()
    return torch.where(scale > 0, codes, 0.0).clamp(0, scheme.max_code)


def decode_q4k(codes, grid, scheme):
    return grid["step"] * grid["scale"] * codes - grid["minimum_step"] * grid["minimum"]


Q4K = Levels(
    name="own_q4k",
    prefix="q4k",
    about="q4k levels have super-blocks of 8 groups",
    tensors=(
        GridTensor("scale", "scales", code=True, width=6),
        GridTensor("minimum", "minima", code=True, width=6),
        GridTensor("step", "steps", span=8),
        GridTensor("minimum_step", "minimum_steps", span=8),
    ),
    find=find_q4k,
    encode=encode_q4k,
    decode=decode_q4k,
    bits=(4,),
)
# The same with super-blocks of 3 groups, and with steps that belong to a whole row.
Q4K_OF_3, Q4K_OF_ROWS = (
    replace(Q4K, tensors=(*Q4K.tensors[:2], *(replace(t, span=span) for t in Q4K.tensors[2:])))
    for span in (3, None)
)


def find_nvfp4(weight, scheme, layer):
    """The largest magnitude of a row is 6 * 448 of its scale, that of a block 6 of its own."""
    row = round_scale(weight.abs().amax(1) / (6 * 448), scheme, layer, dtype="float32")[:, None]
    blocks = [block.abs().amax(1) for block in weight.split(scheme.group_size, dim=1)]
    block = round_scale(torch.stack(blocks, 1) / (6 * row), scheme, layer, dtype="float8_e4m3fn")
    return {"scale": block, "row_scale": row}


def encode_nvfp4(values, grid, scheme):
    table = torch.tensor(E2M1, dtype=values.dtype)
    scaled = values / (grid["scale"] * grid["row_scale"])
    nearest = (scaled.abs()[..., None] - table).abs().argmin(-1)
    return (nearest + 8 * ((scaled < 0) & (nearest > 0))).to(values.dtype)


def decode_nvfp4(codes, grid, scheme):
    table = torch.tensor([*E2M1, *(-each for each in E2M1)], dtype=codes.dtype)
    return table[codes.long()] * (grid["scale"] * grid["row_scale"])


NVFP4 = Levels(
    name="own_nvfp4",
    prefix="ownfp4",
    about="own nvfp4 levels are the values of e2m1",
    tensors=(
        GridTensor("scale", "block_scales", dtype="float8_e4m3fn"),
        GridTensor("row_scale", "row_scales", dtype="float32", span=None),
    ),
    find=find_nvfp4,
    encode=encode_nvfp4,
    decode=decode_nvfp4,
    bits=(4,),
)


def find_codebook(weight, scheme, layer):
    """Quantiles of the weights, in the type of scales."""
    count = scheme.max_code + 1
    at = (torch.arange(count, dtype=weight.dtype) + 0.5) / count
    table = torch.quantile(weight, at, dim=1).T
    return {"table": table.to(getattr(torch, scheme.scale_dtype)).to(weight.dtype)}


def encode_codebook(values, grid, scheme):
    return (values[..., None] - grid["table"]).abs().argmin(-1).to(values.dtype)


def decode_codebook(codes, grid, scheme):
    table = grid["table"].expand(*codes.shape, -1)
    return table.gather(-1, codes.long()[..., None])[..., 0]


CODEBOOK = Levels(
    name="codebook",
    prefix="cb",
    about="codebooks are quantiles",
    tensors=(GridTensor("table", "tables", values=None),),
    find=find_codebook,
    encode=encode_codebook,
    decode=decode_codebook,
)


def find_scaled(weight, scheme, layer):
    """A codebook of 8-bit shares a row, and a scale for every group."""
    groups = weight.split(scheme.group_size or weight.shape[1], dim=1)
    scale = torch.stack([round_scale(each.abs().amax(1), scheme, layer) for each in groups], 1)
    count = scheme.max_code + 1
    shares = torch.cat([each / scale[:, [at]] for at, each in enumerate(groups)], 1)
    at = (torch.arange(count, dtype=weight.dtype) + 0.5) / count
    table = torch.quantile(shares, at, dim=1).T
    return {"table": (table * 127).round().clamp(-127, 127)[:, None] + 128, "scale": scale}


def encode_scaled(values, grid, scheme):
    table = (grid["table"] - 128) / 127
    return ((values / grid["scale"])[..., None] - table).abs().argmin(-1).to(values.dtype)


def decode_scaled(codes, grid, scheme):
    return decode_codebook(codes, {"table": (grid["table"] - 128) / 127}, scheme) * grid["scale"]


SCALED_CODEBOOK = Levels(
    name="scaled",
    prefix="scb",
    about="codebooks of a row are scaled for each group",
    tensors=(
        GridTensor("table", "tables", code=True, width=8, span=None, values=None),
        GridTensor("scale", "scales"),
    ),
    find=find_scaled,
    encode=encode_scaled,
    decode=decode_scaled,
)
