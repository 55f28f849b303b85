"""Checkpoints that are quantized already: as cells, and through `bitsweep export` and `inspect`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import quant
from harness import cli
from harness.config.schema import CellConfig
from harness.errors import ConfigError, ModelError
from harness.models.checkpoints import find_checkpoint
from harness.records.record import Record
from harness.run.events import Event, Failed
from harness.run.stage import run_cell
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.harness.cells import cell_of
from tests.quant.checkpoint.bnb_folders import rewrite as write_bitsandbytes
from tests.quant.checkpoint.fp4_folders import rewrite as write_fp4
from tests.quant.tiny_checkpoints import edit_config

Make = Callable[..., CellConfig]


@pytest.fixture(scope="module")
def checkpoints(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model, symmetric at 4 bits in groups of 16, as an artifact and in every format."""
    parent = tmp_path_factory.mktemp("checkpoints")
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    scheme = Scheme(4, group_size=16, symmetric=True)
    weights = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, scheme)).weights
    method = {"name": "rtn"}
    found = {
        "artifact": quant.save(parent / "a", model, weights, method=method, tokenizer=tiny_model)
    }
    for format in ("gptq-v1", "gptq-v2", "compressed-tensors"):
        found[format] = quant.export(found["artifact"], parent / format, format).folder
    return found


def loaded_cell(make: Make, folder: Path, *more: str, latency: bool = False) -> CellConfig:
    return make(f"model.path={folder}", "method=none", "scheme=w16", *more, latency=latency)


def measure(config: CellConfig, stage: str = "perplexity") -> Record:
    events: list[Event] = []
    run_cell(cell_of(config), events.append)
    assert not [event for event in events if isinstance(event, Failed)]
    record = cell_of(config).find(stage)
    assert record is not None
    return record


def test_a_checkpoint_measures_as_the_cell_that_made_it(
    tiny_cell: Make, checkpoints: dict[str, Path]
) -> None:
    made = measure(tiny_cell("scheme=w4", "scheme.group_size=16", "scheme.symmetric=true"))
    figures = {}
    for format, folder in checkpoints.items():
        record = measure(loaded_cell(tiny_cell, folder))
        # compressed-tensors stores the scales in the type of the model, float32.
        wide = format == "compressed-tensors"
        assert (record.cell.method, record.cell.scheme) == ("loaded", "w4g16_sym" + "_fp32" * wide)
        assert record.environment["kernel"] == made.environment["kernel"] != "torch"
        figures[format] = [(m.name, m.value) for m in record.metrics]
        stored = 4 + (36 if wide else 20) / 16
        assert record.cell.bits_per_weight == pytest.approx(stored)
    assert set(map(str, figures.values())) == {str([(m.name, m.value) for m in made.metrics])}


@pytest.mark.parametrize("format", ["gptq-v1", "gptq-v2", "compressed-tensors"])
def test_a_streamed_checkpoint_measures_as_the_whole_one(
    tiny_cell: Make, checkpoints: dict[str, Path], tmp_path: Path, format: str
) -> None:
    found = []
    for stream in ("never", "always"):
        record = measure(
            loaded_cell(
                tiny_cell, checkpoints[format], f"runtime.stream={stream}",
                f"paths.results={tmp_path / stream}",
            )
        )  # fmt: skip
        assert ("streamed" in record.environment) == (stream == "always")
        found.append((record.key, record.metrics, record.cell))
    assert found[0] == found[1]
    assert found[1][2].bits_per_weight is not None


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_bitsandbytes_is_measured_with_the_bits_of_its_files(
    tiny_model: Path, tiny_cell: Make, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / kind)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    layers = write_bitsandbytes(tmp_path / kind, plain, kind, nested=kind == "nf4")
    shutil.copytree(tiny_model, tmp_path / "plain")
    plain.save_pretrained(tmp_path / "plain")
    expected = measure(loaded_cell(tiny_cell, tmp_path / "plain"))
    held = 8 * sum(tensor.nbytes for stored in layers.values() for tensor in stored.values())
    count = sum(plain.get_submodule(name).weight.numel() for name in layers)
    for stream in ("never", "always"):
        options = (f"runtime.stream={stream}", f"paths.results={tmp_path / stream}")
        record = measure(loaded_cell(tiny_cell, tmp_path / kind, *options))
        assert record.cell.bits_per_weight == held / count
        assert record.cell.scheme == {"nf4": "nf4g64_fp32", "int8": "bnbint8_fp32"}[kind]
        said = record.config["checkpoint"]
        assert (said["format"], said["producer"]) == ("bitsandbytes", "bitsandbytes")
        for found, other in zip(record.metrics, expected.metrics, strict=True):
            assert found.value == pytest.approx(other.value, rel=1e-5)


