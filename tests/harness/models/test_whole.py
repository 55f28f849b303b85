"""Tensors that model and files do not share are refused in the plan, once and for good."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import quant
from harness.cell.resolve import resolve
from harness.config.schema import CellConfig
from harness.errors import ModelError
from harness.models import whole
from quant.calibrate.stream import quantize_model
from quant.checkpoint.source import ArtifactSource
from quant.config import QuantizationConfig
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.solvers import rtn

Make = Callable[..., CellConfig]
Change = Callable[[dict[str, torch.Tensor]], Any]
NORM = "model.decoder.final_layer_norm.weight"
CHANGES: dict[str, Change] = {
    "missing": lambda t: t.pop(NORM),
    "unexpected": lambda t: t.update(stray=torch.zeros(1)),
    "mismatched": lambda t: t.update({NORM: torch.ones(31)}),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for verdicts alone: kernels would be compiled again."""
    monkeypatch.setattr(whole, "cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def edit(folder: Path, change: Change) -> None:
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", ["none", "rtn"])
def test_a_plan_refuses_what_a_run_would(
    copy: Path, tiny_cell: Make, method: str, change: str
) -> None:
    scheme = "w16" if method == "none" else "w4"
    config = tiny_cell(f"model.path={copy}", f"method={method}", f"scheme={scheme}")
    resolve(config)
    edit(copy, CHANGES[change])
    with pytest.raises(ModelError, match="are not of one whole causal language model"):
        resolve(config)


@pytest.mark.parametrize("change", CHANGES)
def test_pickled_weights_are_compared_too(copy: Path, tiny_cell: Make, change: str) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    config = tiny_cell(f"model.path={copy}")
    for zipped in (True, False):
        torch.save(tensors, copy / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        resolve(config)
    CHANGES[change](tensors)
    torch.save(tensors, copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=f"{'stray' if change == 'unexpected' else NORM}"):
        resolve(config)


@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_refuses_a_quantized_model_as_loading_does(
    tiny_model: Path, tiny_cell: Make, tmp_path: Path, change: str
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    plan = QuantizationConfig(rtn.SOLVER, Scheme(4, group_size=16))
    weights = quantize_model(model, [], plan).weights
    method = {"name": "rtn"}
    folder = quant.save(tmp_path / "a", model, weights, method=method, tokenizer=tiny_model)
    config = tiny_cell(f"model.path={folder}", "method=none", "scheme=w16")
    resolve(config)
    edit(folder, CHANGES[change])
    with pytest.raises(ModelError) as planned:
        resolve(config)
    for load in (quant.load, ArtifactSource):
        with pytest.raises(ArtifactError) as loaded:
            load(folder, verify_files=False)
        assert str(planned.value) == str(loaded.value)


def test_what_was_found_whole_is_not_compared_again(
    copy: Path, tiny_cell: Make, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_cell(f"model.path={copy}")
    resolve(config)
    assert len(list(cache.glob("shapes/*.whole"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(whole, "skeleton", lambda *_: pytest.fail("built again"))
        resolve(config)
        moved = copy.rename(copy.parent / "moved")
        resolve(tiny_cell(f"model.path={moved}"))
    edit(moved, CHANGES["missing"])
    for _ in range(2):
        with pytest.raises(ModelError, match=f"no values for {NORM}"):
            resolve(tiny_cell(f"model.path={moved}"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", b"{", "the tokenizer could not be read"),
        ("model.safetensors", b"", r"model.safetensors cannot be read: .*It was cut short"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
        ("pytorch_model.bin", b"", r"holds no pickled weights that can be read \(EOFError\)"),
        ("pytorch_model.bin", b"no pickle", r"can be read \(UnpicklingError: .*Copy .* again"),
    ],
)
def test_damaged_files_are_a_sentence_of_the_plan(
    copy: Path, tiny_cell: Make, name: str, content: bytes, words: str
) -> None:
    if name.endswith(".bin"):
        (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(content)
    with pytest.raises(ModelError, match=words):
        resolve(tiny_cell(f"model.path={copy}"))


def test_a_pickle_of_something_else_is_a_sentence_too(copy: Path, tiny_cell: Make) -> None:
    (copy / "model.safetensors").unlink()
    for something in ([1, 2], {"a": 3}):
        torch.save(something, copy / "pytorch_model.bin")
        with pytest.raises(ModelError, match="holds no pickled weights that can be read"):
            resolve(tiny_cell(f"model.path={copy}"))


def test_a_quantization_config_that_is_no_object(copy: Path, tiny_cell: Make) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": "gptq"}))
    with pytest.raises(ModelError, match=r"quantization_config='gptq' is no object"):
        resolve(tiny_cell(f"model.path={copy}"))


def test_a_cache_that_cannot_be_written_is_no_error(
    copy: Path, tiny_cell: Make, cache: Path
) -> None:
    cache.write_text("a file is in the way")
    resolve(tiny_cell(f"model.path={copy}"))
