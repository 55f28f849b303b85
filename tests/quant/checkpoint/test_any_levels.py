"""The format for any levels: what is declared is written, and read by who names the kind."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import quant
from quant.checkpoint.choose import artifact_format, written_format
from quant.checkpoint.folder import MANIFEST
from quant.checkpoint.make import quantize_to
from quant.checkpoint.partial import artifact_bytes
from quant.checkpoint.source import ArtifactSource, CheckpointSource
from quant.config import QuantizationConfig
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.quant.architectures import BLOCKS, tiny_model
from tests.quant.tiny_checkpoints import METHOD, Model, edit_config, logits, quantized
from tests.quant.wide_levels import CODEBOOK, NVFP4, Q4K_OF_3, SCALED_CODEBOOK

# 40 and 72 inputs: the last group is short, and so is the last super-block.
SCHEMES = [
    Scheme(4, 16, levels=Q4K_OF_3),
    Scheme(4, 16, levels=NVFP4),
    Scheme(3, levels=CODEBOOK, scale_dtype="bfloat16"),
    Scheme(3, 16, levels=replace(SCALED_CODEBOOK, codes=7)),
]


def rounded(scheme: Scheme, scattered: bool = False) -> Model:
    """A tiny model whose weights are rounded to a scheme."""
    model, weights = quantized("llama", Scheme(8))
    for name in weights:
        module = model.get_submodule(name)
        weight = rtn.solve(module.weight, scheme).weight
        if scattered:
            order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))
            index = weight.column_groups()[order].int()
            weight = replace_index(weight, index)
        module.weight.data.copy_(weight.dequantize())
        weights[name] = weight
    return model, weights


def replace_index(weight: quant.QuantizedWeight, index: torch.Tensor) -> quant.QuantizedWeight:
    return quant.QuantizedWeight(weight.codes, weight.scheme, index, weight.grid)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_written_and_read_back(scheme: Scheme, tmp_path: Path) -> None:
    scattered = scheme.kind.span == 3
    model, weights = rounded(scheme, scattered)
    folder = quant.save(tmp_path / "a", model, weights, method=METHOD)
    assert (folder / "bitsweep.safetensors").is_file(), "where transformers does not look"
    kinds = [CODEBOOK, scheme.kind]
    loaded = quant.load(folder, levels=kinds)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)
    for name, weight in quant.load_weights(folder, levels=kinds).items():
        assert torch.equal(weight.codes, weights[name].codes)
        assert torch.equal(weight.dequantize(), weights[name].dequantize())
        assert list(weight.grid) == list(weights[name].grid)
        assert (weight.group_index is not None) == scattered
    checkpoint, found = quant.checkpoint.read_scheme(folder, kinds)
    assert found == scheme
    assert checkpoint.name == "Bitsweep"
    again = quant.export(folder, tmp_path / "b", "bitsweep", levels=kinds)
    files = [load_file(each / "bitsweep.safetensors") for each in (folder, again.folder)]
    assert {k: v.float().tolist() for k, v in files[0].items()} == {
        k: v.float().tolist() for k, v in files[1].items()
    }
    assert again.notes[0].startswith(f"only Bitsweep reads {scheme.kind.name} levels")
    with ArtifactSource(folder, levels=kinds) as source:
        assert len(source.blocks) == 2


def test_scales_may_have_both_signs_beside_zero_points(tmp_path: Path) -> None:
    """Only uniform levels say otherwise, however the buffers of others are called."""
    table, scale = SCALED_CODEBOOK.tensors

    def find(*given: object) -> dict[str, torch.Tensor]:
        found = SCALED_CODEBOOK.find(*given)
        return {**found, "scale": -found["scale"]}

    tensors = (replace(table, buffer="qzeros"), scale)
    model, weights = rounded(
        Scheme(3, 16, levels=replace(SCALED_CODEBOOK, find=find, tensors=tensors))
    )
    folder = quant.save(tmp_path / "a", model, weights, method=METHOD)
    loaded = quant.load(folder, levels=[next(iter(weights.values())).scheme.kind])
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, weights = rounded(SCHEMES[3])
    return quant.save(tmp_path_factory.mktemp("a") / "a", model, weights, method=METHOD)


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        if file.name != MANIFEST:
            (to / file.name).write_bytes(file.read_bytes())
    return to


def test_no_code_is_imported_because_a_checkpoint_names_it(folder: Path, tmp_path: Path) -> None:
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert said["levels_module"] == "tests.quant.wide_levels"
    broken = copy(folder, tmp_path / "a")
    edit_config(lambda c: c["quantization_config"].update(levels_module="nobody.has.this"))(broken)
    for levels in ([], [CODEBOOK], ["uniform"]):
        with pytest.raises(ArtifactError, match=r"levels='scaled' are not .* 'nobody.has.this'"):
            quant.load(broken, levels=levels, verify_files=False)
    assert quant.load(broken, levels=[SCHEMES[3].kind], verify_files=False)
    other = replace(SCHEMES[3].kind, decode=lambda *given: 2 * given[0])
    with pytest.raises(ArtifactError, match="levels='scaled' is the name of 2 of the given kinds"):
        quant.load(broken, levels=[other, SCHEMES[3].kind], verify_files=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 2}, "version=2 cannot be read; only 1 can"),
        ({"levels": None}, "levels=None cannot be read; use a name"),
        ({"scale_dtype": "int8"}, "scale_dtype='int8' cannot be read"),
        ({"sym": None}, "sym=None cannot be read"),
        ({"sym": True}, "is not a valid scheme: codebooks of a row"),
        ({"tensors": []}, "tensors are not those that the scaled levels"),
        ({"levels_version": 2}, "levels_version=2, but the scaled levels of this reader are versi"),
        ({"bits": 2}, "qweight is"),
    ],
)
def test_a_configuration_that_is_wrong_is_named(
    change: dict[str, object], sentence: str, folder: Path, tmp_path: Path
) -> None:
    broken = copy(folder, tmp_path / "a")
    edit_config(lambda c: c["quantization_config"].update(change))(broken)
    with pytest.raises(ArtifactError, match=sentence):
        quant.load(broken, levels=[SCHEMES[3].kind], verify_files=False)


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("scales", lambda t: t * torch.nan, "scales has NaN or infinite"),
        ("scales", lambda t: t.float(), "scales is torch.float32; expected torch.float16"),
        ("tables", lambda t: t[:, 1:].clone(), "tables is"),
        ("tables", None, "tables is missing"),
        ("qweight", lambda t: t | -1, "qweight holds code 7; scb3g16 has 0 to 6"),
    ],
)
def test_tensors_that_are_damaged_are_named(
    part: str, change: object, sentence: str, folder: Path, tmp_path: Path
) -> None:
    broken = copy(folder, tmp_path / "a")
    tensors = load_file(broken / "bitsweep.safetensors")
    name = f"model.layers.0.self_attn.q_proj.{part}"
    tensor = tensors.pop(name)
    if callable(change):
        tensors[name] = change(tensor)
    save_file(tensors, broken / "bitsweep.safetensors")
    with pytest.raises(ArtifactError, match=sentence):
        quant.load(broken, levels=[SCHEMES[3].kind], verify_files=False)


def test_levels_that_others_hold_are_not_for_it() -> None:
    for scheme in (Scheme(4), Scheme(2, levels="ternary")):
        assert artifact_format(scheme)[0].name != "bitsweep"
    for scheme in SCHEMES:
        assert artifact_format(scheme)[0].name == "bitsweep"


def test_a_quantization_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    scheme, left = SCHEMES[0], [7 * (BLOCKS - 1)]
    tiny_model("llama").save_pretrained(tmp_path / "model")

    def solve(*given: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return rtn.solve(*given)  # type: ignore[arg-type]

    solver = replace(rtn.SOLVER, solve=solve)
    config = QuantizationConfig(solver, scheme)

    def make(target: Path) -> quant.calibrate.stream.QuantizationResult:
        with CheckpointSource(tmp_path / "model", torch.float32, "cpu") as source:
            return quantize_to(target, source, [], config, model_hash="m", method=METHOD)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a")
    left[0] = 10**6
    assert make(tmp_path / "a").resumed >= 1
    assert make(tmp_path / "b").resumed == 0
    found = [load_files(tmp_path / each) for each in ("a", "b")]
    assert found[0] == found[1]
    with CheckpointSource(tmp_path / "model", torch.float32, "cpu") as source:
        needed = artifact_bytes(source, scheme)
    size = sum(len(content) for content in found[0].values())
    assert 0 < needed - size < 1_000_000, "slack alone"


def load_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("scheme", "format", "fitting"),
    [
        (SCHEMES[0], "bitsweep-ternary", "bitsweep"),
        (Scheme(4), "bitsweep-ternary", "gptq-v2"),
        (Scheme(4), "bitsweep", "gptq-v2"),
        (Scheme(2, levels="ternary"), "bitsweep", "bitsweep-ternary"),
    ],
)
def test_who_does_not_hold_levels_says_who_does(scheme: Scheme, format: str, fitting: str) -> None:
    said = written_format(format)[1].refuses(scheme, None)
    assert said is not None
    assert re.search(rf"export to {fitting}[.,]", said)
    assert written_format(fitting)[1].refuses(scheme, None) is None
