"""Artifacts with operators in front of layers: what they hold, who reads them, who refuses."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import quant
from cuda_ext.ops import resolve_kernel
from quant.calibrate.capture import streamed_logits
from quant.calibrate.stream import quantize_model
from quant.checkpoint.choose import written
from quant.checkpoint.loader import dequantize_layers, load_weights, read_scheme
from quant.checkpoint.source import ArtifactSource
from quant.config import QuantizationConfig
from quant.errors import ArtifactError
from quant.input_operator import KeptChange, operator_bits, operator_of
from quant.linear import QuantLinear
from quant.scheme import Scheme
from quant.solvers import gptq
from quant.transforms import equalize
from tests.quant import killing, rotating
from tests.quant.architectures import random_windows, uneven_model

W4G16 = Scheme(4, group_size=16)
TOKENS = torch.stack(random_windows(2, seed=5))
ROTATE = (rotating.TRANSFORM, None)
EQUALIZE = (equalize.TRANSFORM, equalize.Options(keep="where_needed", powers_of_two=False))
DOWN = "model.layers.0.mlp.down_proj"


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def made(name: str, transform: tuple[Any, Any], folder: Path, scheme: Scheme = W4G16) -> Any:
    """A tiny model with operators, quantized in memory and saved."""
    model = uneven_model(name)
    config = QuantizationConfig(gptq.SOLVER, scheme, transforms=(transform,))
    result = quantize_model(model, random_windows(4), config)
    quant.save(folder, model, result.weights, method={"name": "gptq"})
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("llama") / "artifact"
    return made("llama", EQUALIZE, folder), folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("rotated") / "artifact"
    return made("llama", ROTATE, folder), folder


def said(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("kernel", ["reference", "auto"])
@pytest.mark.parametrize("name", ["gpt2", "opt-350m", "llama"])
def test_what_is_loaded_computes_what_was_calibrated(
    name: str, kernel: str, tmp_path: Path, llama: tuple[Any, Path]
) -> None:
    model, folder = llama if name == "llama" else (None, tmp_path / "a")
    model = model or made(name, EQUALIZE, folder)
    loaded = quant.load(folder, kernel, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-3, atol=1e-3)
    assert operator_bits(loaded) == operator_bits(model) > 0
    packed = next(m for m in loaded.modules() if isinstance(m, QuantLinear) and operator_of(m))
    assert packed.kernel == resolve_kernel(kernel, "cpu")
    assert "(input_operator): InputOperator" in repr(packed)
    assert "equalize, scale float32" in repr(packed)
    card = (folder / "README.md").read_text()
    assert "GPTQ v2, input operators" in card
    assert "Read by Bitsweep alone" in card
    assert "library_name: bitsweep" in card
    assert "GPTQModel" not in card
    dequantize_layers(loaded, torch.float32)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-3, atol=1e-3)
    with ArtifactSource(folder, kernel, dtype=torch.float32) as source:
        torch.testing.assert_close(
            streamed_logits(source, TOKENS), logits(model), rtol=1e-3, atol=1e-3
        )
        assert not any(isinstance(each, KeptChange) for each in source.model.modules())
        assert source.operator_bits() == operator_bits(model)


def test_half_precision_keeps_the_operator_exact_and_the_packed_layer_too(
    llama: tuple[Any, Path],
) -> None:
    model, folder = llama
    loaded = quant.load(folder, "reference", dtype=torch.bfloat16).half().to(torch.float32)
    scale = f"{DOWN}.input_operator.0.scale"
    state = loaded.state_dict()
    assert state[scale].dtype == torch.float32
    assert torch.equal(state[scale], model.state_dict()[scale])
    again = copy.deepcopy(loaded)
    again.load_state_dict({**state, scale: state[scale] * 2})
    assert torch.equal(again.state_dict()[scale], 2 * state[scale])
    assert not torch.allclose(logits(again), logits(loaded), rtol=1e-2, atol=1e-2)


def test_the_configuration_says_it_so_that_no_other_reader_goes_on(
    llama: tuple[Any, Path],
) -> None:
    _, folder = llama
    config = said(folder)
    assert config["quant_method"] == "bitsweep_operators"
    assert config.keys() == {"quant_method", "layers", "operators"}
    assert config["layers"]["quant_method"] == "gptq"
    assert config["operators"][DOWN] == [
        {
            "transform": "equalize", "version": 1, "module": "quant.transforms.equalize",
            "tensors": ["scale"],
        }
    ]  # fmt: skip
    assert not any("q_proj" in layer for layer in config["operators"]), "folded into the norm"
    assert [path.name for path in folder.glob("*.safetensors")] == [
        "bitsweep-operators.safetensors"
    ]
    with pytest.raises((OSError, ValueError)):  # transformers; others go by the quant_method
        AutoModelForCausalLM.from_pretrained(folder)
    checkpoint, scheme = read_scheme(folder)
    assert checkpoint.name == "GPTQ v2, input operators"
    assert scheme == W4G16


def test_ternary_levels_may_have_operators_too(tmp_path: Path) -> None:
    ternary = Scheme(2, group_size=16, levels="ternary")
    model = made("llama", EQUALIZE, tmp_path / "a", ternary)
    assert said(tmp_path / "a")["layers"]["quant_method"] == "bitsweep_ternary"
    loaded = quant.load(tmp_path / "a", "reference", dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("format", sorted(n for n, (_, w) in written().items() if not w.factored))
def test_no_export_leaves_an_operator_out(
    format: str, llama: tuple[Any, Path], tmp_path: Path
) -> None:
    _, folder = llama
    message = rf"equalize in front of \d+ layers.* and {format} stores only weights: .*keep=never"
    with pytest.raises(ArtifactError, match=message):
        quant.export(folder, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_transform_of_somebody_else_is_given_and_never_looked_for(
    rotated: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = rotated
    assert said(folder)["operators"][DOWN][0]["module"] is None
    message = r"transform rotate, which is not Bitsweep's own,.*transforms=\[TRANSFORM\]"
    with pytest.raises(ArtifactError, match=message):
        quant.load(folder, "reference")
    with pytest.raises(ArtifactError, match=message):
        ArtifactSource(folder, "reference")
    loaded = quant.load(
        folder, "reference", dtype=torch.float32, transforms=[rotating.TRANSFORM]
    )  # fmt: skip
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-3, atol=1e-3)
    newer = replace(rotating.TRANSFORM, version=2)
    with pytest.raises(ArtifactError, match="made by version 1 of transform rotate, and this is"):
        quant.load(folder, "reference", transforms=[newer])
    # A module that the file names is not imported, wherever it lies.
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("evil", "quant.transforms.evil", "quant.transforms.fold", "os"):
        changed = edited(
            folder, tmp_path / module, lambda c, m=module: c["operators"][DOWN][0].update(module=m)
        )
        with pytest.raises(ArtifactError, match="is not known here"):
            quant.load(changed, "reference", transforms=[rotating.TRANSFORM], verify_files=False)


def edited(folder: Path, copy_to: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    copy_to.mkdir()
    for path in folder.iterdir():
        (copy_to / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy_to / "config.json").read_text())
    change(config["quantization_config"])
    (copy_to / "config.json").write_text(json.dumps(config))
    return copy_to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("operators"), "operators is empty"),
        (lambda c: c.update(layers=3), "layers is not the quantization_config of layers"),
        (lambda c: c.update(layers=dict(c)), "layers is not the quantization_config of layers"),
        (lambda c: c["operators"].update({DOWN: []}), "lists no changes"),
        (lambda c: c["operators"].update({DOWN: [3]}), "cannot be read"),
        (lambda c: c["operators"][DOWN][0].pop("version"), "cannot be read"),
        (lambda c: c["operators"][DOWN][0].update(transform=4), "lists no changes"),
        (lambda c: c["operators"][DOWN][0].update(version=9), "made by version 9"),
        (lambda c: c["operators"][DOWN][0].update(version=[1]), "lists no changes"),
        (lambda c: c["operators"][DOWN][0].update(version=True), "lists no changes"),
        (lambda c: c["operators"][DOWN][0].update(module=0), "lists no changes"),
        (lambda c: c["operators"][DOWN][0].update(tensors=["shift"]), r"input_operator\.0\.shift"),
        (lambda c: c["operators"].update(x=c["operators"].pop(DOWN)), "in front of x"),
        (
            lambda c: c["operators"].pop(DOWN),
            r"holds .*down_proj\.input_operator\.0\.scale, which stand in front of layers",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, llama: tuple[Any, Path], tmp_path: Path
) -> None:
    folder = edited(llama[1], tmp_path / "edited", change)
    with pytest.raises(ArtifactError, match=message):
        quant.load(folder, "reference", verify_files=False)


def test_operators_that_the_configuration_does_not_name_are_noticed_without_a_model(
    rotated: tuple[Any, Path], tmp_path: Path
) -> None:
    """The weights behind them are those of another input: nobody may take them for the layer's."""
    folder = edited(rotated[1], tmp_path / "edited", lambda c: c["operators"].pop(DOWN))
    message = rf"holds {DOWN}\.input_operator\.0\.matrix, which stand in front of layers"
    with pytest.raises(ArtifactError, match=message):
        load_weights(folder, verify_files=False)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = config["quantization_config"]["layers"]
    (folder / "config.json").write_text(json.dumps(config))
    for read in (load_weights, ArtifactSource):
        with pytest.raises(ArtifactError, match=r"matrix and 18 more, which stand in front"):
            read(folder, verify_files=False)
    with pytest.raises(ArtifactError, match=r"matrix and 18 more, which stand in front"):
        read_scheme(folder)


