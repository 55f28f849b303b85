"""AWQ format (AutoAWQ, version "gemm"): eight 4-bit codes of one input row per word.

A layer has qweight int32 [in, out / 8], qzeros int32 [groups, out / 8] (zero-points unchanged) and
scales [groups, out]. Values are scale * (code - zero). What is written has float16 scales; a
symmetric grid is written with its zero-points, which are all 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quant.checkpoint.formats.base import (
    CheckpointFormat,
    Config,
    Format,
    QuantizedModel,
    StoredLayer,
    Writer,
    check_scales,
    dtype_name,
    read_flag,
    read_group_size,
    refuse_levels,
    scale_dtypes,
    validated,
)
from quant.checkpoint.meta import read_meta
from quant.errors import ArtifactError
from quant.head import is_head
from quant.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from cuda_ext.codes import Words
    from quant.checkpoint.formats.base import Entries, Read, Shape, Tensors
    from quant.linear import Packed
    from quant.weight import QuantizedWeight

METHOD = "awq"
PACKING = "gemm"
BITS = 4
# Output 8 i + j is in nibble NIBBLES[j] of word i, counted from the low end.
NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
# The type of the buffers of AutoAWQ and GPTQModel.
SCALE_DTYPE = "float16"
# Groups that GPTQModel and vLLM's fast kernels take; AutoAWQ's kernels need multiples of 32.
_READERS_GROUPS = (None, 32, 64, 128)
# Outputs that AutoAWQ's and vLLM's own CUDA kernels compute at once.
_KERNEL_OUTPUTS = 64


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
    grid, producer = read_meta(config)
    parsed = CheckpointFormat(
        format=FORMAT,
        bits=BITS,
        group_size=read_group_size(config, where),
        symmetric=False,
        act_order=False,
        grid=grid,
        producer=producer,
    )
    return validated(parsed, where)


def zero_points(_parsed: CheckpointFormat) -> str:
    return "stored as they are"


def read_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, _: Shape) -> Read:
    import torch

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
    return QuantizedWeight(
        codes=_words_of(qweight),
        scale=scales.t(),
        zero=_words_of(qzeros).unpack(),
        scheme=parsed.scheme(scales.dtype),
    )


def _words_of(words: Tensor) -> Words:
    """Codes [outputs, rows] of words [rows, outputs / 8]."""
    from cuda_ext import codes

    return codes.Words(words, BITS, len(words), codes.NIBBLES, NIBBLES)


def refuses(scheme: Scheme, layer: StoredLayer | None) -> str | None:
    reason = refuse_levels(scheme, FORMAT.name)
    if reason is not None:
        return reason
    if scheme.bits != BITS:
        return (
            f"has {scheme.bits} bits, and {FORMAT.name} stores only {BITS}: use --format "
            "compressed-tensors."
        )
    if scheme.scale_dtype != SCALE_DTYPE:
        return (
            f"has {scheme.scale_dtype} scales, and {FORMAT.name} stores only {SCALE_DTYPE}: use "
            f"--format compressed-tensors, or quantize with scheme.scale_dtype={SCALE_DTYPE}."
        )
    return None if layer is None else _refuse_layer(scheme, layer)


def _refuse_layer(scheme: Scheme, layer: StoredLayer) -> str | None:
    if layer.module != "Linear":
        return (
            f"is a {layer.module}, and {FORMAT.name} supports only nn.Linear: use --format gptq-v2."
        )
    if is_head(layer.name):
        return (
            f"is a quantized head, and readers of {FORMAT.name} quantize only layers in blocks: "
            "use --format compressed-tensors."
        )
    if scheme.short_group(layer.inputs):
        return (
            f"cannot be stored: groups of {scheme.group_size} do not divide its {layer.inputs} "
            f"inputs, which {FORMAT.name} requires; use --format gptq-v2."
        )
    if layer.outputs % 8:
        return (
            f"has {layer.outputs} outputs, and {FORMAT.name} packs eight into a word: use --format "
            "compressed-tensors."
        )
    if layer.scattered:
        return (
            f"has groups whose columns act-order has scattered, and {FORMAT.name} requires "
            "adjacent columns: use --format gptq-v2, or quantize with method.static_groups=true."
        )
    return None


def entries(scheme: Scheme, layer: StoredLayer) -> Entries:
    import torch

    groups, words = scheme.groups(layer.inputs), layer.outputs // 8
    return {
        "qweight": ((layer.inputs, words), torch.int32),
        "qzeros": ((groups, words), torch.int32),
        "scales": ((groups, layer.outputs), torch.float16),
    }


def write_layer(weight: QuantizedWeight, _layer: StoredLayer) -> Packed:
    assert weight.zero is not None
    return {
        "qweight": _words(weight.codes.t()),
        "qzeros": _words(weight.zero.t()),
        "scales": weight.scale.t().contiguous(),
    }


def _words(codes: Tensor) -> Tensor:
    """Return int32 [rows, outputs / 8] of uint8 [rows, outputs]; the inverse of _words_of."""
    from cuda_ext.codes import pack_rows

    outputs = sorted(range(8), key=NIBBLES.__getitem__)  # by nibble
    return pack_rows(codes.unflatten(1, (-1, 8))[..., outputs].flatten(1), BITS)


def describe(model: QuantizedModel) -> dict[str, Any]:
    """Return the quantization_config of a model, which lists the nn.Linear not quantized.

    Raises ArtifactError where readers would skip a quantized layer too: AutoAWQ and vLLM look for
    the listed names anywhere in the name of a layer.
    """
    for kept in model.linears:
        for layer in model.layers:
            if kept in layer:
                raise ArtifactError(
                    f"{kept} is not quantized, and readers of {FORMAT.name} would then skip "
                    f"{layer} too, whose name contains it: use --format compressed-tensors."
                )
    return {
        "quant_method": METHOD,
        "version": PACKING,
        "bits": BITS,
        "group_size": model.scheme.group_size or -1,
        "zero_point": True,
        "modules_to_not_convert": list(model.linears),
        "meta": model.meta(),
    }


def notes(scheme: Scheme, layers: Sequence[StoredLayer]) -> list[str]:
    found = [
        "transformers reads AWQ only with GPTQModel (pip install gptqmodel accelerate); vLLM and "
        "AutoAWQ read it themselves."
    ]
    model = layers[0].dtype
    if model is not None and dtype_name(model) != SCALE_DTYPE:
        found.append(
            f"the model is {dtype_name(model)}: load it with dtype={SCALE_DTYPE}, because readers "
            f"compute AWQ in half precision, and in bfloat16 they round the {SCALE_DTYPE} scales."
        )
    if scheme.symmetric:
        found.append("the symmetric grid is stored with its zero-points, all 8, which AWQ needs.")
    if scheme.group_size not in _READERS_GROUPS:
        found.append(
            f"groups of {scheme.group_size} are read by Bitsweep; GPTQModel and vLLM's fast "
            "kernels take 32, 64, 128 or one group per row."
        )
    odd = [layer for layer in layers if layer.outputs % _KERNEL_OUTPUTS]
    if odd:
        found.append(
            f"{len(odd)} layers (such as {odd[0].name}) have outputs that {_KERNEL_OUTPUTS} does "
            "not divide, which the CUDA kernels of AutoAWQ and vLLM refuse."
        )
    return found


FORMAT = Format(
    name="awq",
    title="AWQ gemm",
    quant_method=METHOD,
    variant=f"version {PACKING}",
    readers="AutoAWQ, GPTQModel, vLLM, transformers through GPTQModel",
    parts=("qweight", "qzeros", "scales"),
    codes="qweight",
    scales="scales",
    matches=matches,
    parse=parse,
    zero_points=zero_points,
    read_layer=read_layer,
    writer=Writer(
        refuses=refuses,
        entries=entries,
        write_layer=write_layer,
        describe=describe,
        notes=notes,
    ),
    config_file="quant_config.json",
)
