"""NVFP4 and MXFP4 of compressed-tensors against a textbook, the library, and what cannot be."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from torch import Tensor
from transformers import AutoModelForCausalLM

import quant
from quant.audit.grids import clipped, rounded
from quant.checkpoint import dequantize_layers, read_format
from quant.checkpoint.choose import parse
from quant.checkpoint.inspection import inspect
from quant.checkpoint.layers import read_layer
from quant.errors import ArtifactError, SchemeError
from quant.levels import mxfp4, nvfp4
from quant.levels.numbers import e2m1, e8m0
from quant.linear import unpack
from quant.measure.dummy import random_packed
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.oracles import textbook_fp4 as textbook
from tests.quant.checkpoint.fp4_folders import SETTINGS, configuration, write
from tests.quant.tiny_checkpoints import edit_config, edit_tensors, logits, read_as_written

LAYER = "model.layers.1.mlp.down_proj"  # [64, 96]
KINDS = [("nvfp4", False), ("nvfp4", True), ("mxfp4", False), ("mxfp4", True)]
NAMES = {"nvfp4": "nvfp4g16", "mxfp4": "mxfp4g32"}


@pytest.mark.parametrize(("kind", "inputs_too"), KINDS)
def test_weights_logits_and_sizes_are_the_textbooks(
    tmp_path: Path, kind: str, inputs_too: bool
) -> None:
    plain, layers = write(tmp_path / "a", kind, inputs_too=inputs_too)
    found = read_as_written(tmp_path / "a", plain, layers)
    assert found.format == "compressed-tensors FP4" + ", weights alone" * inputs_too
    assert (found.producer, found.mean_offset) == ("compressed-tensors 0.20.0", None)
    assert found.scheme.name == NAMES[kind]
    assert ("are not quantized here" in found.zero_points) == inputs_too


def test_levels_are_those_of_the_specification() -> None:
    every = torch.arange(256, dtype=torch.uint8)[:, None]
    values = e2m1.decode(e2m1.unpack(every).float(), torch.ones(()))
    expected = [[textbook.e2m1(byte & 15), textbook.e2m1(byte >> 4)] for byte in range(256)]
    assert values.tolist() == expected
    assert list(e2m1.TABLE) == sorted(textbook.e2m1(code) for code in range(16))
    scales = e8m0.scale(torch.arange(255).float())
    assert scales.tolist() == [textbook.e8m0(byte) for byte in range(255)]


def every_scale(kind: str) -> dict[str, Tensor]:
    """A layer in which every code meets every scale, zero included."""
    most = 126 if kind == "nvfp4" else mxfp4.LARGEST
    scale = torch.arange(most + 1, dtype=torch.uint8)[:, None]
    row = torch.tensor([low | (15 - low) << 4 for low in range(16)], dtype=torch.uint8)
    if kind == "mxfp4":
        return {"weight_packed": row.expand(most + 1, 16).contiguous(), "weight_scale": scale}
    return {
        "weight_packed": row.expand(most + 1, 16).contiguous(),
        "weight_scale": scale.view(torch.float8_e4m3fn).expand(most + 1, 2).contiguous(),
        "weight_global_scale": torch.tensor([3771.3]),
    }


def scheme_of(kind: str) -> QuantizationScheme:
    return QuantizationScheme(**configuration(kind)["config_groups"]["group_0"])


@pytest.mark.parametrize("kind", NAMES)
def test_every_code_and_scale_is_the_librarys(kind: str) -> None:
    """It dequantizes to bfloat16; its own operation in float32 gives the rest of the bits."""
    for tensors in (every_scale(kind), textbook.state(kind, 24, 64, seed=1)):
        weight = read_layer(tensors, configuration(kind))
        library = BaseCompressor.get_value_from_registry(f"{kind}-pack-quantized")
        theirs = library.decompress(tensors, scheme_of(kind))["weight"]
        assert theirs.dtype == torch.bfloat16
        assert torch.equal(weight.dequantize(torch.bfloat16), theirs)
        scale = tensors["weight_scale"]
        single = dequantize(
            unpack_fp4_from_uint8(tensors["weight_packed"], *weight.shape, torch.float32),
            (decompress_mx_scale(scale) if kind == "mxfp4" else scale).float(),
            args=scheme_of(kind).weights,
            global_scale=tensors.get("weight_global_scale"),
        )
        assert torch.equal(weight.dequantize(), single)
        assert torch.equal(weight.dequantize(), textbook.dequantized(tensors))


@pytest.mark.parametrize("kind", NAMES)
def test_what_the_library_compresses_is_read(kind: str) -> None:
    values = torch.randn(24, 96, generator=torch.Generator().manual_seed(0)) / 10
    scheme = scheme_of(kind)
    whole = generate_gparam(values.min(), values.max()) if kind == "nvfp4" else None
    groups = values.unflatten(1, (-1, scheme.weights.group_size))
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights, whole)
    state = {"weight": values, "weight_scale": scale}
    state |= {} if whole is None else {"weight_global_scale": whole}
    library = BaseCompressor.get_value_from_registry(f"{kind}-pack-quantized")
    stored = library.compress(state, scheme)
    weight = read_layer(stored, configuration(kind))
    theirs = library.decompress(stored, scheme)["weight"]
    assert torch.equal(weight.dequantize(torch.bfloat16), theirs)
    assert float((weight.dequantize() - values).norm() / values.norm()) < 0.15
    # Nearest levels of the same grids: what the audit compares with. Ties are broken otherwise.
    again = rounded(values, weight).dequantize()
    torch.testing.assert_close(
        (again - values).abs(), (weight.dequantize() - values).abs(), rtol=0, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", NAMES)
def test_transformers_reads_the_same_model(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "a", kind, dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    ours = quant.load(tmp_path / "a", kernel="reference")
    dequantize_layers(ours, torch.bfloat16)
    assert torch.equal(logits(ours), logits(theirs))


def test_published_sizes() -> None:
    """4.5 bits a weight in groups of 16 with 8-bit scales, 4.25 in groups of 32."""
    for kind, bits in (("nvfp4", 4.5), ("mxfp4", 4.25)):
        tensors = textbook.state(kind, 1024, 1024, seed=0)
        held = 8 * sum(tensor.nbytes for tensor in tensors.values()) / 2**20
        assert held == pytest.approx(bits, abs=1e-4)


def test_settings_that_are_not_stored_are_as_the_library_has_them() -> None:
    """0.12 wrote no scale_dtype; actorder "weight" is GPTQ's order and moves no column."""
    for kind in NAMES:
        config = configuration(kind)
        weights = config["config_groups"]["group_0"]["weights"]
        del weights["scale_dtype"], weights["symmetric"], weights["dynamic"]
        weights |= {"actorder": "weight", "observer": "minmax"}
        del config["config_groups"]["group_0"]["format"]  # the whole checkpoint's is meant
        assert parse(config, "here").scheme("float16").name == NAMES[kind]


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 64}, r"weights\.group_size=64 cannot be read; '{}-pack-quantized' has"),
        ({"num_bits": 8}, r"weights\.num_bits=8 cannot be read; .* has 4"),
        ({"type": "int"}, r"weights\.type='int' cannot be read; .* has 'float'"),
        ({"symmetric": False}, r"weights\.symmetric=False cannot be read; .* has True"),
        ({"dynamic": True}, r"weights\.dynamic=True cannot be read"),
        ({"strategy": "channel"}, r"weights\.strategy='channel' cannot be read"),
        ({"scale_dtype": "torch.int8"}, r"weights\.scale_dtype='torch.int8' cannot be read"),
        ({"actorder": "group"}, r"weights\.actorder='group' cannot be read"),
        ({"num_bits": True}, r"weights\.num_bits=True cannot be read"),
    ],
)
def test_settings_that_cannot_be_read(kind: str, change: dict[str, Any], message: str) -> None:
    config = configuration(kind)
    config["config_groups"]["group_0"]["weights"] |= change
    with pytest.raises(ArtifactError, match=message.format(kind)):
        parse(config, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "naive-quantized"}, "format='naive-quantized' cannot be read; only 'pack-quan"),
        ({"output_activations": {"num_bits": 8}}, "output_activations quantizes activations"),
        ({"weights": None}, "group_1 has no weights"),
        ({"targets": ["Linear"]}, "'group_0' and 'group_1' quantize layers differently"),
        ({}, "stores the head as 'pack-quantized' and the layers as 'nvfp4-pack-quantized'"),
    ],
)
def test_groups_that_cannot_be_read(change: dict[str, Any], message: str) -> None:
    config = configuration("nvfp4")
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    head = {"targets": ["re:lm_head"], "weights": weights, "format": "pack-quantized"}
    config["config_groups"]["group_1"] = {**head, **change}
    with pytest.raises(ArtifactError, match=message):
        parse(config, "here")
    assert parse(configuration("nvfp4"), "here").evidence == ""


