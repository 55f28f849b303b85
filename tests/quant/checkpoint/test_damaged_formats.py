"""Every format with a part that is missing, cut short, of another type or shape, or senseless."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quant
from quant.checkpoint import read_format
from quant.checkpoint.choose import written
from quant.checkpoint.folder import MANIFEST
from quant.errors import ArtifactError
from quant.scheme import Scheme
from tests.quant.checkpoint.bnb_folders import write as write_bitsandbytes
from tests.quant.tiny_checkpoints import METHOD, edit_config, edit_tensors, quantized

LAYER = "model.layers.1.mlp.down_proj"  # [40, 72]
SCHEME = Scheme(4, group_size=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in every format, without checksums, as other producers leave it."""
    parent = tmp_path_factory.mktemp("formats")
    model, weights = quantized("llama", SCHEME)
    for weight in weights.values():
        weight.zero.clamp_(min=1)
    artifact = quant.save(parent / "artifact", model, weights, method=METHOD)
    found = {}
    for name in ODD.keys() & written().keys():
        found[name] = quant.export(artifact, parent / name, name).folder
    for folder in found.values():
        (folder / MANIFEST).unlink()
        edit_config(lambda c: c["quantization_config"].pop("meta", None))(folder)
    for kind in ("nf4", "int8"):
        found[f"bitsandbytes-{kind}"] = parent / kind
        write_bitsandbytes(parent / kind, kind, nested=kind == "nf4")
    return found


