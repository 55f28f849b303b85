"""Reading one layer: published GPTQ and AWQ checkpoints, and everything a file may say wrongly."""

import itertools
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cuda_ext.layout import pack_codes, unpack_codes
from quant.checkpoint import read_layer
from quant.checkpoint.choose import parse
from quant.checkpoint.formats.awq import NIBBLES
from quant.checkpoint.layers import settle
from quant.errors import ArtifactError
from quant.linear import QuantLinear, pack
from quant.scheme import Scheme
from tests.oracles import textbook_unpack as textbook
from tests.oracles.random_weights import random_weight, same
from tests.quant.stored_layers import write

CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": False, "desc_act": False}
V2 = {**CONFIG, "checkpoint_format": "gptq_v2"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 8, "zero_point": True, "version": "gemm"}


def blobs(path: Path, fields: int) -> tuple[tuple[int, ...], list[bytes]]:
    """Header and byte strings of a file in shared/interop; its layout is in data/README.md."""
    content = path.read_bytes()
    header = struct.unpack(f"<{fields}I", content[: 4 * fields])
    lengths = header[6:] if fields == 11 else header[5:]
    ends = np.cumsum([4 * fields, *lengths]).tolist()
    assert ends[-1] == len(content)
    return header, [content[a:b] for a, b in itertools.pairwise(ends)]


def tensor(data: bytes, dtype: torch.dtype, columns: int) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype).view(-1, columns)


