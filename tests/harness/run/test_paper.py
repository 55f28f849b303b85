"""The paper's experiments on the model that ships with the package; models that cannot be had."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from harness.config.compose import compose_cells
from harness.config.experiments import experiments
from harness.config.help import conf_dir
from harness.config.schema import Cell, CellConfig
from harness.embedded import MODEL_DIR
from harness.errors import Unavailable
from harness.records.record import QUANTIZATION
from harness.run import launch

Make = Callable[..., CellConfig]
FEW = {
    "perplexity": ["suite.perplexity.max_windows=2"],
    "zeroshot": ["suite.zeroshot.limit=4"],
    "latency": [
        "suite.latency.decode_tokens=2",
        "suite.latency.warmup=1",
        "suite.latency.repeats=1",
    ],
}
ALL = {each.name.removeprefix("paper/"): each for each in experiments()}
QUICK = (
    "table02_quantization_time",
    "table03_opt_wikitext2",
    "table06_latency",
    "table13_opt_lambada",
    "figure04_groups",
)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of options with model=short: two of the five blocks of the embedded model.

    GPTQ takes a second of processor time for a block, and there are a dozen cells.
    """
    folder, extra = tmp_path_factory.mktemp("short"), tmp_path_factory.mktemp("options")
    AutoModelForCausalLM.from_pretrained(MODEL_DIR, num_hidden_layers=2).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, folder)
    text = (conf_dir() / "model" / "embedded.yaml").read_text()
    text = text.replace("source: embedded", f"source: local\npath: {folder}")
    (extra / "model").mkdir()
    (extra / "model" / "short.yaml").write_text(text.replace("name: embedded", "name: short"))
    return extra


def run(name: str, folder: Path, *more: str, extra: Path | None = None) -> launch.Ran:
    """The experiment with little text, on this processor."""
    few = [override for suite in ALL[name].suites for override in FEW[suite]]
    cells = compose_cells(
        [
            f"experiment=paper/{name}",
            "runtime=cpu",
            "calib.sequences=4",
            f"paths.results={folder}",
            *few,
            *more,
        ],
        extra=extra,
    )
    return launch.run_cells(cells, quiet=True)


def check(name: str, ran: launch.Ran, folder: Path) -> None:
    assert ran.status == 0, ran.outcome
    assert {record.status for record in ran.records} == {"ok"}
    assert {record.suite for record in ran.records} >= set(ALL[name].suites)
    asked = {(cell.method, cell.scheme) for cell in ALL[name].cells}
    found = {(record.cell.method, record.cell.scheme) for record in ran.records}
    assert {scheme for _, scheme in found} == {scheme for _, scheme in asked}
    (report,) = (folder / "reports").iterdir()
    assert (report / "summary.md").is_file()


@pytest.mark.parametrize("name", QUICK)
def test_an_experiment_runs_on_two_blocks_of_the_embedded_model(
    name: str, short: Path, tmp_path: Path
) -> None:
    check(name, run(name, tmp_path, "model=short", "seed=0", extra=short), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(ALL))
def test_every_experiment_runs_on_the_embedded_model(name: str, tmp_path: Path) -> None:
    check(name, run(name, tmp_path, "model=embedded", "seed=0"), tmp_path)


def test_a_model_that_cannot_be_had_is_n_a_beside_the_others(
    tiny_cell: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tiny_cell("method=rtn", latency=False)
    gone = copy.deepcopy(here)
    gone.model.name, gone.model.unavailable = "gone", "nobody has it"
    cells = [Cell(here, ()), Cell(gone, ())]
    launch.show_plan(launch.resolve_all(cells))
    said = capsys.readouterr().out
    assert "model=gone is not available: nobody has it." in said
    assert "2 cells, 4 stages: 2 to run, 0 done, 2 n/a" in said
    ran = launch.run_cells(cells)
    assert ran.status == 0, "nobody can have it, so nothing failed"
    assert [(record.cell.model, record.suite, record.status) for record in ran.records] == [
        ("tiny", QUANTIZATION, "ok"),
        ("tiny", "perplexity", "ok"),
        ("gone", QUANTIZATION, "failed"),
        ("gone", "perplexity", "failed"),
    ]
    said = capsys.readouterr().out
    assert "n/a" in said
    assert "model=gone is not available: nobody has it." in said
    with pytest.raises(Unavailable, match="nobody has it"):
        launch.run_cells(cells[1:])


def test_a_model_that_is_not_here_now_makes_the_others_run_and_the_status_one(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    here = tiny_cell("method=none", "scheme=w16", latency=False)
    absent = copy.deepcopy(here)
    absent.model.name, absent.model.source = "absent", "hub"
    absent.model.path, absent.model.id = None, "somebody/absent"
    ran = launch.run_cells([Cell(here, ()), Cell(absent, ())], quiet=True)
    assert ran.status == 1
    (record,) = (record for record in ran.records if record.cell.model == "absent")
    assert record.error is not None
    assert "HF_HUB_OFFLINE is set" in record.error.message
