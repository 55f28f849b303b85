"""`bitsweep audit` on checkpoints whose making is known: status, table, page."""

import json
import re
import shutil

import pytest

from harness import cli
from tests.harness.tiny import save_tiny_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, a text, and what GPTQ and RTN make of the base."""
    import bitsweep

    folder = tmp_path_factory.mktemp("audit")
    base = save_tiny_model(folder / "base")
    text = folder / "text.txt"
    text.write_text("".join(f"Tom saw {n} dogs and {n * n} cats. " for n in range(2000)))
    found = {"base": base, "text": text}
    for method in ("gptq", "rtn"):
        found[method] = folder / method
        calibration = text if method == "gptq" else None
        bitsweep.quantize(
            base, "w3g16", calibration, out=found[method], method=method, sequences=16, length=32
        )
    return found


def run(made, checkpoint, results, *more):
    words = ["--base", str(made["base"]), "--calib", "text", "--text", str(made["text"])]
    words += ["--sequences", "16", "--length", "32", "--results", str(results), *more]
    return cli.main(["audit", str(checkpoint), *words])


def page_of(results):
    (file,) = results.glob("reports/audit-*/audit.html")
    return file.read_text()


def test_a_solved_checkpoint_is_as_good_as_the_solver(made, tmp_path, capsys):
    assert run(made, made["gptq"], tmp_path) == cli.OK
    said = capsys.readouterr().out
    assert "as good as the solver" in said
    assert "this layer is RTN" not in said
    assert "If solved" not in said  # no such columns
    page = page_of(tmp_path)
    assert page.count('<td class="word good">as good as the solver</td>') == 12
    assert "name the method <b>gptq</b>" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing from the network
    (record,) = tmp_path.glob("cells/*/audit-*.json")
    found = json.loads(record.read_text())
    gain = next(each for each in found["metrics"] if each["name"] == "gain")
    assert gain["value"] > 0.8
    assert gain["n"] == 12
    lines = record.with_suffix(".samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["block"] for line in lines] == [0] * 6 + [1] * 6
    # The record is found again: nothing is audited twice.
    assert run(made, made["gptq"], tmp_path) == cli.OK
    assert "0 stages run, 1 found finished" in capsys.readouterr().err
    assert page_of(tmp_path) == page


def test_an_honest_rtn_checkpoint_contradicts_nothing(made, tmp_path, capsys):
    assert run(made, made["rtn"], tmp_path) == cli.OK
    assert "this layer is RTN" in capsys.readouterr().out


def test_the_whole_is_compared_with_what_the_solver_would_have_made(made, tmp_path):
    more = ["--evaluate", "text", "--evaluate-text", str(made["text"])]
    for method in ("rtn", "gptq"):
        assert run(made, made[method], tmp_path / method, *more) == cli.OK
    found = {}
    for method in ("rtn", "gptq"):
        (record,) = (tmp_path / method).glob("cells/*/audit-*.json")
        figures = {m["name"]: m for m in json.loads(record.read_text())["metrics"]}
        found[method] = {name: each["value"] for name, each in figures.items()}
        assert figures["kl_divergence"]["notes"]["of"] == "base || checkpoint"
        assert 0 <= found[method]["resolved_top1_flip_rate"] <= 1
    # A solver on this text leaves less than rounding does, and nothing to a solved checkpoint.
    assert found["rtn"]["resolved_kl_divergence"] < 0.9 * found["rtn"]["kl_divergence"]
    one, other = (found["gptq"][f"{name}kl_divergence"] for name in ("", "resolved_"))
    assert one == pytest.approx(other, rel=0.15)


def test_rtn_under_the_name_of_gptq_is_status_3(made, tmp_path, capsys):
    folder = tmp_path / "pretends"
    shutil.copytree(made["rtn"], folder)
    (folder / "artifact.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["meta"] = {"quantizer": "someone:1.0"}
    config["quantization_config"].pop("provider", None)
    (folder / "config.json").write_text(json.dumps(config))
    assert run(made, folder, tmp_path / "results") == 3
    said = capsys.readouterr().err
    assert re.search(r"name gptq, but 12 of 12 layers are plain rounding: \S+q_proj", said)
    assert "although\nthe files name gptq" in page_of(tmp_path / "results")


def test_another_base_is_seen(made, tmp_path, capsys):
    import torch
    from transformers import AutoModelForCausalLM

    other = tmp_path / "other"
    shutil.copytree(made["base"], other)
    model = AutoModelForCausalLM.from_pretrained(other, trust_remote_code=False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(other)
    assert run({**made, "base": other}, made["gptq"], tmp_path / "results") == cli.OK
    assert "not this base" in capsys.readouterr().out
    assert "embed_tokens.weight (100 %)" in page_of(tmp_path / "results")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--base": "nowhere/at/all"}, "nowhere/at/all"),
        ({"--base": "./nowhere"}, "--base ./nowhere is not a folder"),
        ({"--calib": "none"}, "needs a text for its Hessians"),
        ({"--text": "missing.txt"}, "missing.txt"),
        ({"--length": "4096"}, "windows of 4096 tokens (calib.length, --length) are longer than"),
    ],
)
def test_what_is_impossible_is_one_sentence(made, tmp_path, capsys, change, sentence):
    words = {"--base": str(made["base"]), "--calib": "text", "--text": str(made["text"])} | change
    words = {"--length": "32"} | words
    more = [word for pair in words.items() for word in pair]
    assert cli.main(["audit", str(made["gptq"]), *more, "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert said.count("\n") == 0


def test_a_checkpoint_that_is_not_there_is_named(made, tmp_path, capsys):
    assert run(made, tmp_path / "nowhere", tmp_path) == 2
    said = capsys.readouterr().err
    assert f"there is no checkpoint {tmp_path / 'nowhere'}: name the folder of a quantized" in said


def test_a_model_that_is_not_quantized_is_refused(made, tmp_path, capsys):
    assert run(made, made["base"], tmp_path) == 2
    assert "is not quantized: its config.json has no quantization_config" in capsys.readouterr().err


def test_the_suite_audits_what_a_sweep_quantizes(made, tmp_path, capsys):
    words = ["model=local", f"model.path={made['base']}", "model.name=tiny", "suite=audit"]
    words += ["calib=text", f"calib.path={made['text']}", "calib.sequences=16", "calib.length=32"]
    words += [f"paths.results={tmp_path}", "method=none", "scheme=w16"]
    assert cli.main(["run", *words]) == cli.OK  # full precision has nothing to audit
    said = [*words[:-2], "method=rtn", "scheme=w4g16"]
    assert cli.main(["run", *said]) == cli.OK
    assert "12 this layer is RTN" in capsys.readouterr().out


def test_a_checkpoint_from_elsewhere_needs_a_base(made, tmp_path, capsys):
    words = ["model=local", f"model.path={made['gptq']}", "method=none", "scheme=w16"]
    words += [
        "suite=audit",
        "calib=text",
        f"calib.path={made['text']}",
        f"paths.results={tmp_path}",
    ]
    assert cli.main(["plan", *words]) == 2
    assert "suite.audit.base is missing" in capsys.readouterr().err