def damaged(folders: dict[str, Path], format: str, tmp_path: Path) -> Path:
    """A copy of a folder to be damaged."""
    copy = tmp_path / format
    copy.mkdir()
    for file in folders[format].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def put(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def apply(tensors: dict[str, Tensor]) -> None:
        name = f"{LAYER}.{part}"
        tensors[name] = change(tensors[name].clone()).contiguous()

    return apply


def drop(part: str) -> Callable[[dict[str, Tensor]], None]:
    def apply(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{LAYER}.{part}"]

    return apply


def set_first(value: Any) -> Callable[[Tensor], Tensor]:
    def apply(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return apply


ODD: dict[str, tuple[str, ...]] = {
    "gptq-v1": ("qweight", "qzeros", "scales"),
    "gptq-v2": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "compressed-tensors": ("weight_packed", "weight_zero_point", "weight_scale", "weight_shape"),
    "bitsandbytes-nf4": (
        "weight", "weight.absmax", "weight.nested_absmax", "weight.nested_quant_map",
        "weight.quant_map", "weight.quant_state.bitsandbytes__nf4",
    ),
    "bitsandbytes-int8": ("weight", "SCB"),
}  # fmt: skip
PARTS = [(format, part) for format, parts in ODD.items() for part in parts]


@pytest.mark.parametrize(("format", "part"), PARTS)
def test_parts_of_another_shape_or_type_are_named(
    folders: dict[str, Path], tmp_path: Path, format: str, part: str
) -> None:
    # Without the model a layer of one input less is as good as any, if the last word is not full.
    alone = part not in ("g_idx", "qweight")
    file = rf"model\.safetensors: .*{LAYER}\.{part}"
    for number, change in enumerate((lambda t: t[:-1], lambda t: t[..., None], lambda t: t.half())):
        if part in ("scales", "weight_scale") and number == 2:
            continue  # float16 is what they are
        folder = damaged(folders, format, tmp_path / str(number))
        edit_tensors(put(part, change))(folder)
        for read in (quant.load, quant.load_weights) if alone else (quant.load,):
            with pytest.raises(ArtifactError, match=file):
                read(folder)


@pytest.fixture(autouse=True)
def _places(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / str(number)).mkdir()


# A g_idx may be left out where the groups are neighbours.
@pytest.mark.parametrize(("format", "part"), [each for each in PARTS if each[1] != "g_idx"])
def test_missing_parts_are_named(
    folders: dict[str, Path], tmp_path: Path, format: str, part: str
) -> None:
    folder = damaged(folders, format, tmp_path)
    edit_tensors(drop(part))(folder)
    codes = part in ("qweight", "weight_packed", "weight")
    with pytest.raises(ArtifactError, match=LAYER if codes else rf"{LAYER}\.{part} is missing"):
        quant.load(folder)


@pytest.mark.parametrize(
    ("format", "part", "value", "message"),
    [
        ("gptq-v2", "scales", torch.nan, "has NaN or infinite"),
        ("gptq-v1", "scales", torch.inf, "has NaN or infinite"),
        ("awq", "scales", torch.nan, "has NaN or infinite"),
        ("compressed-tensors", "weight_scale", -torch.inf, "has NaN or infinite"),
        ("gptq-v2", "scales", 0, "scales: 1 of 360 scales are 0, which makes every weight of"),
        ("gptq-v1", "scales", 0, "scales: 1 of 360 scales are 0"),
        ("awq", "scales", 0, "scales: 1 of 360 scales are 0"),
        ("compressed-tensors", "weight_scale", 0, "weight_scale: 1 of 360 scales are 0"),
        ("gptq-v2", "g_idx", 9, "goes from 0 to 9, but the layer has groups 0 to 8"),
        ("gptq-v2", "g_idx", -1, "goes from -1 to 8"),
        ("gptq-v2", "g_idx", 3, "scatters the groups, but .* desc_act=false"),
        ("compressed-tensors", "weight_shape", 41, "weight_packed is .*weight_shape .41, 72. make"),
        ("compressed-tensors", "weight_shape", -40, "expected the two positive integers"),
    ],
)
def test_values_that_cannot_be(
    folders: dict[str, Path], tmp_path: Path, format: str, part: str, value: Any, message: str
) -> None:
    folder = damaged(folders, format, tmp_path)
    edit_tensors(put(part, set_first(value)))(folder)
    with pytest.raises(ArtifactError, match=rf"model\.safetensors: {LAYER}.*{message}"):
        quant.load_weights(folder)


@pytest.mark.parametrize("format", ODD)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:5],
        lambda content: b"",
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"}" * 40 + content[48:],
    ],
)
def test_files_that_are_no_safetensors(
    folders: dict[str, Path], tmp_path: Path, format: str, spoil: Callable[[bytes], bytes]
) -> None:
    folder = damaged(folders, format, tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    for read in (
        quant.load,
        quant.load_weights,
        lambda folder: quant.export(folder, tmp_path / "out", "gptq-v2"),
    ):
        with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read"):
            read(folder)
    assert not (tmp_path / "out").exists()


GROUP = ("config_groups", "group_0")


def edit(*path: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    def apply(config: dict[str, Any]) -> None:
        place = config["quantization_config"]
        for key in path:
            place = place[key]
        place.update(values)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(format="int-quantized", config_groups={"g": {"weights": {}}}), "format='int-quant"),
        (edit(quantization_status="frozen"), "quantization_status='frozen': the weights are not"),
        (edit(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme is set; only checkpoints whose"),
        (edit(transform_config={"r1": {}}), "transform_config is set"),
        (edit(config_groups={}), r"config_groups is \{\}; expected one group"),
        (edit(config_groups={"W4A16": ["Linear"]}), "config_groups.W4A16 has no weights; presets"),
        (edit(*GROUP, input_activations={"num_bits": 8}), "input_activations quantizes activat"),
        (edit(*GROUP, "weights", num_bits=9), r"group_0.weights.num_bits=9 cannot be read"),
        (edit(*GROUP, "weights", type="float"), "type='float' and dynamic=False; only integers"),
        (edit(*GROUP, "weights", strategy="tensor"), "strategy='tensor' and group_size=8"),
        (edit(*GROUP, "weights", group_size=None), "strategy='group' and group_size=None"),
        (edit(*GROUP, "weights", symmetric=True), "weight_zero_point holds .*symmetric=true"),
        (edit(*GROUP, "weights", actorder="group"), "weight_g_idx is missing"),
        (edit(*GROUP, "weights", group_size=16), "weight_scale is .* make it"),
        (edit(*GROUP, "weights", num_bits=8), "weight_packed is .* make it"),
    ],
)
def test_configurations_that_cannot_be_read(
    folders: dict[str, Path], tmp_path: Path, change: Callable[..., None], message: str
) -> None:
    folder = damaged(folders, "compressed-tensors", tmp_path)
    edit_config(change)(folder)
    with pytest.raises(ArtifactError, match=message):
        quant.load_weights(folder)


def test_groups_that_differ_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = damaged(folders, "compressed-tensors", tmp_path)

    def second(config: dict[str, Any], bits: int) -> None:
        groups = config["quantization_config"]["config_groups"]
        weights = {**groups["group_0"]["weights"], "num_bits": bits}
        groups["group_1"] = {**groups["group_0"], "targets": ["Linear"], "weights": weights}

    edit_config(lambda c: second(c, 4))(folder)
    quant.load(folder)
    edit_config(lambda c: second(c, 8))(folder)
    with pytest.raises(ArtifactError, match="'group_0' and 'group_1' quantize layers differently"):
        quant.load(folder)


def test_layers_that_do_not_fit_the_model(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = damaged(folders, "compressed-tensors", tmp_path)
    edit_config(lambda c: c.update(intermediate_size=64))(folder)
    with pytest.raises(ArtifactError, match=r"mlp.*_proj.* codes, but config.json makes it"):
        quant.load(folder)


@pytest.mark.parametrize("format", [each for each in ODD if "bitsandbytes" not in each])
def test_negative_scales_turn_a_grid_around_and_are_said(
    folders: dict[str, Path], tmp_path: Path, format: str
) -> None:
    """AutoRound writes them; a single one that no other layer has is damage."""
    part = "weight_scale" if format == "compressed-tensors" else "scales"
    before = quant.load_weights(folders[format])
    folder = damaged(folders, format, tmp_path)

    def turn(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(f".{part}")]:
            tensors[name] = -tensors[name]

    edit_tensors(turn)(folder)
    assert read_format(folder).signed
    assert not read_format(folders[format]).signed
    for name, weight in quant.load_weights(folder).items():
        assert torch.equal(weight.dequantize(), -before[name].dequantize())
    x = torch.randn(3, 72, generator=torch.Generator().manual_seed(0))
    layers = [quant.load(folder, kernel=k).get_submodule(LAYER) for k in ("auto", "reference")]
    torch.testing.assert_close(*(layer(x) for layer in layers))
    alone = damaged(folders, format, tmp_path / "0")
    other = "model.layers.1.mlp.gate_proj"  # not one of those that are looked at
    edit_tensors(lambda t: t.update({f"{other}.{part}": -t[f"{other}.{part}"]}))(alone)
    if not read_format(alone).signed:
        with pytest.raises(ArtifactError, match=rf"{other}.{part}: .* are negative, and those of"):
            quant.load_weights(alone)


@pytest.mark.parametrize("name", ["model.norm.weight", f"{LAYER}.bias"])
def test_integers_in_the_place_of_numbers_are_not_cast(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = damaged(folders, "gptq-v2", tmp_path)
    edit_tensors(lambda t: t.update({name: torch.ones(40, dtype=torch.int32)}))(folder)
    with pytest.raises(ArtifactError, match=rf"{name} is torch.int32, but the model has"):
        quant.load(folder)
