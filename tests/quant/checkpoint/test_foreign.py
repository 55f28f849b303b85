"""Known formats that are not read are refused under their own names, wherever one asks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quant
from quant.checkpoint.choose import parse
from quant.checkpoint.files import weight_files
from quant.errors import ArtifactError

Folder = Callable[..., Path]
MLX = {"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}}
LLAMA = {"model_type": "llama"}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    def make(config: dict[str, Any] | None, *files: str) -> Path:
        for name in files:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        (LLAMA, ["model.onnx"], r"model.onnx is a graph of ONNX.*safetensors that it was exported"),
        (LLAMA, ["onnx/model_q4.onnx", "onnx/model_q4.onnx_data"], "onnx/model_q4.onnx is a graph"),
        (None, ["decoder_q4.onnx", "tokenizer.json"], "decoder_q4.onnx is a graph of ONNX"),
        (
            LLAMA,
            ["qmodel.pt"],
            r"qmodel.pt is what hqq's save_quantized wrote, a pickle.*HqqConfig",
        ),
        (MLX, ["model.safetensors"], r"\{bits: 4, group_size: 64\}, which is MLX's.*--dequantize"),
        (
            {**MLX, "quantization_config": MLX["quantization"]},
            ["model.safetensors"],
            "which is MLX's packed format",
        ),
    ],
)
def test_the_format_is_named_by_all_who_look(
    folder: Folder, config: dict[str, Any] | None, files: list[str], message: str
) -> None:
    made = folder(config, *files)
    for look in (weight_files, quant.checkpoint.read_scheme, quant.load_weights):
        with pytest.raises(ArtifactError, match=message):
            look(made)  # type: ignore[operator]


def test_a_file_alone_is_named(folder: Folder) -> None:
    made = folder(None, "a.onnx")
    with pytest.raises(ArtifactError, match=r"a.onnx is a graph of ONNX"):
        quant.checkpoint.read_scheme(made / "a.onnx")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_exports_beside_the_weights_are_no_matter(folder: Folder, name: str) -> None:
    made = folder(LLAMA, name, "onnx/model.onnx", "qmodel.pt", "other.pt")
    assert weight_files(made).names == (name,)


def test_a_named_method_is_no_mlx(folder: Folder) -> None:
    """`quantization` beside a quantization_config of another tool says nothing."""
    config = {**MLX, "quantization_config": {"quant_method": "awq"}}
    assert weight_files(folder(config, "model.safetensors")).names == ("model.safetensors",)
    assert weight_files(folder({"quantization": "none"}, "model.safetensors"))


@pytest.mark.parametrize("key", ["checkpoint_format", "format"])
def test_the_planar_layout_is_named(key: str) -> None:
    config = {"quant_method": "gptq", "bits": 5, "group_size": 32, "sym": True, key: "gptq_p"}
    with pytest.raises(ArtifactError, match=r"'gptq_p' is GPTQModel's planar .*format='gptq_v2'"):
        parse(config, "here")
    config[key] = "marlin"
    with pytest.raises(ArtifactError, match=r"only gptq and gptq_v2 can: quantize again with one"):
        parse(config, "here")