def test_a_record_has_every_scheme_of_a_checkpoint(
    tiny_cell: Make, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """AutoRound's, with two layers of another scheme; the cell has that of the others."""
    folder = shutil.copytree(checkpoints["gptq-v2"], tmp_path / "mixed")
    (folder / "artifact.json").unlink()
    said = {
        "quant_method": "auto-round", "packing_format": "auto_round", "bits": 4, "group_size": 16,
        "sym": True, "extra_config": {".*fc2.*": {"sym": False}},
    }  # fmt: skip
    edit_config(lambda config: config.update(quantization_config=said))(folder)
    found = find_checkpoint(folder)
    assert found is not None
    assert found.label == "GPTQ v2, mixed precision"
    assert found.describe().startswith(
        "GPTQ v2, mixed precision, 10 layers w4g16_sym, 2 layers w4g16, producer auto-round"
    )
    record = measure(loaded_cell(tiny_cell, folder))
    assert record.cell.scheme == "w4g16_sym"
    assert record.config["checkpoint"]["schemes"] == found.mixture
    expected = measure(loaded_cell(tiny_cell, checkpoints["gptq-v2"]))
    for one, other in zip(record.metrics, expected.metrics, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-5)


def test_a_record_says_that_inputs_are_not_quantized(
    tiny_model: Path, tiny_cell: Make, tmp_path: Path
) -> None:
    """NVFP4 as it is often published: its producer quantizes inputs too, which is not done here."""
    shutil.copytree(tiny_model, tmp_path / "fp4")
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    write_fp4(tmp_path / "fp4", plain, "nvfp4", inputs_too=True)
    found = find_checkpoint(tmp_path / "fp4")
    assert found is not None
    assert found.label == "compressed-tensors FP4, weights alone"
    assert found.describe().endswith(
        "(inputs, which quantization_config quantizes too, are not quantized here)"
    )
    shutil.copytree(tiny_model, tmp_path / "plain")
    plain.save_pretrained(tmp_path / "plain")
    expected = measure(loaded_cell(tiny_cell, tmp_path / "plain"))
    record = measure(loaded_cell(tiny_cell, tmp_path / "fp4"))
    said = record.config["checkpoint"]
    assert (said["format"], said["evidence"]) == (found.label, found.evidence)
    assert record.cell.scheme == "nvfp4g16"
    for one, other in zip(record.metrics, expected.metrics, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-5)


def test_a_streamed_checkpoint_of_ragged_shapes_counts_every_layer(
    tiny_model: Path, tiny_cell: Make, tmp_path: Path
) -> None:
    """Per row, wide layers store fewer bits a weight than narrow ones: 32 and 64 inputs here."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    weights = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, Scheme(4))).weights
    folder = quant.save(tmp_path / "rows", model, weights, method={}, tokenizer=tiny_model)
    record = measure(loaded_cell(tiny_cell, folder, "runtime.stream=always"))
    # A block: four layers of 32 x 32, fc1 64 x 32, fc2 32 x 64; a row takes 16 + 4 bits beside.
    codes, rows = 4 * (4 * 32 * 32 + 2 * 64 * 32), 20 * (4 * 32 + 64 + 32)
    assert record.cell.bits_per_weight == pytest.approx((codes + rows) / (codes / 4))


def test_divergence_of_a_checkpoint_is_that_of_its_kernel_alone(
    tiny_cell: Make, checkpoints: dict[str, Path], stories_file: Path
) -> None:
    """No original is at hand, so nothing is said about the distance from it."""
    config = loaded_cell(
        tiny_cell, checkpoints["gptq-v1"], "suite=[perplexity_documents,latency,divergence]",
        "suite.divergence.protocols=[documents]", "suite.divergence.max_windows=2",
        f"suite.divergence.paths.documents={stories_file}",
    )  # fmt: skip
    record = measure(config, "divergence")
    names = {metric.name for metric in record.metrics}
    kernel = {"kernel_kl", "kernel_kl_p999", "kernel_kl_max", "kernel_top1_agreement"}
    assert names == kernel | {"kl_floor"}


def test_the_record_names_format_and_producer(
    tiny_cell: Make, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    config = loaded_cell(tiny_cell, checkpoints["gptq-v1"])
    record = measure(config)
    said = record.config["checkpoint"]
    assert said["format"] == "GPTQ v1"
    assert said["producer"].startswith("bitsweep ")
    assert said["zero_points"] == (
        "version 1 (stored minus one) declared, the symmetric ones confirm it"
    )
    assert said["baseline"] == "its own weights, dequantized"
    assert record.config["method"] == {"name": "loaded"}
    assert record.config["scheme"]["group_size"] == 16
    for file in Path(config.paths.results).glob("cells/*/*.json"):
        assert "/tmp" not in file.read_text()


def test_the_table_shows_scheme_and_bits(
    tiny_overrides: list[str],
    checkpoints: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = [f"model.path={checkpoints['gptq-v1']}", "method=none", "scheme=w16"]
    taken = tuple(each.partition("=")[0] + "=" for each in ours)
    request = [*(each for each in tiny_overrides if not each.startswith(taken)), *ours]
    assert cli.main(["plan", *request]) == cli.OK
    plan = capsys.readouterr().out
    assert "loaded" in plan
    assert "w4g16_sym" in plan
    assert f"{checkpoints['gptq-v1']}: GPTQ v1, w4g16_sym, producer bitsweep" in plan
    assert cli.main(["run", *request]) == cli.OK
    out, _ = capsys.readouterr()
    rows = [line for line in out.splitlines() if "loaded GPTQ v1" in line]
    assert len(rows) >= 2, "accuracy, and time and memory"
    assert all("w4g16_sym" in row and "5.25" in row for row in rows[:2])


def test_the_latency_baseline_has_the_dequantized_weights(
    tiny_cell: Make, checkpoints: dict[str, Path]
) -> None:
    config = loaded_cell(tiny_cell, checkpoints["gptq-v2"], "runtime.kernel=reference")
    cell = cell_of(config)
    packed, baseline = cell.model.load(cell.place), cell.model.baseline(cell.place)
    assert not [m for m in baseline.modules() if isinstance(m, quant.QuantLinear)]
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(packed(tokens).logits, baseline(tokens).logits)
    record = measure(loaded_cell(tiny_cell, checkpoints["gptq-v2"], latency=True), "latency")
    assert "decode_speedup" in {metric.name for metric in record.metrics}


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_nothing_is_quantized_twice(
    tiny_cell: Make, checkpoints: dict[str, Path], method: str
) -> None:
    config = tiny_cell(f"model.path={checkpoints['compressed-tensors']}", f"method={method}")
    message = (
        r"model=tiny is quantized already \(w4g16_sym_fp32, compressed-tensors, producer bitsweep"
    )
    with pytest.raises(ConfigError, match=rf"{message}.*use method=none scheme=w16"):
        cell_of(config)


def test_a_quantization_that_cannot_be_read(
    tiny_cell: Make, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "fp8"
    shutil.copytree(checkpoints["gptq-v1"], folder)
    change_config(folder, quant_method="fp8")
    with pytest.raises(ModelError, match="quant_method='fp8' cannot be read; only auto-round"):
        cell_of(loaded_cell(tiny_cell, folder))


def test_a_mix_up_of_versions_fails_with_its_name(
    tiny_cell: Make, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(checkpoints["gptq-v1"], folder)
    (folder / "artifact.json").unlink()
    change_config(folder, checkpoint_format="gptq_v2", meta={})
    events: list[Event] = []
    run_cell(cell_of(loaded_cell(tiny_cell, folder)), events.append)
    (failure,) = (event for event in events if isinstance(event, Failed))
    assert "set checkpoint_format to 'gptq'" in failure.message
    assert "qzeros holds 7 everywhere" in failure.message


def test_a_configuration_of_its_own_is_found_and_hashed(
    tiny_cell: Make, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """AutoGPTQ's quantize_config.json: it decides what the weights are, so it is in the keys."""
    folder = tmp_path / "early"
    shutil.copytree(checkpoints["gptq-v1"], folder)
    (folder / "artifact.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    said = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    own = {key: said[key] for key in ("bits", "group_size", "desc_act", "sym")}
    keys = set()
    for values in (own, {**own, "damp_percent": 0.1}):
        (folder / "quantize_config.json").write_text(json.dumps(values))
        cell = cell_of(loaded_cell(tiny_cell, folder))
        assert cell.identity.scheme == "w4g16_sym"
        keys.add(cell.keys.cell)
        assert cell.keys.semantic["checkpoint"]["zero_points"] == (
            "version 1 (stored minus one), found in the tensors: checkpoint_format not declared"
        )
        assert "stored as 7, the symmetric 8 in this" in cell.model.checkpoint.describe()
    assert len(keys) == 2


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(values)
    (folder / "config.json").write_text(json.dumps(config))


def test_full_precision_is_no_checkpoint(tiny_model: Path) -> None:
    assert find_checkpoint(tiny_model) is None


def test_export_and_inspect(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(checkpoints["artifact"]), str(out), "--format", "gptq-v1"]
    assert cli.main(arguments) == cli.OK
    assert f"{out}: 12 quantized layers in gptq-v1" in capsys.readouterr().out
    assert (out / "tokenizer.json").is_file()
    assert cli.main(["inspect", str(out)]) == cli.OK
    rows = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["format"] == "GPTQ v1"
    assert rows["scheme"] == "w4g16_sym, float16 scales"
    assert rows["bits per weight"] == "5.250"
    assert rows["layers"] == "12, 16,384 weights"
    assert "confirm" in rows["zero-points"]
    assert rows["files"] == "as artifact.json says"
    assert abs(float(rows["mean code - zero"].split()[0])) < 0.5


def test_export_says_what_readers_need_first(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["export", str(checkpoints["artifact"]), str(out), "--format", "awq"]) == cli.OK
    *notes, last = capsys.readouterr().out.splitlines()
    assert notes[0].startswith("note: transformers reads AWQ only with GPTQModel")
    assert all(note.startswith("note: ") for note in notes)
    assert last.startswith(f"{out}: 12 quantized layers in awq")


def test_export_does_not_overwrite_a_model_unasked(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    out = shutil.copytree(checkpoints["gptq-v1"], tmp_path / "out")
    before = contents(out)
    arguments = ["export", str(checkpoints["artifact"]), str(out), "--format"]
    assert cli.main([*arguments, "gptq-v2"]) == cli.IMPOSSIBLE
    said = capsys.readouterr().err
    assert said.startswith(
        f"bitsweep: {out} already contains a quantized model (GPTQ v1, 4 bits, by bitsweep "
    )
    assert "choose another folder, or add --overwrite" in said
    assert contents(out) == before
    # What cannot be exported costs nothing either, whatever was allowed.
    assert cli.main([*arguments, "gguf", "--overwrite"]) == cli.IMPOSSIBLE
    assert contents(out) == before
    assert cli.main([*arguments, "gptq-v2", "--overwrite"]) == cli.OK
    assert contents(out) == contents(checkpoints["gptq-v2"])
    assert list(tmp_path.iterdir()) == [out]
    # A model of somebody else's is never replaced.
    (out / "artifact.json").unlink()
    before = contents(out)
    assert cli.main([*arguments, "gptq-v1", "--overwrite"]) == cli.IMPOSSIBLE
    assert "is not an artifact written by Bitsweep" in capsys.readouterr().err
    assert contents(out) == before


def test_inspect_says_what_is_doubtful(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An asymmetric version 2 that calls itself version 1: every weight is off by one step."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    plan = QuantizationConfig(rtn.SOLVER, Scheme(4))
    weights = quantize_model(model, [], plan).weights
    next(iter(weights.values())).zero[:2] = 15  # read as version 1: 0
    folder = quant.save(tmp_path / "a", model, weights, method={}, tokenizer=tiny_model)
    (folder / "artifact.json").unlink()
    for version, centre in (("gptq_v2", 0), ("gptq", -1)):
        change_config(folder, checkpoint_format=version, meta={"producer": "somebody 1.0"})
        assert cli.main(["inspect", str(folder)]) == cli.OK
        rows = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
        assert abs(float(rows["mean code - zero"].split()[0]) - centre) < 0.25
        assert rows["producer"].strip() == "somebody 1.0"
        assert "declared, asymmetric: trusted" in rows["zero-points"]
        assert rows["files"].strip() == "no artifact.json to check them with"
        assert ("zero-points of 0" in rows) == (version == "gptq")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect"], "arguments are required: FOLDER; `bitsweep inspect --help` shows"),
        (["export", "/nowhere"], "arguments are required: OUT, --format; `bitsweep export --help`"),
        (["inspect", "/nowhere"], "is not a folder"),
        (["export", "/nowhere", "/tmp/out", "--format", "gptq-v1"], "is not a folder"),
        (["export", "/nowhere", "/tmp/out", "--format", "ggml"], "'ggml' is unknown; choose one"),
    ],
)
def test_wrong_requests_are_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == cli.IMPOSSIBLE
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_weights_that_are_stored_as_integers_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    """Cast to floating point they would be codes without scales."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "codes"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    tensors[name] = (tensors[name] * 100).int()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} is stored as integers \(I32\), but config.json"):
        find_checkpoint(folder)