def test_no_export_leaves_out_what_the_configuration_does_not_say(
    llama: tuple[Any, Path], tmp_path: Path
) -> None:
    """Loading refuses it: the weights are those behind an operator."""
    folder = edited(llama[1], tmp_path / "edited", lambda _: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = config["quantization_config"]["layers"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"operator\.0\.scale and 3 more, which stand"):
        quant.export(folder, tmp_path / "out", "gptq-v1", verify_files=False)
    assert not (tmp_path / "out").exists()


def test_tensors_of_another_layer_are_refused(llama: tuple[Any, Path], tmp_path: Path) -> None:
    folder = edited(llama[1], tmp_path / "edited", lambda _: None)
    file = folder / "bitsweep-operators.safetensors"
    tensors = load_file(file)
    tensors[f"{DOWN}.input_operator.0.scale"] = torch.ones(5)
    save_file(tensors, file)
    with pytest.raises(ArtifactError, match="transform equalize cannot be made of its tensors"):
        quant.load(folder, "reference", verify_files=False)
    tensors[f"{DOWN}.input_operator.0.scale"] = torch.full((48,), torch.nan)
    save_file(tensors, file)
    with pytest.raises(ArtifactError, match=r"operator\.0: .*scale of its change has NaN"):
        quant.load(folder, "reference", verify_files=False)


@pytest.mark.parametrize("method", ["kept", "rotated", "residual", "rounded"])
@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_with_the_operators_that_it_had(method: str, tmp_path: Path) -> None:
    model, whole = tmp_path / "model", tmp_path / "whole"
    uneven_model("llama").save_pretrained(model)
    killing.make(model, whole, "cpu", method)
    transforms = [transform for transform, _ in killing.CONFIGS[method].transforms]
    loaded = quant.load(whole, "reference", transforms=transforms)
    assert operator_bits(loaded) > 0
    for when, block, kept in (("noted", 0, 1), ("writing", 1, 1)):
        target = tmp_path / f"{when}-{block}"
        killing.kill(model, target, when, block, "cpu", method)
        assert killing.make(model, target, "cpu", method).resumed == kept
        for path in whole.iterdir():
            assert (target / path.name).read_bytes() == path.read_bytes()
    indexes = [path.name for path in whole.glob("*.index.json")]
    assert indexes == ["bitsweep-operators.safetensors.index.json"]
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(whole)
