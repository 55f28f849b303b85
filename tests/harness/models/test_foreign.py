"""Plan and `bitsweep inspect` name formats that are not read."""

import json
from pathlib import Path

import pytest

from harness.checkpoint_verbs import inspect
from harness.errors import ConfigError, ModelError
from harness.models.folders import check_folder

ONNX, HQQ, MLX = "is a graph of ONNX", "pickles are not read", "which is MLX's packed format"


@pytest.mark.parametrize(
    ("file", "config", "message"),
    [
        ("model_q4.onnx", {"model_type": "llama"}, ONNX),
        ("model.onnx", None, ONNX),
        ("qmodel.pt", {"model_type": "llama"}, HQQ),
        ("model.safetensors", {"quantization": {"bits": 4, "group_size": 64}}, MLX),
    ],
)
def test_they_are_named(
    tmp_path: Path, file: str, config: dict[str, object] | None, message: str
) -> None:
    (tmp_path / file).write_bytes(b"")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        check_folder(tmp_path, "model.path=x")
    with pytest.raises(ConfigError, match=message):
        inspect(tmp_path)


def test_a_file_alone_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(ConfigError, match=ONNX):
        inspect(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=ONNX):
        check_folder(tmp_path / "a.onnx", "model.path=a.onnx")
