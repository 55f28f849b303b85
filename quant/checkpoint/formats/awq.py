"""AWQ format (AutoAWQ, version "gemm"): eight 4-bit codes of one input row per word.

A layer has qweight int32 [in, out / 8], qzeros int32 [groups, out / 8] (zero-points unchanged) and
scales [groups, out]. Values are scale * (code - zero).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.checkpoint.formats.base import (
    CheckpointFormat,
    Config,
    Format,
    check_scales,
    read_flag,
    read_group_size,
    read_meta,
    scale_dtypes,
    validated,
)
from quant.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

    from quant.checkpoint.formats.base import Read, Shape, Tensors

METHOD = "awq"
PACKING = "gemm"
BITS = 4
# Output 8 i + j is in nibble NIBBLES[j] of word i, counted from the low end.
NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


def matches(config: Config) -> bool:
    return config.get("quant_method") == METHOD


def parse(config: Config, where: str) -> CheckpointFormat:
    # AutoAWQ's key is version, that of transformers is format; AutoAWQ's own quant_config.json has
    # w_bit and q_group_size for bits and group_size.
    version = str(config.get("version") or config.get("format") or PACKING).lower()
    if version != PACKING:
        raise ArtifactError(
            f"{where}.version={version!r} is another AWQ packing; only {PACKING!r} can be read."
        )
    renamed = {"bits": "w_bit", "group_size": "q_group_size"}
    config = {**{new: config[old] for new, old in renamed.items() if old in config}, **config}
    if config.get("bits") != BITS:
        raise ArtifactError(f"{where}.bits={config.get('bits')!r}: AWQ is read with 4 bits only.")
    if not read_flag(config, "zero_point", where, default=True):
        raise ArtifactError(f"{where}.zero_point=false cannot be read; only AWQ with zeros can.")
    parsed = CheckpointFormat(
        format=FORMAT,
        bits=BITS,
        group_size=read_group_size(config, where),
        symmetric=False,
        act_order=False,
        producer=read_meta(config)[1],
    )
    return validated(parsed, where)


def zero_points(_parsed: CheckpointFormat) -> str:
    return "stored as they are"


def read_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, _: Shape) -> Read:
    import torch

    from quant.linear import pack
    from quant.weight import QuantizedWeight

    for name in ("qweight", "qzeros", "scales"):
        if name not in tensors:
            raise ArtifactError(
                f"{layer}: tensor {layer}.{name} is missing; the checkpoint is incomplete."
            )
    qweight, qzeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"]
    if scales.dtype not in scale_dtypes() or scales.dim() != 2:
        raise ArtifactError(
            f"{layer}.scales are {scales.dtype} {list(scales.shape)}; expected floating point "
            "[groups, out]."
        )
    outputs, inputs = scales.shape[1], qweight.shape[0]
    if outputs % 8:
        raise ArtifactError(
            f"{layer}.scales are {list(scales.shape)}; AWQ packs eight outputs into a word, so "
            f"{outputs} outputs are impossible: the tensor is damaged or of another layer."
        )
    groups = -(-inputs // (parsed.group_size or inputs))
    for name, tensor, shape in (
        ("qweight", qweight, (inputs, outputs // 8)),
        ("qzeros", qzeros, (groups, outputs // 8)),
        ("scales", scales, (groups, outputs)),
    ):
        if tuple(tensor.shape) != shape or (name != "scales" and tensor.dtype != torch.int32):
            raise ArtifactError(
                f"{layer}.{name} is {tensor.dtype} {list(tensor.shape)}; expected "
                f"{list(shape)}{'' if name == 'scales' else ' int32'} for {inputs} inputs, "
                f"{outputs} outputs and groups of {parsed.group_size or inputs}."
            )
    check_scales(scales, parsed, f"{layer}.scales")
    weight = QuantizedWeight(
        codes=_in_order(qweight, outputs).t().contiguous(),
        scale=scales.t().contiguous(),
        zero=_in_order(qzeros, outputs).t().contiguous(),
        scheme=parsed.scheme(scales.dtype),
    )
    return pack(weight), weight.scheme, inputs


def _in_order(words: Tensor, outputs: int) -> Tensor:
    """Return uint8 [rows, outputs] in the order of the outputs."""
    from cuda_ext.layout import unpack_codes

    nibbles = unpack_codes(words, BITS, outputs).unflatten(1, (-1, 8))
    result: Tensor = nibbles[..., list(NIBBLES)].flatten(1)
    return result


FORMAT = Format(
    name="awq",
    title="AWQ gemm",
    quant_method=METHOD,
    variant=f"version {PACKING}",
    readers="AutoAWQ, vLLM, transformers; Bitsweep reads it and does not write it",
    parts=("qweight", "qzeros", "scales"),
    codes="qweight",
    scales="scales",
    matches=matches,
    parse=parse,
    zero_points=zero_points,
    read_layer=read_layer,
    config_file="quant_config.json",
)