def test_a_head_with_a_group_of_its_own(tmp_path: Path) -> None:
    plain, _ = write(tmp_path / "a", "nvfp4")
    stored = textbook.state("nvfp4", 96, 64, seed=99)
    plain.lm_head.weight.data.copy_(textbook.dequantized(stored))

    def add(tensors: dict[str, Tensor]) -> None:
        del tensors["lm_head.weight"]
        tensors |= {f"lm_head.{part}": tensor for part, tensor in stored.items()}

    def declare(config: dict[str, Any]) -> None:
        groups = config["quantization_config"]["config_groups"]
        inputs = {"num_bits": 4, "type": "float", "dynamic": "local"}
        groups["group_1"] = {
            **groups["group_0"], "targets": ["re:.*lm_head"], "input_activations": inputs,
        }  # fmt: skip

    edit_tensors(add)(tmp_path / "a")
    edit_config(declare)(tmp_path / "a")
    torch.testing.assert_close(logits(quant.load(tmp_path / "a")), logits(plain), rtol=0, atol=1e-5)
    found = read_format(tmp_path / "a")
    assert found.name == "compressed-tensors FP4, weights alone"
    assert inspect(tmp_path / "a").scheme.name == "nvfp4g16_head_nvfp4g16"


def at(index: int, value: float) -> Callable[[Tensor], Tensor]:
    def apply(stored: Tensor) -> Tensor:
        stored.view(-1)[index] = value
        return stored

    return apply


