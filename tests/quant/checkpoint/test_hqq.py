"""HQQ's checkpoints against a textbook, and everything in them that cannot be."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quant
from quant.audit.grids import clipped, rounded
from quant.checkpoint.choose import parse
from quant.checkpoint.layers import read_layer
from quant.errors import ArtifactError
from quant.grid import Grid, decode
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.oracles.textbook_hqq import state
from tests.quant.checkpoint.hqq_folders import Kind, configuration, parameters, write
from tests.quant.tiny_checkpoints import edit_config, edit_tensors, logits, read_as_written

LAYER = "model.layers.1.mlp.down_proj"  # [40, 72]
KINDS = [
    (Kind(8, 64, dtype="bfloat16"), "hqq8g64_bf16"),  # groups of 64 straddle rows of 40
    (Kind(5, 8), "hqq5g8"),
    (Kind(4, 8), "hqq4g8"),
    (Kind(4, 8, axis=0, dtype="bfloat16"), "hqq4g8_bf16"),
    (Kind(4, None, viewed=True), "hqq4"),
    (Kind(3, 64, dtype="float32"), "hqq3g64_fp32"),  # 25 and 45 rows in words of ten
    (Kind(3, 8, dtype="bfloat16", viewed=True), "hqq3g8_bf16"),
    (Kind(2, None, axis=0), "hqq2"),
    (Kind(1.58, 8), "hqqternary_g8"),
    (Kind(1, 8), "hqqbinary_g8"),
    (Kind(1, 8, axis=0), "hqqbinary_g8"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("hqq")
    write(parent / "a", Kind(4, 8))
    return parent / "a"


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_weights_logits_and_sizes_are_the_textbooks(tmp_path: Path, kind: Kind, name: str) -> None:
    plain, layers = write(tmp_path / "a", kind)
    found = read_as_written(tmp_path / "a", plain, layers)
    assert (found.format, found.producer, found.scheme.name) == ("HQQ", "hqq", name)
    assert f"(axis {kind.axis})" in found.zero_points
    assert found.mean_offset is None


@pytest.mark.parametrize("kind", [*(kind for kind, _ in KINDS), Kind(3, 24, axis=0)])
def test_any_shape(kind: Kind) -> None:
    """Groups that straddle rows, and columns whose weights are of several groups."""
    for outputs, inputs in ((48, 40), (24, 64), (8, 72)):
        size = kind.group_size or (inputs if kind.axis == 1 else outputs)
        options = (outputs, inputs, kind.nbits, size, kind.axis, kind.dtype)
        tensors, expected = state(*options, viewed=kind.viewed, seed=2)
        weight = read_layer(tensors, configuration(kind), shape=(outputs, inputs))
        assert torch.equal(weight.dequantize(), expected)
        assert torch.equal(weight.dequantize(torch.float16), expected.half())


def test_a_large_layer_has_the_usual_bits() -> None:
    """4 bits, and scale and zero-point of 16 bits for 64 weights: 4.5; 3 bits take 3.2."""
    for nbits, expected in ((4, 4.5), (3, 3.2 + 0.5), (1, 1.5)):
        tensors, _ = state(512, 512, nbits, 64, 1, "float16")
        bits = 8 * sum(tensor.nbytes for tensor in tensors.values()) / 512**2
        assert bits == pytest.approx(expected, abs=0.01)


def test_settings_by_kind_of_layer_must_agree() -> None:
    four, three = parameters(Kind(4, 8)), parameters(Kind(3, 8))
    config = {**configuration(Kind(4, 8)), "quant_config": {"mlp.up_proj": four, "o_proj": four}}
    assert parse(config, "here").scheme("float16").name == "hqq4g8"
    config["quant_config"] = {"mlp.up_proj": four, "o_proj": three}
    with pytest.raises(ArtifactError, match=r"of o_proj says nbits=3, but of mlp.up_proj nbits=4"):
        parse(config, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nbits": 7}, r"nbits=7 cannot be read; only 8, 6, 5, 4, 3, 2, 1.58, 1 can"),
        ({"nbits": True}, "nbits=True cannot be read"),
        ({"nbits": [4]}, r"nbits=\[4\] cannot be read"),
        ({"group_size": 0}, "group_size=0 cannot be read; expected a number of weights"),
        ({"group_size": "64"}, "group_size='64' cannot be read"),
        ({"axis": None}, "axis=None cannot be read; expected 0 or 1"),
        ({"axis": 2}, "axis=2 cannot be read; expected 0 or 1"),
        ({"channel_wise": False}, "channel_wise=False: a single scale for a whole layer"),
    ],
)
def test_configurations_that_cannot_be_read(change: dict[str, Any], message: str) -> None:
    config = configuration(Kind(4, 8))
    config["quant_config"]["weight_quant_params"].update(change)
    with pytest.raises(ArtifactError, match=f"here: quantization_config.quant_config.*{message}"):
        parse(config, "here")


@pytest.mark.parametrize("said", [None, {}, {"o_proj": None}, {"weight_quant_params": [4]}])
def test_a_configuration_without_parameters_is_named(said: Any) -> None:
    with pytest.raises(ArtifactError, match="has no weight_quant_params"):
        parse({"quant_method": "hqq", "quant_config": said}, "here")


def at(index: int, value: float) -> Callable[[Tensor], Tensor]:
    def apply(stored: Tensor) -> Tensor:
        stored.view(-1)[index] = value
        return stored

    return apply


def text(value: str) -> Callable[[Tensor], Tensor]:
    return lambda _: torch.tensor(list(value.encode()), dtype=torch.uint8)


def absent(_: Tensor) -> None:
    return None


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("W_q", absent, "W_q is in none of its files"),
        ("W_q", lambda t: t[:-1], r"W_q is torch.uint8 \[179, 8\]; 360 x 8 codes packed as 4bit_u8"
         r" are torch.uint8 \[180, 8\]"),
        ("W_q", lambda t: t.int(), r"W_q is torch.int32 \[180, 8\]"),
        ("W_q", lambda t: t.view(torch.float16), r"W_q is torch.float16 \[180, 4\]"),
        ("view_as_float", at(0, 1), r"W_q is torch.uint8 .* are torch.float16 \[180, 4\]"),
        ("scale", absent, "scale is missing"),
        ("scale", lambda t: t[:-1], r"scale is torch.float16 \[359, 1\]; .*\[360, 1\]"),
        ("scale", lambda t: t.float(), "compute_dtype says torch.float16, but .*torch.float32"),
        ("scale", lambda t: t.int(), "scale is torch.int32; expected one of float16"),
        ("scale", at(5, torch.inf), "scale has NaN or infinite values"),
        ("scale", at(5, 0.0), "scale: 1 of 360 scales are 0"),
        ("zero", absent, "zero is missing"),
        ("zero", lambda t: t.T, r"zero is torch.float16 \[1, 360\]"),
        ("zero", lambda t: t.float(), r"zero is torch.float32 .* make it torch.float16"),
        ("zero", at(5, torch.nan), "zero has NaN or infinite values"),
        ("shape", absent, "shape is missing"),
        ("shape", lambda t: t.float(), r"shape is torch.float32 \[40.0, 72.0\]; expected the two"),
        ("shape", lambda t: t.flip(0), r"holds \[72, 40\] codes, but config.json .*\[40, 72\]"),
        ("shape", at(0, 41), r"scale is .*\[360, 1\]; .* make it torch.float16 \[369, 1\]"),
        ("shape", at(0, 0), r"shape is torch.int64 \[0, 72\]"),
        ("nbits", absent, "nbits is missing"),
        ("nbits", at(0, 3), "nbits says 3, but the quantization_config says 4"),
        ("nbits", lambda t: t.repeat(2), r"nbits is torch.int32 \[2\]; expected a single number"),
        ("group_size", at(0, 16), "group_size says 16, but .* says 8.*several schemes"),
        ("axis", at(0, 0), "axis says 0, but the quantization_config says 1"),
        ("channel_wise", at(0, 0), "channel_wise says 0, but"),
        ("packing", absent, "packing is missing"),
        ("packing", text("3bit_32"), "packing says 3bit_32, but .* says 4bit_u8"),
        ("packing", lambda t: t.float(), "packing is torch.float32 .*; expected a text"),
        ("unpack_view_dtype", text("torch.int32"), "says torch.int32, but the packing has torch.u"),
        ("quant_scale", at(0, 1), "quant_scale says that the scale is quantized .*hqq 0.2"),
        ("quant_zero", at(0, 1), "quant_zero says that the zero is quantized"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(
    folder: Path,
    tmp_path: Path,
    part: str,
    change: Callable[[Tensor], Tensor | None],
    message: str,
) -> None:
    shutil.copytree(folder, tmp_path / "a")

    def damage(tensors: dict[str, Tensor]) -> None:
        changed = change(tensors.pop(f"{LAYER}.{part}").clone())
        if changed is not None:
            tensors[f"{LAYER}.{part}"] = changed.contiguous()

    edit_tensors(damage)(tmp_path / "a")
    with pytest.raises(ArtifactError, match=message) as caught:
        quant.load(tmp_path / "a")
    assert LAYER in str(caught.value)


def test_codes_and_groups_that_cannot_be() -> None:
    tensors, _ = state(8, 8, 5, 8, 1, "float16")
    tensors["W_q"][3, 3] = 32
    with pytest.raises(ArtifactError, match=r"W_q holds the code 32, but nbits=5 has codes up to"):
        read_layer(tensors, configuration(Kind(5, 8)), layer="layer")
    tensors, _ = state(8, 8, 4, 8, 1, "float16")
    with pytest.raises(ArtifactError, match="group_size=24 does not divide the 64 weights"):
        read_layer(
            {**tensors, "group_size": torch.tensor(24)}, configuration(Kind(4, 24)), layer="layer"
        )
    held = {**tensors, "zero_scale": torch.ones(2, 8, 1)}
    with pytest.raises(ArtifactError, match=r"zero_scale says that the scale is quantized or"):
        read_layer(held, configuration(Kind(4, 8)), layer="layer")


def test_other_settings_than_the_tensors_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "a")
    edit_config(lambda c: c.update(quantization_config=configuration(Kind(4, 8, axis=0))))(
        tmp_path / "a"
    )
    with pytest.raises(ArtifactError, match=r"axis says 1, but .* says 0"):
        quant.load_weights(tmp_path / "a")


def test_export_names_what_formats_cannot_store(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has hqq levels, which gptq-v2 cannot store"):
        quant.export(folder, tmp_path / "b", "gptq-v2")
    exported = quant.export(folder, tmp_path / "d", "bitsweep").folder
    ours = quant.load(exported)
    assert torch.equal(logits(ours), logits(quant.load(folder)))


@pytest.mark.parametrize(
    "kind",
    [
        Kind(8, 8, dtype="bfloat16"), Kind(4, 8), Kind(3, 8, dtype="float32"), Kind(1, 8),
        Kind(4, 24, axis=0),
    ],
)  # fmt: skip
def test_rounding_finds_the_nearest_level(kind: Kind) -> None:
    """The audit rounds on the stored grids, though the levels are not evenly spaced."""
    size = kind.group_size or 8
    tensors, expected = state(24, 24, kind.nbits, size, kind.axis, kind.dtype, seed=4)
    on = read_layer(tensors, configuration(kind))
    values = torch.randn(24, 24, generator=torch.Generator().manual_seed(1)) / 4
    columns = on.column_groups()
    grid = Grid({name: part[:, columns].float() for name, part in on.grid.items()})
    codes = torch.arange(on.scheme.max_code + 1.0)[:, None, None].expand(-1, 24, 24)
    levels = decode(codes, grid, on.scheme)
    nearest = (levels - values).abs().amin(0)
    assert torch.equal((rounded(values, on).dequantize() - values).abs(), nearest)
    assert torch.equal(rounded(expected, on).dequantize(), expected)
    assert 0 <= clipped(values, on) < 1

    scheme = Scheme(on.scheme.bits, 8, levels=on.scheme.levels, scale_dtype=kind.dtype)
    solved = rtn.solve(values, scheme).weight
    error = float((solved.dequantize() - values).norm() / values.norm())
    assert error < {8: 0.01, 4: 0.1, 3: 0.2}.get(kind.nbits, 0.9)
    assert not rtn.solve(torch.zeros(2, 8), scheme).weight.dequantize().any()
