"""bitsweep.quantize against what a sweep makes, and what it refuses."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import bitsweep
from harness.records.store import weights_digest
from quant.blocks import linear_layers, weight_matrix
from quant.checkpoint.folder import CARD
from quant.solvers import rtn


@pytest.fixture(scope="module")
def cell(
    model_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[bitsweep.Record]:
    """The records of a GPTQ cell on a text file, and of an RTN cell."""
    results = tmp_path_factory.mktemp("sweep") / "results"
    return bitsweep.run(
        [
            "model=local",
            f"model.path={model_folder}",
            "method=gptq,rtn",
            "scheme=w3g16",
            "calib=text",
            f"calib.path={text_file}",
            "calib.sequences=4",
            "calib.length=32",
            "seed=1",
            "suite=perplexity",
            "suite.perplexity.protocols=[text]",
            f"suite.perplexity.paths.text={text_file}",
            f"paths.results={results}",
        ],
        quiet=True,
    )


def test_a_sweep_from_python_gives_the_records_of_all_cells(
    cell: list[bitsweep.Record], capfd: pytest.CaptureFixture[str]
) -> None:
    assert all(isinstance(record, bitsweep.Record) for record in cell)
    assert [(each.cell.method, each.suite, each.status) for each in cell] == [
        ("gptq", "quantization", "ok"),
        ("gptq", "perplexity", "ok"),
        ("rtn", "quantization", "ok"),
        ("rtn", "perplexity", "ok"),
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_folder_becomes_the_artifact_that_a_sweep_makes(
    method: str, cell: list[bitsweep.Record], model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    """Same codes, grids and other tensors, by the hash that the sweep's record holds."""
    result = bitsweep.quantize(
        model_folder, "w3g16", text_file,
        method=method, sequences=4, length=32, seed=1, out=tmp_path / "made",
    )  # fmt: skip
    (made,) = [e for e in cell if e.suite == "quantization" and e.cell.method == method]
    assert weights_digest(tmp_path / "made") == made.inputs["weights"]
    assert [layer.name for layer in result.layers] == [layer.name for layer in made.layers]
    assert (tmp_path / "made" / "tokenizer.json").is_file()


def test_the_card_has_the_call_that_makes_it_again(
    model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run where the model and the text are, by their last names."""
    first = tmp_path / "first"
    bitsweep.quantize(
        model_folder, "w3g16_sym", text_file, out=first, options={"act_order": True},
        sequences=2, length=32, seed=3,
    )  # fmt: skip
    (command,) = re.findall(r"^python -c \"(.*)\"$", (first / CARD).read_text(), re.MULTILINE)
    assert str(tmp_path) not in command
    place = tmp_path / "place"
    place.mkdir()
    (place / model_folder.name).symlink_to(model_folder)
    (place / text_file.name).symlink_to(text_file)
    monkeypatch.chdir(place)
    exec(command)
    assert (place / "OUT" / "artifact.json").read_bytes() == (first / "artifact.json").read_bytes()
    assert (place / "OUT" / CARD).read_text() == (first / CARD).read_text()
    again = tmp_path / "again"
    bitsweep.quantize(model_folder, "w4", method=rtn.SOLVER, out=again)
    assert "How to make it again" not in (again / CARD).read_text(), "a solver without a name"


def test_a_model_in_memory_is_changed_in_place_and_written(
    model_folder: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=False)
    seen: list[str] = []
    result = bitsweep.quantize(
        model,
        bitsweep.Scheme(4, group_size=16),
        [torch.arange(32) + shift for shift in range(3)],
        options={"act_order": True},
        out=tmp_path / "made",
        tokenizer=tokenizer,
        progress=lambda done, total, name: seen.append(name),
    )
    assert len(seen) == len(result.weights) == 12
    loaded = bitsweep.load(tmp_path / "made", dtype=torch.float32)
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4
        )
    assert bitsweep.inspect(tmp_path / "made").scattered == 12
    assert AutoTokenizer.from_pretrained(tmp_path / "made", trust_remote_code=False)


def test_without_out_the_weights_are_in_the_result_alone(model_folder: Path) -> None:
    result = bitsweep.quantize(model_folder, "w4", method="rtn")
    model = AutoModelForCausalLM.from_pretrained(model_folder, trust_remote_code=False)
    block = model.model.decoder.layers[1]
    for name, layer in linear_layers(block).items():
        stored = result.weights[f"model.decoder.layers.1.{name}"]
        expected = rtn.solve(weight_matrix(layer), stored.scheme, None, None).weight
        torch.testing.assert_close(stored.dequantize(), expected.dequantize(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "words"),
    [
        (["w9"], {}, bitsweep.SchemeError, "9 is not a bit width"),
        (["w4"], {}, bitsweep.QuantizationError, "there is no calibration window"),
        (["w4"], {"method": "gtpq"}, bitsweep.QuantizationError, "no module quant.solvers.gtpq"),
        (["w4"], {"options": {"damp": 1}}, bitsweep.QuantizationError, "no option 'damp': it has"),
        (["w4"], {"options": {"damping": -1}}, bitsweep.QuantizationError, "damping=-1"),
        (["w4"], {"transforms": ["turn"]}, bitsweep.QuantizationError, "quant.transforms.turn"),
        (["w4", "stories"], {}, bitsweep.BitsweepError, "calib=stories is not an option"),
        (["w4", Path("/no/text")], {}, bitsweep.BitsweepError, "/no/text"),
        (["w4", "embedded"], {"length": 100}, bitsweep.BitsweepError, "context is 64"),
        (["w4", "none"], {}, bitsweep.QuantizationError, "calibration='none' has no text"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    arguments: list, options: dict, kind: type[Exception], words: str, model_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(kind, match=words.replace(".", r"\.")) as caught:
        bitsweep.quantize(model_folder, *arguments, out=tmp_path / "made", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (Path("nowhere"), bitsweep.QuantizationError, "nowhere is not a folder"),
        ("./nowhere", bitsweep.QuantizationError, "nowhere is not a folder"),
        ("opt-125", bitsweep.BitsweepError, "did you mean"),
        ("dummy", bitsweep.BitsweepError, "dummy"),
    ],
)
def test_a_model_that_is_none_is_one_sentence(
    model: str | Path, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        bitsweep.quantize(model, "w4", method="rtn")


def test_a_model_in_memory_keeps_its_place_and_needs_a_tokenizer_for_text(
    model_folder: Path,
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, trust_remote_code=False)
    with pytest.raises(bitsweep.QuantizationError, match="its own device and dtype"):
        bitsweep.quantize(model, "w4", method="rtn", dtype=torch.float16)
    with pytest.raises(bitsweep.QuantizationError, match="add tokenizer="):
        bitsweep.quantize(model, "w4", "embedded")
