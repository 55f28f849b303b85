"""The decode benchmark: runs with torch and transformers alone, and says what does not fit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import decode
from quant.measure import dummy

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "model_type": "opt",
    "hidden_size": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 64,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
BARE = """
import sys
HIDDEN = {"accelerate", "antlr4", "datasets", "hydra", "lm_eval", "matplotlib", "omegaconf",
          "pandas", "psutil", "pydantic", "rich", "wandb"}

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in HIDDEN
        return None if hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
from benchmarks.decode import main
status = main(sys.argv[1:])
found = sorted(HIDDEN & {name.split(".")[0] for name in sys.modules})
sys.exit(f"imported although hidden: {found}" if found else status)
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TINY))
    return str(file)


def arguments(tiny: str, *more: str) -> list[str]:
    small = ["--prompt", "4", "--tokens", "3", "--repeats", "2", "--group", "32"]
    return ["--architecture", tiny, "--device", "cpu", *small, *more]


def test_runs_with_torch_and_transformers_alone(tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    completed = subprocess.run(
        [sys.executable, "-c", BARE, *arguments(tiny, "--bits", "16,4,3", "--json", str(out))],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
    (kept,) = json.loads(out.read_text())["runs"]
    assert [row["bits"] for row in kept["rows"]] == [16, 4, 3]
    assert [row["scheme"] for row in kept["rows"]] == ["float32", "w4g32", "w3g32"]
    full, four, three = kept["rows"]
    assert full["speedup"] == 1.0
    assert four["speedup"] == pytest.approx(full["ms_per_token"] / four["ms_per_token"])
    assert three["bytes_per_token"] <= four["bytes_per_token"] < full["bytes_per_token"]
    for row in kept["rows"]:
        assert row["mode"] == "fused step"
        assert 0 < row["p10_ms"] <= row["ms_per_token"] <= row["p90_ms"]
        seconds, bandwidth = row["ms_per_token"] / 1e3, row["read_gb_per_s"] * 1e9
        assert row["roofline_share"] == pytest.approx(row["bytes_per_token"] / seconds / bandwidth)
    assert str(ROOT) not in out.read_text()
    assert kept["not_measured"] == {}


def test_what_does_not_fit_is_said_and_the_rest_is_measured(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = decode._settings(decode._parser().parse_args(arguments(tiny)), tiny)
    needs = decode.plan(settings, [16, 2])
    cache = decode.kv_bytes(dummy_config(tiny), settings)
    room = needs[2].model + needs[2].transient + cache
    assert room < needs[16].model
    monkeypatch.setattr(dummy, "free_memory", lambda device: int(room / 0.98) + 1)
    out = tmp_path / "out.json"
    assert decode.main(arguments(tiny, "--bits", "16,2", "--json", str(out))) == 1
    assert "16 bits: not measured on this machine: OPTForCausalLM needs" in capsys.readouterr().err
    (kept,) = json.loads(out.read_text())["runs"]
    assert [row["bits"] for row in kept["rows"]] == [2]
    assert kept["rows"][0]["speedup"] is None
    assert "are free" in kept["not_measured"]["16"]


def dummy_config(tiny: str):
    from quant.measure.architectures import architecture_config

    return architecture_config(tiny)


def test_the_papers_figures_stand_beside() -> None:
    text = decode.describe([], "opt-66b")
    assert "130.000" in text
    assert "4.53x" in text
    assert "3.24x" in text
    assert decode.describe([], "llama-7b").count("\n") == 0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--bits", "9"], "bits=9 is not a bit width"),
        (["--bits", "four"], "invalid literal"),
        (["--tokens", "0"], "at least 1"),
        (["--tokens", "1", "--repeats", "1"], "at least 2"),
        (["--kernel", "cuda"], "kernel='cuda' is not available"),
        (["--architecture", "opt-3b"], "architecture=opt-3b is neither a name"),
    ],
)
def test_wrong_command_lines(tiny: str, more, sentence, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        decode.main([*arguments(tiny), *more])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_memory_of_the_runs_that_are_planned_for_one_gpu_of_139_gib() -> None:
    options = ["--device", "cpu", "--dtype", "float16", "--kernel", "reference"]
    runs = [(name, width) for name, bits in decode.DEFAULT_RUNS for width in decode._widths(bits)]
    assert runs == [("opt-66b", 16), ("opt-66b", 4), ("opt-66b", 3), ("opt-175b", 3)]
    for architecture, bits in runs:
        parsed = decode._parser().parse_args(options)
        settings = decode._settings(parsed, architecture)
        need = decode.plan(settings, [bits])[bits]
        config = dummy_config(architecture)
        total = need.model + need.transient + decode.kv_bytes(config, settings) + decode.WORKSPACE
        assert total < 139 * dummy.GIB * (1 - dummy.MARGIN), (architecture, bits)


def test_without_arguments_the_large_sizes_are_tried_and_refused_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(dummy, "free_memory", lambda device: 2**30)
    out = tmp_path / "out.json"
    assert decode.main(["--device", "cpu", "--dtype", "float16", "--json", str(out)]) == 1
    runs = json.loads(out.read_text())["runs"]
    assert [list(each["not_measured"]) for each in runs] == [["16", "4", "3"], ["3"]]
    assert "opt-175b, 3 bits: 65.77 GiB of weights" in capsys.readouterr().out