@pytest.mark.realdata
@pytest.mark.parametrize("bits", [4, 8])
def test_published_gptq_values_are_reproduced_exactly(shared: Path, bits: int) -> None:
    path = shared / f"interop/falcon3-1b-gptq-awq/gptq_falcon3_1b_int{bits}.bin"
    header, (qweight, scales, qzeros, g_idx, expected) = blobs(path, 11)
    assert header[:6] == (bits, 128, 256, 256, 2, 1)
    tensors = {
        "qweight": tensor(qweight, torch.int32, 256),
        "scales": tensor(scales, torch.float16, 256),
        "qzeros": tensor(qzeros, torch.int32, 256 * bits // 32),
        "g_idx": tensor(g_idx, torch.int32, 256)[0],
    }
    config = {**CONFIG, "bits": bits, "group_size": 128, "sym": True, "desc_act": True}
    weight = read_layer(tensors, config)
    wanted = tensor(expected, torch.bfloat16, 256).t()
    assert weight.group_index is None
    assert torch.equal(weight.dequantize(torch.bfloat16), wanted)
    assert torch.equal(QuantLinear.from_quantized(weight).dequantize(torch.bfloat16), wanted)
    # Written as version 1 again, every word is the published one.
    written = write("gptq-v1", weight)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    # The same files called version 2 contradict themselves, and the message names both versions.
    with pytest.raises(ArtifactError, match=r"set checkpoint_format to 'gptq'"):
        read_layer(tensors, {**config, "checkpoint_format": "gptq_v2"})


@pytest.mark.realdata
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_published_checkpoint_shows_its_version(shared: Path, bits: int, symmetric: bool) -> None:
    """By its constant zero-points, and by its weights where single zero-points are moved."""
    path = shared / f"interop/falcon3-1b-gptq-awq/gptq_falcon3_1b_int{bits}.bin"
    _, (qweight, scales, qzeros, g_idx, _) = blobs(path, 11)
    zeros = unpack_codes(tensor(qzeros, torch.int32, 256 * bits // 32), bits, 256)
    if not symmetric:
        zeros[0, :2] += torch.tensor([1, 255], dtype=torch.uint8)
    tensors = {
        "qweight": tensor(qweight, torch.int32, 256),
        "scales": tensor(scales, torch.float16, 256),
        "g_idx": tensor(g_idx, torch.int32, 256)[0],
    }
    config = {**CONFIG, "bits": bits, "group_size": 128, "sym": symmetric, "desc_act": True}
    for added, name in ((0, "GPTQ v1"), (1, "GPTQ v2")):
        held = {**tensors, "qzeros": pack_codes(zeros + added, bits)}
        if bits == 8 and not symmetric:  # a step is little beside 65,536 weights' own lean
            with pytest.raises(ArtifactError, match="does not say checkpoint_format"):
                settle(parse(config, "folder"), {"layer": held}, "folder")
            continue
        found = settle(parse(config, "folder"), {"layer": held}, "folder")
        assert found.name == name
        assert ("all 512 zero-points" in found.evidence) == symmetric


@pytest.mark.realdata
def test_published_awq_values_are_reproduced_exactly(shared: Path) -> None:
    path = shared / "interop/falcon3-1b-gptq-awq/awq_falcon3_1b_awq.bin"
    header, (qweight, scales, qzeros, expected) = blobs(path, 9)
    assert header[:5] == (4, 128, 256, 256, 2)
    tensors = {
        "qweight": tensor(qweight, torch.int32, 32),
        "scales": tensor(scales, torch.float16, 256),
        "qzeros": tensor(qzeros, torch.int32, 32),
    }
    weight = read_layer(tensors, {**AWQ, "group_size": 128})
    wanted = tensor(expected, torch.bfloat16, 256).t()
    assert torch.equal(weight.dequantize(torch.bfloat16), wanted)
    written = write("awq", weight)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    assert torch.equal(QuantLinear.from_quantized(weight).dequantize(torch.bfloat16), wanted)


@pytest.mark.realdata
@pytest.mark.parametrize(("size", "tolerance"), [(256, 0.0015), (1024, 0.0045)])
def test_autogptq_kernel_outputs(shared: Path, size: int, tolerance: float) -> None:
    """Literal float16 outputs of AutoGPTQ's own kernels, to the rounding of their accumulation."""
    folder = shared / "interop/autogptq-q4-kernel"
    data = np.load(folder / f"q4_k{size}_n{size}.npz")
    names = ("qweight", "scales", "qzeros", "g_idx")
    tensors = {name: torch.from_numpy(data[name]) for name in names}
    config = {**CONFIG, "bits": int(data["bits"]), "group_size": int(data["group_size"])}
    with pytest.raises(ArtifactError, match="does not say checkpoint_format"):
        read_layer(tensors, config)  # drawn at random: no reading of them looks like weights
    config["checkpoint_format"] = "gptq"
    layer = QuantLinear.from_quantized(read_layer(tensors, config))
    y = layer(torch.from_numpy(data["x"]).float())
    for name in data.files:
        if name.startswith("y_reference"):
            difference = float((y - torch.from_numpy(data[name])).abs().max())
            assert difference <= tolerance, (name, difference)


def test_groups_of_act_order() -> None:
    weight = random_weight(Scheme(4, group_size=8), 6, 24, scattered=True)
    tensors = pack(weight)
    assert same(read_layer(tensors, {**V2, "desc_act": True}), weight)
    with pytest.raises(ArtifactError, match=r"g_idx scatters the groups.*desc_act=false"):
        read_layer(tensors, V2)
    index = tensors.pop("g_idx")
    with pytest.raises(ArtifactError, match=r"g_idx is missing.*desc_act=true"):
        read_layer(tensors, {**V2, "desc_act": True})
    tensors["g_idx"] = index + 1
    with pytest.raises(ArtifactError, match="goes from 1 to 3, but the layer has groups 0 to 2"):
        read_layer(tensors, {**V2, "desc_act": True})


def test_ternary_layer() -> None:
    weight = random_weight(Scheme(2, group_size=8, levels="ternary"), 6, 24)
    tensors = pack(weight)
    config = {"quant_method": "bitsweep_ternary", "bits": 2, "group_size": 8, "desc_act": False}
    assert same(read_layer(tensors, config, shape=(6, 24)), weight)
    codes = weight.codes.t().clone()
    codes[3, 2] = 3
    with pytest.raises(ArtifactError, match="holds code 3; ternary codes are 0, 1 and 2"):
        read_layer({**tensors, "qweight": pack_codes(codes, 2, dim=0)}, config, shape=(6, 24))


def changed(name: str, value: Any) -> dict[str, Tensor]:
    tensors = pack(random_weight(Scheme(4, group_size=8), 6, 24))
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (changed("qweight", None), "tensor proj.qweight is missing"),
        (changed("qzeros", None), "tensor proj.qzeros is missing; the layer has qweight, scales"),
        (changed("scales", torch.ones(3, 6).int()), "proj.scales are torch.int32"),
        (changed("scales", torch.ones(2, 6)), r"proj.scales is \[2, 6\], but 24 inputs, 6 outputs"),
        (changed("qweight", torch.zeros(3, 5).int()), r"proj.qweight is \[3, 5\].*make \[3, 6\]"),
        (changed("qweight", torch.zeros(3, 6)), "proj.qweight is torch.float32; expected"),
        (changed("scales", torch.full((3, 6), torch.nan)), "proj.scales has NaN"),
    ],
)
def test_damaged_tensors_are_named(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read_layer(tensors, V2, layer="proj", shape=(6, 24))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"quant_method": "eetq"},
            "quant_method='eetq' cannot be read; only auto-round",
        ),
        ({"checkpoint_format": "marlin"}, "checkpoint_format='marlin' with quant_method='gptq'"),
        ({"quant_method": "bitsweep_ternary", "checkpoint_format": "gptq"}, "'bitsweep_ternary'"),
        ({"bits": 9}, "bits=9 cannot be read; expected one of 2, 3, 4, 5, 6, 7, 8"),
        (
            {"bits": 5, "checkpoint_format": "gptq"},
            "bits=5 cannot be read; expected one of 2, 3, 4, 8",
        ),
        ({"bits": "4"}, "bits='4' cannot be read"),
        ({"bits": None}, "bits=None cannot be read"),
        ({"group_size": 0}, "group_size=0 cannot be read"),
        ({"group_size": "128"}, "group_size='128' cannot be read"),
        ({"sym": None}, "sym=None cannot be read; expected true or false"),
        ({"desc_act": "no"}, "desc_act='no' cannot be read"),
        ({"pack_dtype": "int16"}, "pack_dtype='int16' cannot be read"),
        ({"dynamic": {"-:.*head": {}, "+:.*up": {"bits": 9}}}, r"dynamic.*up'\]\.bits=9 cannot"),
        ({"dynamic": {"+:.*up(": {"bits": 8}}}, r"up\('\] names no layer and is no regular"),
        ({"dynamic": {"up": {"pack_dtype": "int16"}}}, r"'up'\]\.pack_dtype=int16 cannot be read"),
        ({"dynamic": {"up": 8}}, r"dynamic\['up'\]=8 cannot be read; expected settings by name"),
    ],
)
def test_configs_that_cannot_be_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        parse({**V2, **changes}, "folder")


