"""`bitsweep audit FILE.gguf`: table, record, page, and what is refused before anything is made."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from quant.checkpoint.gguf.unpack import unpack
from tests.quant.checkpoint.gguf_files import llama, write

Made = dict[str, Path]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of our own for models alone: compiled kernels stay where they are."""
    monkeypatch.setattr("harness.models.gguf.cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A base as a folder and as a file, a text, and the base in 4 bits."""
    folder = tmp_path_factory.mktemp("gguf")
    text = folder / "text.txt"
    text.write_text("".join(f"the cat sat {n} and {n * n}. " for n in range(2000)))
    file = write(folder / "base.gguf", llama())
    noted: dict[str, Any] = {"quantize__imatrix__file": "imatrix.dat"}
    return {
        "text": text, "file": file, "folder": unpack(file, folder / "base"),
        "q4": write(folder / "m.Q4_0.gguf", llama(), "Q4_0", **noted),
    }  # fmt: skip


def run(made: Made, checkpoint: Path, base: Path, results: Path, *more: str) -> int:
    words = ["--base", str(base), "--calib", "text", "--text", str(made["text"])]
    words += ["--sequences", "8", "--length", "32", "--results", str(results), *more]
    return cli.main(["audit", str(checkpoint), *words])


def record_in(results: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (path,) = results.glob("cells/*/audit-*.json")
    lines = path.with_suffix(".samples.jsonl").read_text().splitlines()
    return json.loads(path.read_text()), [json.loads(line) for line in lines]


def test_a_file_is_audited(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A type claims no method, so that rounding contradicts nothing."""
    more = ["--evaluate", "text", "--evaluate-text", str(made["text"])]
    assert run(made, made["q4"], made["folder"], tmp_path / "one", *more) == cli.OK
    said = capsys.readouterr().out
    assert "this layer is RTN" in said
    assert "an importance matrix weighted the choice of grids (file imatrix.dat)" in said
    record, layers = record_in(tmp_path / "one")
    assert {each["scheme"] for each in layers} == {"Q4_0"}
    assert len(layers) == 14
    figures = {each["name"]: each for each in record["metrics"]}
    assert figures["layers"]["notes"]["types"] == "Q4_0 100%"
    assert figures["error"]["n"] == 14
    assert 0 < figures["error"]["value"] < 0.05
    assert figures["resolved_kl_divergence"]["value"] < figures["kl_divergence"]["value"]
    (page,) = (tmp_path / "one").glob("reports/audit-*/audit.html")
    assert "GGUF, Q4_0 100%;\nits files name no method" in page.read_text()
    # The same file as a base, and the same record when it is asked again.
    assert run(made, made["q4"], made["file"], tmp_path / "two") == cli.OK
    _, again = record_in(tmp_path / "two")
    assert [each["error"] for each in again] == [each["error"] for each in layers]
    assert run(made, made["q4"], made["file"], tmp_path / "two") == cli.OK
    assert "0 stages run, 1 found finished" in capsys.readouterr().err


def test_a_file_that_names_a_method_is_held_to_it(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bitsweep notes the method in files that it writes; here the codes are rounded."""
    noted: dict[str, Any] = {"bitsweep__method": json.dumps({"method": {"name": "gptq"}})}
    file = write(tmp_path / "claims.gguf", llama(), "Q4_0", **noted)
    assert run(made, file, made["folder"], tmp_path / "results") == 3
    assert "name gptq, but 14 of 14 layers are plain rounding" in capsys.readouterr().err


def test_the_suite_audits_a_file_that_has_a_base(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=local", f"model.path={made['q4']}", "method=none", "scheme=w16", "suite=audit"]
    words += ["calib=text", f"calib.path={made['text']}", "calib.sequences=8", "calib.length=32"]
    words += [f"paths.results={tmp_path}"]
    assert cli.main(["run", *words]) == cli.IMPOSSIBLE
    assert "suite.audit.base is missing" in capsys.readouterr().err
    assert cli.main(["run", *words, f"suite.audit.base={made['folder']}"]) == cli.OK
    said = capsys.readouterr().out
    assert "14 this layer is RTN" in said
    assert "KL" not in said, "columns of what was not measured"


@pytest.mark.parametrize(
    ("checkpoint", "base", "sentence"),
    [
        ("q4", "q4", "is quantized itself (it has Q4_0): name a file of F32, F16, BF16"),
        ("file", "folder", "is not quantized: all of its weights are of F32"),
        ("cut", "folder", "cannot be read as GGUF (blk.1.ffn_up.weight ends at byte"),
        ("q4", "other", "blk.0.ffn_gate.weight of shape [96, 64], and model.layers.0.mlp.gate_"),
    ],
)
def test_what_is_impossible_is_one_sentence(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path,
    checkpoint: str, base: str, sentence: str,
) -> None:  # fmt: skip
    import gguf
    from transformers import LlamaForCausalLM

    places = {**made, "cut": tmp_path / "cut.gguf", "other": tmp_path / "other"}
    tensors = {each.name: each for each in gguf.GGUFReader(made["q4"]).tensors}
    end = int(tensors["blk.1.ffn_up.weight"].data_offset) + 100
    places["cut"].write_bytes(made["q4"].read_bytes()[:end])
    config = llama().config
    config.intermediate_size = 128
    LlamaForCausalLM(config).save_pretrained(places["other"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (places["other"] / name).write_bytes((made["folder"] / name).read_bytes())
    capsys.readouterr()
    assert run(made, places[checkpoint], places[base], tmp_path / "results") == cli.IMPOSSIBLE
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert said.count("\n") == 0
    assert not (tmp_path / "results").exists()
    assert not list(cache.glob("models/*/config.json"))
