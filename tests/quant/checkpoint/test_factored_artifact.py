"""Artifacts of factored weights: written, gone on with, read, inspected, audited, damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import quant
from quant.audit.run import audit
from quant.audit.verdict import NO_GRID
from quant.blocks import find_blocks
from quant.budget import Budget
from quant.checkpoint import dequantize_layers
from quant.checkpoint.choose import exported
from quant.checkpoint.folder import MANIFEST
from quant.checkpoint.formats import bitsweep_factored
from quant.checkpoint.inspection import inspect
from quant.checkpoint.make import files_hash, quantize_to
from quant.checkpoint.partial import PartialArtifact
from quant.checkpoint.source import ArtifactSource, CheckpointSource
from quant.config import QuantizationConfig
from quant.coverage import coverage_of
from quant.errors import ArtifactError
from quant.factored import FactoredLinear
from quant.measure.roofline import weight_count
from quant.solvers import dense_sparse, svd, svd_whitened
from tests.quant.architectures import BLOCKS, random_windows, tiny_model

BUDGET = Budget(6.5)
CONFIGS = {
    "svd": QuantizationConfig(svd.SOLVER, BUDGET),
    "svd_whitened": QuantizationConfig(svd_whitened.SOLVER, BUDGET),
    "dense_sparse": QuantizationConfig(dense_sparse.SOLVER, BUDGET, dense_sparse.Options(sweeps=1)),
}
TOKENS = torch.arange(40)[None]


def make(model: Path, target: Path, method: str) -> quant.QuantizationResult:
    config = CONFIGS[method]
    with CheckpointSource(model, torch.float32) as source:
        return quantize_to(
            target,
            source,
            random_windows(4) if config.needs_calibration else [],
            config,
            model_hash=files_hash(model),
            method={"name": method},
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=CONFIGS)
def made(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    target: Path = tmp_path_factory.mktemp(request.param) / "artifact"
    make(model, target, request.param)
    return target


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def test_what_is_read_back_is_what_was_made(made: Path, model: Path) -> None:
    assert (made / "bitsweep-factored.safetensors.index.json").is_file(), "nobody else looks there"
    loaded = quant.load(made)
    layers = {n: m for n, m in loaded.named_modules() if isinstance(m, FactoredLinear)}
    assert len(layers) == 7 * BLOCKS
    weights = quant.load_weights(made)
    plain = AutoModelForCausalLM.from_pretrained(model)
    for name, weight in weights.items():
        assert weight.scheme == BUDGET
        assert torch.equal(weight.dequantize(), layers[name].dequantize())
        plain.get_submodule(name).weight.data.copy_(weight.dequantize())
    torch.testing.assert_close(logits(loaded), logits(plain), rtol=1e-4, atol=1e-5)
    dequantize_layers(loaded, torch.float32)
    assert not any(isinstance(module, FactoredLinear) for module in loaded.modules())
    torch.testing.assert_close(logits(loaded), logits(plain))
    again = quant.save(made.with_name("again"), plain, weights, method={"name": "copy"})
    assert inspect(again).bits_per_weight == inspect(made).bits_per_weight


def test_every_stored_tensor_is_counted(made: Path, model: Path) -> None:
    stored = {}
    for file in made.glob("*.safetensors"):
        stored |= load_file(file)
    forms = ("low_rank", "dense_sparse")
    held = sum(t.nbytes for n, t in stored.items() if any(f".{form}." in n for form in forms))
    weights = quant.load_weights(made)
    count = sum(weight.shape[0] * weight.shape[1] for weight in weights.values())
    found = inspect(made)
    assert found.bits_per_weight == 8 * held / count <= BUDGET.bits
    assert found.weights == count
    assert found.scheme == BUDGET
    assert found.forms in ("low rank in 21 layers", "dense times sparse in 21 layers")
    loaded = quant.load(made)
    with ArtifactSource(made) as source:
        for name, (size, bits) in source.layer_bits().items():
            layer = loaded.get_submodule(name)
            assert isinstance(layer, FactoredLinear)
            assert bits == layer.stored_bits == weights[name].bits
            assert size == layer.in_features * layer.out_features
    plain = AutoModelForCausalLM.from_pretrained(model)
    assert weight_count(loaded) == sum(each.numel() for each in plain.parameters())
    covered = coverage_of(find_blocks(loaded))
    assert (covered.share, covered.quantized) == (1.0, count)


def test_blocks_are_streamed(made: Path) -> None:
    loaded = quant.load(made)
    with ArtifactSource(made) as source:
        for index, block in enumerate(source.blocks.modules):
            source.attach(index, source.fetch(index))
            for name, module in loaded.model.layers[index].named_modules():
                if isinstance(module, FactoredLinear):
                    other = block.get_submodule(name)
                    assert torch.equal(other.dequantize(), module.dequantize())
            source.release(index)


@pytest.mark.parametrize("method", CONFIGS)
def test_an_interrupted_run_goes_on(
    method: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, whole = tmp_path / "artifact", tmp_path / "whole"
    make(model, whole, method)
    put = PartialArtifact.put

    def dying(self, index, *rest):
        if index == 2:
            raise KeyboardInterrupt
        return put(self, index, *rest)

    monkeypatch.setattr(PartialArtifact, "put", dying)
    with pytest.raises(KeyboardInterrupt):
        make(model, target, method)
    monkeypatch.undo()
    assert make(model, target, method).resumed == 2
    for file in sorted(whole.glob("*.safetensors")):
        assert file.read_bytes() == (target / file.name).read_bytes()


def test_no_export_and_no_other_format_takes_them(made: Path, tmp_path: Path) -> None:
    assert bitsweep_factored.FORMAT.name not in exported()
    for name in ("gptq-v2", "compressed-tensors", "gguf"):
        out = tmp_path / (f"{name}.gguf" if name == "gguf" else name)
        with pytest.raises(ArtifactError, match=f"has factored weights, which {name} cannot store"):
            quant.export(made, out, name)


def test_an_audit_says_the_error_alone(made: Path, model: Path) -> None:
    with CheckpointSource(model, torch.float32) as source:
        found = audit(made, source, model, random_windows(4))
    assert {layer.verdict.name for layer in found.layers} == {NO_GRID}
    first, weights = found.layers[0], quant.load_weights(made)
    assert "is a product of factors, so there is neither rounding nor a solver" in first.verdict.why
    assert first.bits_per_weight == pytest.approx(weights[first.name].bits / (32 * 32))
    plain = AutoModelForCausalLM.from_pretrained(model).get_submodule(first.name).weight.detach()
    error = (plain - weights[first.name].dequantize()).norm() / plain.norm()
    assert first.evidence is not None
    assert first.evidence.scaled is None
    assert first.evidence.weight_error == pytest.approx(float(error), rel=1e-4)


def damaged(made: Path, tmp_path: Path, change) -> Path:
    """A copy whose tensors or configuration were changed, and which has no checksums."""
    folder = tmp_path / "copy"
    folder.mkdir()
    config = json.loads((made / "config.json").read_text())
    tensors = {}
    for file in made.glob("*.safetensors"):
        tensors |= load_file(file)
    config["quantization_config"]["meta"]["producer"] = "somebody"
    change(tensors, config["quantization_config"])
    save_file(tensors, folder / "bitsweep-factored.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    assert not (folder / MANIFEST).exists()
    return folder


LAYER = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("made", ["svd"], indirect=True)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, _: t.pop(f"{LAYER}.low_rank.right"), f"{LAYER}.low_rank.right is missing"),
        (lambda t, _: t[f"{LAYER}.low_rank.right"].fill_(torch.nan), "NaN or infinite .* damaged"),
        (
            lambda t, _: t.update({f"{LAYER}.low_rank.left": torch.ones(3, 2).half()}),
            f"{LAYER}: a weight of the form low_rank has left of rank 2",
        ),
        (
            lambda t, _: t.update({f"{LAYER}.dense_sparse.dense": torch.ones(3, 2).half()}),
            "has tensors of the forms dense_sparse, low_rank; a layer has one",
        ),
        (
            lambda t, _: t.update({f"{LAYER}.low_rank.left": t.pop(f"{LAYER}.low_rank.left")[:5]}),
            r"low_rank.left holds \[5, 32\] .* config.json makes it \[48, 32\]",
        ),
        (lambda _, c: c.update(version=2), "version=2 cannot be read; only 1 can"),
        (lambda _, c: c.update(budget=None), "budget cannot be read: budget=None"),
    ],
)
def test_damaged_files_are_refused(made: Path, tmp_path: Path, change, words: str) -> None:
    folder = damaged(made, tmp_path, change)
    with pytest.raises(ArtifactError, match=words):
        quant.load(folder)


@pytest.mark.parametrize("made", ["svd"], indirect=True)
def test_a_copy_that_nobody_damaged_is_read(made: Path, tmp_path: Path) -> None:
    quant.load(damaged(made, tmp_path, lambda *_: None))
