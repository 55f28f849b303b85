"""wandb as a sink: an offline run read back from its file, and failures that cost nothing."""

import importlib
import sys
import warnings

import pytest
from PIL import Image

from harness import tracking
from harness.config.schema import TrackerConfig
from harness.records.record import CellIdentity, Failure, LayerReport, Metric, Record
from tests.harness.wandb_files import read_run, read_table

OFFLINE = TrackerConfig(name="wandb")


def make_record(suite: str = "perplexity", **changes) -> Record:
    metric = Metric(
        name="perplexity",
        task="embedded_eval",
        value=5.93,
        unit="ppl",
        n=20480,
        n_unit="tokens",
        stderr=0.065,
    )
    fields = {
        "key": "f" * 64,
        "cell_key": "0123456789abcdef" * 4,
        "suite": suite,
        "status": "ok",
        "cell": CellIdentity(
            model="embedded",
            method="gptq",
            scheme="w3",
            calibration="embedded",
            seed=2,
            bits_per_weight=3.07,
        ),
        "metrics": [metric],
        "config": {"scheme": {"bits": 3}},
        "started_at": "2026-11-21T10:00:00+00:00",
        "seconds": 2.5,
    }
    return Record(**(fields | changes))


def make_cell() -> list[Record]:
    layer = LayerReport(
        name="layers.0.fc1",
        block=0,
        method="gptq",
        scheme="w3",
        outputs=1024,
        inputs=256,
        bits_per_weight=3.07,
        loss=0.625,
        weight_error=0.08,
        damping=0.01,
        dead_columns=0,
        tokens=8192,
        seconds=0.25,
    )
    timing = Metric(
        name="decode_ms",
        task="prompt64",
        value=14.25,
        unit="ms",
        n=48,
        n_unit="tokens",
        quantiles={"p10": 14.0, "p50": 14.25, "p90": 15.0},
    )
    failure = Failure(stage="zeroshot", type="ConfigError", message="no task named x")
    return [
        make_record(),
        make_record("quantization", metrics=[], layers=[layer]),
        make_record("latency", metrics=[timing]),
        make_record("zeroshot", metrics=[], status="failed", error=failure),
    ]


def test_an_offline_run_holds_configuration_figures_tables_and_plots(
    tmp_path, no_network, home, capfd
) -> None:
    records, results = make_cell(), tmp_path / "results"
    figure = tmp_path / "perplexity.png"
    Image.new("RGB", (8, 4), "red").save(figure)
    config = {"seed": 2, "model": {"name": "embedded"}, "method": {"damping": 0.01}}
    folder = tracking.log_cell(config, records, [figure], OFFLINE, results, group="quickstart")
    assert folder is not None
    stored = read_run(folder)
    assert stored.run.run_id == "0123456789ab"
    assert stored.run.display_name == "embedded-gptq-w3-s2"
    assert stored.run.run_group == "quickstart"
    assert stored.run.job_type == "cell"
    assert stored.run.project == "bitsweep"
    assert stored.config["seed"] == 2
    assert stored.config["model"]["name"] == "embedded"
    assert stored.config["method"]["damping"] == 0.01
    assert stored.summary["perplexity/embedded_eval/perplexity"] == 5.93
    assert stored.summary["perplexity/embedded_eval/perplexity/stderr"] == 0.065
    assert stored.summary["latency/prompt64/decode_ms"] == 14.25
    assert stored.summary["bits_per_weight"] == 3.07
    assert stored.summary["zeroshot/status"] == "failed"
    assert stored.summary["zeroshot/error"] == "ConfigError: no task named x"
    results_table = read_table(folder, stored.history["results"])
    assert results_table["columns"] == tracking.RESULT_COLUMNS
    assert ["perplexity", "embedded_eval", "perplexity", 5.93, 0.065] in [
        row[:5] for row in results_table["data"]
    ]
    layers = read_table(folder, stored.history["layers"])
    assert [row[:2] + row[5:6] for row in layers["data"]] == [["layers.0.fc1", 0, 0.625]]
    plot = stored.history["plots/perplexity"]
    assert plot["_type"] == "image-file"
    assert (folder / "files" / plot["path"]).read_bytes() == figure.read_bytes()
    assert capfd.readouterr() == ("", "")
    assert list(home.iterdir()) == []  # everything of wandb is inside results
    assert (results / "wandb" / "cache").is_dir()


def test_every_cell_of_a_sweep_is_a_run_of_its_own(tmp_path, no_network, home) -> None:
    folders = []
    for digit in "ab":
        record = make_record(cell_key=digit * 64)
        folders.append(tracking.log_cell({"seed": 0}, [record], [], OFFLINE, tmp_path))
    assert [read_run(folder).run.run_id for folder in folders] == ["a" * 12, "b" * 12]


def test_none_touches_nothing_and_does_not_import_wandb(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    settings = TrackerConfig(name="none")
    assert tracking.log_cell({}, make_cell(), [], settings, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_failing_tracker_is_a_warning_that_says_where_the_records_are(
    tmp_path, monkeypatch
) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.CommError("the service did not start")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.warns(tracking.TrackingWarning) as caught:
        assert tracking.log_cell({}, make_cell(), [], OFFLINE, tmp_path) is None
    (sentence,) = [str(warning.message) for warning in caught]
    assert "embedded-gptq-w3-s2" in sentence
    assert "the service did not start" in sentence
    assert str(tmp_path / "cells") in sentence
    assert "tracker=none" in sentence


def test_missing_wandb_and_a_folder_that_is_a_file_are_warnings(tmp_path, monkeypatch) -> None:
    blocked = tmp_path / "results"
    blocked.write_text("")
    with pytest.warns(tracking.TrackingWarning, match="records are safe in"):
        tracking.log_cell({}, make_cell(), [], OFFLINE, blocked)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(tracking.TrackingWarning, match="wandb"):
        tracking.log_cell({}, make_cell(), [], OFFLINE, tmp_path / "other")


def test_online_without_a_key_does_not_ask(tmp_path, no_network, home) -> None:
    settings = TrackerConfig(name="wandb", mode="online")
    with pytest.warns(tracking.TrackingWarning, match="needs an API key: run `wandb login`"):
        tracking.log_cell({}, make_cell(), [], settings, tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (TrackerConfig(name="mlflow"), "tracker=mlflow is unknown; choose one of none, wandb"),
        (TrackerConfig(name="wandb", mode="live"), "tracker.mode=live is unknown"),
    ],
)
def test_unknown_settings_are_errors(settings, sentence, tmp_path) -> None:
    with pytest.raises(ValueError, match=sentence):
        tracking.log_cell({}, make_cell(), [], settings, tmp_path)


def test_records_of_two_cells_are_refused(tmp_path) -> None:
    records = [make_record(), make_record(cell_key="b" * 64)]
    with pytest.raises(ValueError, match="of 2 cells"):
        tracking.log_cell({}, records, [], OFFLINE, tmp_path)


def test_variables_of_the_user_come_back(tmp_path, monkeypatch, no_network, home) -> None:
    monkeypatch.setenv("WANDB_CACHE_DIR", "mine")
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracking.log_cell({"seed": 0}, [make_record()], [], OFFLINE, tmp_path / "r")
    environment = importlib.import_module("os").environ
    assert environment["WANDB_CACHE_DIR"] == "mine"
    assert "WANDB_DATA_DIR" not in environment
