"""torchao's checkpoints against a textbook, and everything in them that cannot be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quant
from quant.audit.grids import rounded
from quant.checkpoint.choose import parse
from quant.checkpoint.inspection import inspect
from quant.checkpoint.layers import read_layer
from quant.checkpoint.source import ArtifactSource
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.quant.checkpoint.torchao_folders import (
    INT4,
    INT8,
    INTX,
    Kind,
    configuration,
    described,
    edit,
    layer,
    write,
)
from tests.quant.tiny_checkpoints import edit_config, logits

LAYER = "model.layers.1.mlp.down_proj"  # [40, 72]
KINDS = [
    (INT8, "w8_sym_fp32"),
    (INT8._replace(group_size=8), "w8g8_sym_fp32"),
    (INTX, "w4g8_sym_bf16"),
    (INTX._replace(bits=3, symmetric=False), "w3g8_bf16"),
    (INTX._replace(bits=6, group_size=None, dtype=torch.float16), "w6_sym"),
    (Kind("Int8DynamicActivationInt8WeightConfig", 8, None, dtype=torch.float32), "w8_sym_fp32"),
    (Kind("Int8DynamicActivationIntxWeightConfig", 2, 8), "w2g8_sym_bf16"),
    (INT4, "aoint4g8_bf16"),
    (INT4._replace(group_size=16, dtype=torch.float32), "aoint4g16_fp32"),  # the last one is short
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("torchao")
    kinds = {"int8": INT8, "intx": INTX, "int4": INT4}
    for name, kind in kinds.items():
        write(parent / name, kind)
    return {name: parent / name for name in kinds}


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_weights_logits_and_sizes_are_the_textbooks(tmp_path: Path, kind: Kind, name: str) -> None:
    plain, layers = write(tmp_path / "a", kind)
    weights = quant.load_weights(tmp_path / "a")
    assert weights.keys() == layers.keys()
    for each, weight in weights.items():
        assert torch.equal(weight.dequantize(), plain.get_submodule(each).weight)
    model = quant.load(tmp_path / "a", kernel="reference")
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-6)

    held = sum(tensor.nbytes for stored in layers.values() for tensor in stored.values())
    count = sum(weight.codes.numel() for weight in weights.values())
    found = inspect(tmp_path / "a")
    assert found.bits_per_weight == 8 * held / count
    assert (found.format, found.producer, found.scheme.name) == ("torchao", "torchao", name)
    assert kind.name in found.zero_points
    assert ("activations are not rounded" in found.zero_points) == ("Dynamic" in kind.name)
    with ArtifactSource(tmp_path / "a") as source:
        of_files = {each: bits for each, (_, bits) in source.layer_bits().items()}
    assert of_files == {each: model.get_submodule(each).stored_bits for each in layers}


def test_zero_points_of_0_may_be_left_out() -> None:
    """torchao 0.16 stores none of int8, and scales in the type of the model."""
    tensors, expected = layer(INT8._replace(dtype=torch.bfloat16), 6, 16, seed=1)
    del tensors["_weight_zero_point"]
    weight = read_layer(tensors, configuration(INT8))
    assert torch.equal(weight.dequantize(), expected)


def test_a_quantized_layer_is_packed_for_the_kernels(tmp_path: Path) -> None:
    """Uniform levels in 4 or 8 bits multiply straight from the codes."""
    tensors, expected = layer(INTX._replace(group_size=32), 64, 64, seed=1)
    weight = read_layer(tensors, configuration(INTX._replace(group_size=32)))
    linear = quant.linear.QuantLinear.from_quantized(weight, kernel="auto")
    assert linear.tiled or linear.kernel == "reference"
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(linear(x), x @ expected.T, rtol=1e-4, atol=1e-5)


def default(**change: Any) -> dict[str, Any]:
    """A configuration of INTX with other entries beside its fields."""
    entry = configuration(INTX)["quant_type"]["default"]
    return {"quant_type": {"default": {**entry, **change}}}


def fields(kind: Kind, **change: Any) -> dict[str, Any]:
    entry = configuration(kind)["quant_type"]["default"]
    return {"quant_type": {"default": {**entry, "_data": {**entry["_data"], **change}}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_type": "int8_weight_only"}, "'int8_weight_only' is of early versions, which"),
        ({"quant_type": {"default": "int4_weight_only"}}, "is of early versions, which saved"),
        ({"quant_type": None}, "has None; expected one configuration under `default`"),
        ({"quant_type": {"a": {}, "b": {}}}, "has a, b; expected one configuration"),
        (default(_type="Float8WeightOnlyConfig"), "'Float8WeightOnlyConfig' cannot be read; only"),
        (default(_type="FqnToConfig"), "_type='FqnToConfig' cannot be read"),
        (default(_type=["x"]), r"_type=\['x'\] cannot be read"),
        (default(_version=1), "_version=1 of IntxWeightOnlyConfig cannot be read; only 2"),
        (fields(INTX, weight_dtype={"_type": "torch.dtype", "_data": "int1"}), "'int1' cannot be"),
        (fields(INTX, intx_packing_format="opaque_aten_auto"), "'opaque_aten_auto' is a layout"),
        (fields(INTX, mapping_type="odd"), "mapping_type='odd' cannot be read"),
        (fields(INTX, granularity={"_type": "PerTensor", "_data": {}}), "granularity is PerTensor"),
        (
            fields(INTX, granularity={"_type": "PerAxis", "_data": {"axis": 1}}),
            r"PerAxis \{'axis': 1\}; only PerRow, PerAxis of axis 0 and PerGroup",
        ),
        (
            fields(INTX, granularity={"_type": "PerGroup", "_data": {"group_size": 0}}),
            "granularity.group_size=0 cannot be read",
        ),
        (fields(INT4, int4_packing_format="tile_packed_to_4d"), "only kernels of its processor"),
        (fields(INT4, group_size=None), "group_size=None cannot be read"),
        ({"include_input_output_embeddings": True}, "quantized embeddings are not read"),
    ],
)
def test_configurations_that_cannot_be_read(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=f"here: quantization_config.*{message}"):
        parse({**configuration(INTX), **change}, "here")


def test_granularity_of_activations_comes_first() -> None:
    row, size = {"_type": "PerRow"}, {"_type": "PerGroup", "_data": {"group_size": 32}}
    kind = Kind("Int8DynamicActivationInt8WeightConfig", 8, None)
    parsed = parse({**configuration(kind), **fields(kind, granularity=[row, size])}, "here")
    assert parsed.group_size == 32


def at(index: int, value: float) -> Callable[[Tensor], Tensor]:
    def apply(stored: Tensor) -> Tensor:
        stored.view(-1)[index] = value
        return stored

    return apply


def absent(_: Tensor) -> None:
    return None


Q, S, Z = "_weight_qdata", "_weight_scale", "_weight_zero_point"


@pytest.mark.parametrize(
    ("kind", "part", "change", "message"),
    [
        ("intx", Q, absent, f"{Q} is in none of its files"),
        ("intx", Q, lambda t: t.int(), f"{Q} is torch.int32 .*; expected an int8 matrix"),
        ("intx", Q, lambda t: t[:-1], rf"{S} is .*\[40, 9\]; the codes and the group size make it"),
        ("intx", Q, lambda t: t[:, :-1], f"{Q} has 71 inputs, which groups of 8 do not divide"),
        ("intx", Q, at(7, 8), f"{Q} holds 8, but 4 bits are -8 to 7"),
        ("intx", Q, at(7, -9), f"{Q} holds -9, but 4 bits are -8 to 7"),
        ("intx", S, absent, f"{S} is missing"),
        ("intx", S, lambda t: t.T, rf"{S} is torch.bfloat16 \[9, 40\]; .*\[40, 9\]"),
        ("intx", S, lambda t: t.double(), f"{S} is torch.float64; expected one of float16"),
        ("intx", S, at(3, torch.nan), f"{S} has NaN or infinite"),
        ("intx", S, at(3, 0.0), f"{S}: 1 of 360 scales are 0"),
        ("intx", Z, lambda t: t.bfloat16(), f"{Z} is torch.bfloat16; only zero-points of int8"),
        ("intx", Z, at(3, 1), f"{Z} holds 1, but config.json says that the mapping is symmetric"),
        ("intx", Z, at(3, 9), f"{Z} holds 9, but 4 bits are"),
        ("int8", Q, lambda t: t[:, :-1], r"_weight_qdata holds \[40, 71\] codes, but config.json"),
        ("int8", S, lambda t: t[:-1], rf"{S} is torch.float32 \[39, 1\]; .*make it \[40, 1\]"),
        ("int4", Q, lambda t: t[:, :-1], r"_weight_qdata holds \[40, 70\] codes, but config.json"),
        ("int4", Q, lambda t: t.short(), f"{Q} is torch.int16 .*; expected bytes"),
        ("int4", S, lambda t: t.T, rf"{S} is torch.bfloat16 \[40, 9\]; .*\[9, 40\]"),
        ("int4", Z, absent, f"{Z} is missing"),
        ("int4", Z, lambda t: t.float(), f"{Z} is torch.float32 and must be finite and torch.bf"),
        ("int4", Z, at(3, torch.inf), f"{Z} is torch.bfloat16 and must be finite"),
    ],
)
def test_what_cannot_be_is_named(
    folders: dict[str, Path],
    tmp_path: Path,
    kind: str,
    part: str,
    change: Callable[[Tensor], Tensor | None],
    message: str,
) -> None:
    shutil.copytree(folders[kind], tmp_path / "a")

    def damage(tensors: dict[str, Tensor]) -> None:
        changed = change(tensors.pop(f"{LAYER}.{part}").clone())
        if changed is not None:
            tensors[f"{LAYER}.{part}"] = changed.contiguous()

    edit(tmp_path / "a", damage)
    with pytest.raises(ArtifactError, match=message) as caught:
        quant.load(tmp_path / "a")
    assert LAYER in str(caught.value)


def test_zero_points_of_asymmetric_codes_must_be_there() -> None:
    kind = INTX._replace(symmetric=False)
    tensors, _ = layer(kind, 6, 16, seed=1)
    del tensors[Z]
    with pytest.raises(ArtifactError, match=rf"layer\.{Z} is missing"):
        read_layer(tensors, configuration(kind), layer="layer")


def test_scaled_inputs_are_refused() -> None:
    tensors, _ = layer(INT8, 6, 16, seed=1)
    tensors["_weight_act_pre_scale"] = torch.ones(16)
    with pytest.raises(ArtifactError, match=r"_weight_act_pre_scale changes the layer's input"):
        read_layer(tensors, configuration(INT8), layer="layer")


def say(**change: Any) -> Callable[[str], str]:
    return lambda said: json.dumps({**json.loads(said), **change})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("intx", None, r"headers of its safetensors files do not describe .*down_proj.weight"),
        ("intx", lambda _: "{", "describes .*down_proj.weight as '{', which is not what torchao"),
        ("intx", lambda _: "[1]", "which is not what torchao writes"),
        ("intx", say(_type="Tensor"), "is of torchao's class Tensor, which cannot be read"),
        ("intx", say(_type="Float8Tensor"), "of torchao's class Float8Tensor"),
        (
            "intx",
            lambda _: described(INTX._replace(bits=3), 72),
            "is IntxUnpackedToInt8Tensor of 3 bits, but config.json says 4 bits",
        ),
        ("intx", say(_type="Int4Tensor"), "is Int4Tensor of 4 bits, but config.json says 4 bits:"),
        ("int4", say(_type="Int8Tensor"), "is Int8Tensor of 8 bits, but .* 4 bits in the plain"),
        ("int8", say(_data={"block_size": [40, 72]}), r"block_size=\[40, 72\], but .*\[1, inputs"),
        ("int8", say(_data=None), "has block_size=None"),
        (
            "intx",
            lambda _: described(INTX._replace(group_size=16), 72),
            r"block_size=\[1, 16\], but config.json says \[1, 8\]",
        ),
    ],
)
def test_headers_that_contradict_the_configuration_are_named(
    folders: dict[str, Path],
    tmp_path: Path,
    kind: str,
    change: Callable[[str], str] | None,
    message: str,
) -> None:
    shutil.copytree(folders[kind], tmp_path / "a")

    def alter(said: dict[str, str]) -> None:
        old = said.pop(f"{LAYER}.weight")
        if change is not None:
            said[f"{LAYER}.weight"] = change(old)

    edit(tmp_path / "a", header=alter)
    with pytest.raises(ArtifactError, match=message) as caught:
        quant.checkpoint.read_scheme(tmp_path / "a")
    assert LAYER in str(caught.value)


def test_pickles_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["int8"], tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(
        ArtifactError, match=r"pytorch_model.bin is a pickle of torchao's own .*transformers 5 and"
    ):
        quant.checkpoint.read_scheme(tmp_path / "a")


def test_other_formats_hold_the_uniform_ones(folders: dict[str, Path], tmp_path: Path) -> None:
    exported = quant.export(folders["intx"], tmp_path / "b", "gptq-v2").folder
    assert torch.equal(
        logits(quant.load(exported, kernel="reference")),
        logits(quant.load(folders["intx"], kernel="reference")),
    )
    with pytest.raises(ArtifactError, match="has torchao_int4 levels, which gptq-v2 cannot store"):
        quant.export(folders["int4"], tmp_path / "c", "gptq-v2")
    exported = quant.export(folders["int4"], tmp_path / "d", "bitsweep").folder
    ours = quant.load(exported, levels=["quant.checkpoint.torchao.int4"])
    assert torch.equal(logits(ours), logits(quant.load(folders["int4"])))


def test_another_configuration_than_the_files_is_named(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["int4"], tmp_path / "a")
    edit_config(lambda c: c.update(quantization_config=configuration(INT8)))(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"is Int4Tensor of 4 bits, but config.json says 8 b"):
        quant.checkpoint.read_scheme(tmp_path / "a")


def test_rounding_finds_the_nearest_level() -> None:
    """The audit rounds on the stored grids, and the levels are a scheme like any other."""
    tensors, expected = layer(INT4, 6, 24, seed=3)
    on = read_layer(tensors, configuration(INT4))
    values = torch.randn(6, 24, generator=torch.Generator().manual_seed(1)) / 10
    scale, offset = (each.float().repeat_interleave(8, 1) for each in on.grid.values())
    levels = torch.arange(-8.0, 8.0)[:, None, None] * scale + offset
    nearest = (levels - values).abs().amin(0)
    torch.testing.assert_close(
        (rounded(values, on).dequantize() - values).abs(), nearest, rtol=0, atol=1e-6
    )
    assert torch.equal(rounded(expected, on).dequantize(), expected)
    scheme = Scheme(4, 8, levels=on.scheme.levels)
    solved = rtn.solve(values, scheme).weight
    assert float((solved.dequantize() - values).norm() / values.norm()) < 0.1
    assert not rtn.solve(torch.zeros(2, 8), scheme).weight.dequantize().any()