def test_configs_of_other_producers() -> None:
    parsed = parse({**CONFIG, "group_size": -1, "dynamic": {"-:.*head": {}}}, "folder")
    assert (parsed.name, parsed.group_size, parsed.producer) == ("GPTQ v1", None, "")
    assert parsed.scheme(torch.bfloat16).name == "w4_bf16"


def awq_layer() -> tuple[dict[str, Tensor], Any]:
    """The layout of AutoAWQ written out: output 8 i + j in nibble NIBBLES[j] of word i."""
    weight = random_weight(Scheme(4, group_size=8), 16, 24)
    assert weight.zero is not None

    def words(rows: list[list[int]]) -> Tensor:
        packed = [
            [
                sum(row[8 * i + j] << (4 * NIBBLES[j]) for j in range(8))
                for i in range(len(row) // 8)
            ]
            for row in rows
        ]
        return torch.tensor(packed).to(torch.int32)

    tensors = {
        "qweight": words(weight.codes.t().tolist()),
        "qzeros": words(weight.zero.t().tolist()),
        "scales": weight.scale.t().contiguous(),
    }
    return tensors, weight


def test_awq_layer() -> None:
    tensors, weight = awq_layer()
    assert same(read_layer(tensors, AWQ), weight)
    assert torch.equal(textbook.awq(tensors, 8).float(), weight.dequantize())


def test_awq_as_others_describe_it() -> None:
    """transformers says format, AutoAWQ's quant_config.json w_bit, q_group_size and GEMM."""
    tensors, weight = awq_layer()
    plain = {"quant_method": "awq", "zero_point": True}
    for said in (
        {"bits": 4, "group_size": 8, "format": "gemm"},
        {"w_bit": 4, "q_group_size": 8, "version": "GEMM"},
    ):
        assert same(read_layer(tensors, {**plain, **said}), weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "gemv"}, "version='gemv' is another AWQ packing"),
        ({"bits": 8}, "bits=8: AWQ is read with 4 bits only"),
        ({"zero_point": False}, "zero_point=false cannot be read"),
        ({"group_size": 12}, r"proj.qzeros is torch.int32 \[3, 2\]; expected \[2, 2\] int32"),
    ],
)
def test_awq_that_cannot_be_read(changes: dict[str, Any], message: str) -> None:
    tensors, _ = awq_layer()
    with pytest.raises(ArtifactError, match=message):
        read_layer(tensors, {**AWQ, **changes}, layer="proj")


def test_awq_tensors_are_named() -> None:
    tensors, _ = awq_layer()
    with pytest.raises(ArtifactError, match=re.escape("tensor proj.scales is missing")):
        read_layer({k: v for k, v in tensors.items() if k != "scales"}, AWQ, layer="proj")
    with pytest.raises(ArtifactError, match=r"scales are \[3, 12\]; AWQ packs eight outputs"):
        read_layer({**tensors, "scales": tensors["scales"][:, :12]}, AWQ, layer="proj")
    with pytest.raises(ArtifactError, match="scales are torch"):
        read_layer({**tensors, "scales": tensors["scales"][0]}, AWQ, layer="proj")
