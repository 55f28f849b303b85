"""Cells of model=dummy: random packed weights are timed, and nothing else is asked of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.compose import compose_cells
from harness.config.schema import CellConfig
from harness.errors import BitsweepError
from harness.models import dummy
from harness.run.events import Failed, Finished
from harness.run.stage import run_cell
from quant.errors import NotEnoughMemory
from quant.measure.architectures import ARCHITECTURES
from tests.harness.cells import cell_of, plan_of

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
Make = Callable[..., CellConfig]


@pytest.fixture
def architecture(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    return file


@pytest.fixture
def cell(architecture: Path, tmp_path: Path) -> Make:
    """cell("method=random", ...): a tiny dummy with the latency suite."""

    def make(*more: str) -> CellConfig:
        (found,) = compose_cells(
            [
                "model=dummy",
                f"model.architecture={architecture}",
                "model.name=tiny",
                "model.dtype=float32",
                "method=random",
                "scheme=w4",
                "suite=[latency]",
                "suite.latency.prompt_tokens=4",
                "suite.latency.decode_tokens=2",
                "suite.latency.warmup=1",
                "suite.latency.repeats=1",
                "tracker=none",
                f"paths.results={tmp_path / 'results'}",
                *more,
            ]
        )
        return found.config

    return make


def run(config: CellConfig) -> tuple[list[str], dict[str, str]]:
    """The stages that finished, and the messages of those that failed."""
    events: list[object] = []
    run_cell(cell_of(config), events.append)
    finished = [each.stage for each in events if isinstance(each, Finished)]
    return finished, {each.stage: each.message for each in events if isinstance(each, Failed)}


def test_packed_weights_are_timed_beside_full_precision(cell: Make, monkeypatch) -> None:
    # Else thousands of copies of tiny layers are made, so that no cache holds them.
    monkeypatch.setattr("harness.suites.timing_products.last_level_cache", lambda _: 2**16)
    config = cell(
        "suite=[latency,kernels]", "suite.kernels.batches=[1]", "suite.kernels.seconds=1e-3"
    )
    assert run(config) == (["latency", "kernels"], {})
    record = cell_of(config).find("latency")
    assert record is not None
    figures = {metric.name: metric.value for metric in record.metrics}
    assert figures["decode_speedup"] > 0
    assert figures["weight_bytes"] < figures["baseline_weight_bytes"]
    assert record.cell.method == "random"
    # q, k, v, output, gate and up have 64 inputs, down has 96; a scale and a zero-point a row
    narrow, wide = 64 * (64 + 32 + 32 + 64 + 96 + 96), 96 * 64
    bits = (narrow * (4 + 20 / 64) + wide * (4 + 20 / 96)) / (narrow + wide)
    assert record.cell.bits_per_weight == pytest.approx(bits)
    assert str(Path(config.paths.results).parent) not in record.model_dump_json()
    assert record.environment["kernel"] in ("cpu", "reference")
    assert plan_of(config).todo == []


def test_full_precision_of_a_dummy(cell: Make) -> None:
    config = cell("method=none", "scheme=w16")
    assert run(config) == (["latency"], {})
    record = cell_of(config).find("latency")
    assert record is not None
    assert record.cell.bits_per_weight is None
    assert "decode_speedup" not in {metric.name for metric in record.metrics}


def test_keys_follow_dimensions_and_seeds_and_not_the_file(
    cell: Make, architecture: Path, tmp_path: Path
) -> None:
    def key(*more: str) -> str:
        return cell_of(cell(*more)).keys.cell

    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(TINY))
    assert key(f"model.architecture={copy}") == key()
    assert key("seed=1") != key()
    assert key("scheme=w3") != key()
    copy.write_text(json.dumps(TINY | {"num_hidden_layers": 3}))
    assert key(f"model.architecture={copy}") != key()


def test_a_baseline_that_does_not_fit_is_said_in_the_record(cell: Make, monkeypatch) -> None:
    load = dummy.load

    def small(config, scheme, **place):
        if scheme is None:
            raise NotEnoughMemory("LlamaForCausalLM needs 122.40 GiB on cuda, and 30 are free")
        return load(config, scheme, **place)

    monkeypatch.setattr(dummy, "load", small)
    config = cell()
    assert run(config) == (["latency"], {})
    record = cell_of(config).find("latency")
    assert record is not None
    notes = {metric.name: metric.notes for metric in record.metrics}
    assert "needs 122.40 GiB" in notes["decode_ms"]["full-precision baseline"]


def test_a_model_that_does_not_fit_fails_with_figures(cell: Make, monkeypatch) -> None:
    monkeypatch.setattr("quant.measure.dummy.free_memory", lambda device: 2**20)
    finished, failed = run(cell())
    assert finished == []
    assert "LlamaForCausalLM needs 0." in failed["latency"]
    assert "0.00 GiB are free: use fewer bits" in failed["latency"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["suite=[perplexity,latency]"],
            "suite perplexity measures accuracy, and the weights of model=d",
        ),
        (["suite=[zeroshot,latency]"], "suite zeroshot measures accuracy"),
        (["suite=[divergence,latency]"], "suite divergence measures accuracy"),
        (["method=gptq"], "method=gptq needs weights to quantize, and model=dummy has none: use m"),
        (["method=rtn"], "method=rtn needs weights"),
        (["model.architecture=null"], "model=dummy needs an architecture"),
        (["model.architecture=opt-3b"], "model.architecture=opt-3b is neither a name"),
        (["suite.latency.prompt_tokens=64"], "a context of 64"),
        (["model=embedded"], "method=random makes random weights, but model=tiny has its own"),
        (["model=embedded", "method=rtn"], "architecture=.* applies to model=dummy only"),
        (["model.name=/a/b"], "model.name=/a/b is a path: add model.name=NAME"),
        (["method=none"], "method=none does not quantize"),
        (["suite=[latency,kernels]", "suite.kernels.batches=[]"], "suite.kernels.batches is empty"),
        (
            ["suite=[latency,kernels]", "suite.kernels.batches=[0]"],
            "suite.kernels.batches=0 is too small",
        ),
        (
            ["suite=[latency,kernels]", "suite.kernels.seconds=0"],
            "suite.kernels.seconds=0.0 leaves no time",
        ),
    ],
)
def test_what_cannot_be_asked_of_it(cell: Make, more: list[str], sentence: str) -> None:
    with pytest.raises(BitsweepError, match=sentence):
        cell_of(cell(*more))


@pytest.mark.parametrize("architecture", ["opt-3b", "null", "/nowhere/config.json"])
@pytest.mark.parametrize(
    "also_wrong",
    [
        ["method=gptq"],
        ["method=none"],
        ["suite=[perplexity,latency]"],
        ["model.name=/a/b"],
        ["scheme=w16"],
    ],
)
def test_a_wrong_architecture_is_said_first_with_all_names(
    cell: Make, architecture: str, also_wrong: list[str]
) -> None:
    with pytest.raises(BitsweepError) as refused:
        cell_of(cell(f"model.architecture={architecture}", *also_wrong))
    assert "architecture=" in str(refused.value)
    assert all(name in str(refused.value) for name in ARCHITECTURES)