def byte(value: int) -> Callable[[Tensor], Tensor]:
    def apply(stored: Tensor) -> Tensor:
        stored.view(torch.uint8).view(-1)[5] = value
        return stored

    return apply


def absent(_: Tensor) -> None:
    return None


GLOBAL = "weight_global_scale"


@pytest.mark.parametrize(
    ("kind", "part", "change", "message"),
    [
        ("nvfp4", "weight_packed", lambda t: t[:-1], r"scale is .*\[23, 32\] make it .*\[23"),
        ("nvfp4", "weight_packed", lambda t: t[:, :-1], r"packed is \[24, 31\], 62 codes a row"),
        ("nvfp4", "weight_packed", lambda t: t[:, :-8], r"weight_scale is .*make it .*\[24, 3\]"),
        ("nvfp4", "weight_packed", lambda t: t.view(torch.int8), "packed is torch.int8 .*; exp"),
        ("nvfp4", "weight_packed", lambda t: t.flatten(), r"packed is torch.uint8 \[768\]; expec"),
        ("nvfp4", "weight_packed", lambda t: t[:0], r"packed is torch.uint8 \[0, 32\]; exp"),
        ("nvfp4", "weight_packed", absent, "weight_packed is missing"),
        ("nvfp4", "weight_scale", lambda t: t[:, :-1], r"scale is .*\[24, 3\]; .*\[24, 4\]"),
        ("nvfp4", "weight_scale", lambda t: t.float(), "weight_scale is torch.float32"),
        ("nvfp4", "weight_scale", lambda t: t.view(torch.uint8), "weight_scale is torch.uint8"),
        ("nvfp4", "weight_scale", byte(127), "weight_scale: 1 of 96 scales are NaN"),
        ("nvfp4", "weight_scale", byte(255), "weight_scale: 1 of 96 scales are NaN"),
        ("nvfp4", "weight_scale", byte(192), "weight_scale holds -2, but scales of NVFP4 have no"),
        ("nvfp4", "weight_scale", absent, "weight_scale is missing"),
        ("nvfp4", GLOBAL, absent, "weight_global_scale is missing"),
        ("nvfp4", GLOBAL, at(0, 0), "global_scale is 0, by which the scales are divided"),
        ("nvfp4", GLOBAL, at(0, -1), "global_scale is -1, by which the scales are divided"),
        ("nvfp4", GLOBAL, at(0, math.nan), "global_scale is nan, by which"),
        ("nvfp4", GLOBAL, at(0, math.inf), "global_scale is inf, by which"),
        ("nvfp4", GLOBAL, at(0, 1e-38), "global_scale is 1e-38, which makes weights exceed"),
        ("nvfp4", GLOBAL, lambda t: t.half(), "global_scale is torch.float16"),
        ("nvfp4", GLOBAL, lambda t: t.expand(24), r"global_scale is .*\[24\]; .*32 \[1\]"),
        ("mxfp4", "weight_packed", lambda t: t[:, :-8], r"packed is \[24, 24\], 48 codes .* of 32"),
        ("mxfp4", "weight_packed", lambda t: t[:, :-16], r"weight_scale is .*make it .*\[24, 1\]"),
        ("mxfp4", "weight_scale", lambda t: t[:-1], r"scale is .*\[23, 2\]; .*\[24, 2\]"),
        ("mxfp4", "weight_scale", lambda t: t.half(), "weight_scale is torch.float16"),
        ("mxfp4", "weight_scale", byte(255), "scale: 1 of 48 scales are 255, NaN in"),
        ("mxfp4", "weight_scale", byte(253), r"scale: 1 of 48 scales are over 2\^125"),
        ("mxfp4", "weight_scale", absent, "weight_scale is missing"),
        ("mxfp4", GLOBAL, lambda _: torch.ones(1), "global_scale is stored, but .* says MXFP4"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(
    kind: str, part: str, change: Callable[[Tensor], Tensor | None], message: str
) -> None:
    tensors = textbook.state(kind, 24, 64, seed=2)
    read_layer(tensors, configuration(kind))
    changed = change(tensors.pop(part, torch.ones(1)).clone())
    if changed is not None:
        tensors[part] = changed.contiguous()
    with pytest.raises(ArtifactError, match=rf"\blayer\.(weight_)?{message}"):
        read_layer(tensors, configuration(kind), layer="layer")


def test_damage_in_a_folder_is_named_with_its_file(tmp_path: Path) -> None:
    write(tmp_path / "a", "nvfp4", inputs_too=True)

    def damage(tensors: dict[str, Tensor]) -> None:
        tensors[f"{LAYER}.{GLOBAL}"] *= 0

    edit_tensors(damage)(tmp_path / "a")
    for read in (quant.load, quant.load_weights):
        with pytest.raises(ArtifactError, match=rf"model\.safetensors: {LAYER}\.{GLOBAL} is 0"):
            read(tmp_path / "a")
    edit_config(lambda c: c.update(intermediate_size=160))(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"mlp.*_proj\.weight_packed holds .* but config.json"):
        quant.load(tmp_path / "a")


def test_the_other_format_than_the_tensors_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", "mxfp4")
    said = configuration("nvfp4")
    edit_config(lambda c: c.update(quantization_config=said))(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"weight_global_scale is missing"):
        quant.load(tmp_path / "a")
    write(tmp_path / "b", "nvfp4")
    said = configuration("mxfp4")
    edit_config(lambda c: c.update(quantization_config=said))(tmp_path / "b")
    with pytest.raises(ArtifactError, match=r"weight_global_scale is stored, but .* says MXFP4"):
        quant.load(tmp_path / "b")


@pytest.mark.parametrize("kind", NAMES)
def test_only_our_own_format_stores_them(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "a", kind, inputs_too=True)
    for format in ("gptq-v2", "compressed-tensors"):
        with pytest.raises(ArtifactError, match=f"has {kind} levels, which {format} cannot store"):
            quant.export(tmp_path / "a", tmp_path / "b", format)
    assert not (tmp_path / "b").exists()
    exported = quant.export(tmp_path / "a", tmp_path / "b", "bitsweep").folder
    ours = quant.load(exported)
    assert torch.equal(logits(ours), logits(quant.load(tmp_path / "a")))


@pytest.mark.parametrize("kind", NAMES)
def test_rounding_finds_the_nearest_level(kind: str) -> None:
    """The audit rounds on the stored grids, and the levels are a scheme like any other."""
    on = read_layer(textbook.state(kind, 6, 128, seed=3), configuration(kind))
    values = torch.randn(6, 128, generator=torch.Generator().manual_seed(1)) / 10
    found = rounded(values, on)
    size = SETTINGS[kind]["group_size"]
    scale = on.dequantize() / torch.tensor(e2m1.TABLE)[on.codes.int()]  # NaN where the level is 0
    ends = scale.abs().unflatten(1, (-1, size)).nan_to_num(0).amax(-1).repeat_interleave(size, 1)
    levels = ends[..., None] * torch.tensor(e2m1.TABLE)
    nearest = (values[..., None] - levels).abs().amin(-1)
    torch.testing.assert_close((found.dequantize() - values).abs(), nearest, rtol=0, atol=1e-6)
    again = rounded(on.dequantize(), on).dequantize()
    assert torch.equal(again, on.dequantize())
    assert 0 < clipped(50 * values, on) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grids_are_found_as_their_papers_say(dtype: torch.dtype) -> None:
    values = torch.randn(6, 80, generator=torch.Generator().manual_seed(1)).to(dtype) / 10
    values[2, 16:32] = 0
    solved = rtn.solve(values, Scheme(4, 16, levels="nvfp4")).weight
    whole = (6 * 448 / values.abs().amax().float()).float()
    assert torch.equal(solved.grid["global_scale"], whole.expand(6, 1))
    biggest = values.unflatten(1, (5, 16)).abs().amax(-1)
    expected = (biggest / 6 * whole).float().to(torch.float8_e4m3fn)
    assert torch.equal(solved.scale.float(), expected.float())
    assert float(solved.scale.float().max()) == 448
    assert not solved.dequantize()[2, 16:32].any()

    solved = rtn.solve(values, Scheme(4, 32, levels="mxfp4", grid="floor")).weight
    groups = values.split(32, dim=1)  # the last one is short
    for at_group, group in enumerate(groups):
        for row, biggest in enumerate(group.abs().amax(1).tolist()):
            exact = math.floor(math.log2(biggest)) - 2 + 127 if biggest else 0
            assert int(solved.grid["exponent"][row, at_group]) == exact
    for kind in NAMES:
        rule = {"grid": "floor"} if kind == "mxfp4" else {}
        scheme = Scheme(4, SETTINGS[kind]["group_size"], levels=kind, **rule)
        error = rtn.solve(values, scheme).weight.dequantize() - values
        assert float(error.norm() / values.norm()) < 0.16
        for extreme in (torch.zeros(2, 64), torch.full((2, 64), 1e-40), torch.full((2, 64), 1e37)):
            back = rtn.solve(extreme.to(dtype), scheme).weight.dequantize()
            assert torch.isfinite(back).all()
            torch.testing.assert_close(back.to(dtype), extreme.to(dtype), rtol=0.3, atol=1e-39)


@pytest.mark.parametrize("kind", NAMES)
def test_groups_of_another_size_are_refused(kind: str) -> None:
    size = SETTINGS[kind]["group_size"]
    for wrong in (None, 64):
        with pytest.raises(SchemeError, match=f"{kind} levels have .*: use group_size={size}"):
            Scheme(4, wrong, levels=kind)
    assert Scheme.parse(NAMES[kind]).kind in (nvfp4.LEVELS, mxfp4.LEVELS)


@pytest.mark.parametrize("inputs", [64, 96, 256])
@pytest.mark.parametrize("kind", NAMES)
def test_random_weights_keep_the_size_of_an_input(kind: str, inputs: int) -> None:
    scheme = Scheme(4, SETTINGS[kind]["group_size"], levels=kind)
    packed = random_packed(scheme, inputs, 512, torch.Generator().manual_seed(0))
    values = unpack(packed, scheme, inputs).dequantize()
    assert float(values.square().mean()) * inputs == pytest.approx(1, abs=0.1)
