"""Files in the formats of others, held against the schemas and readers of these."""

import json
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries

from harness import cli
from harness.records.record import Failure
from harness.records.store import load_records
from harness.report.interchange import every_eval_ever, interchange_files

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "results" / "reference"
COMMIT = "b08601e04326c79dfdd32d625aee71d232d685c3"
WIKITEXT = f"Salesforce/wikitext@{COMMIT} wikitext-2-raw-v1/test-00000-of-00001.parquet"
# All that hub-docs' eval_results.yaml allows.
KEYS = {"dataset", "value", "verifyToken", "date", "source", "notes"}


@pytest.fixture(scope="module")
def schema():
    """The schema of Every Eval Ever, in the package of the project (which asks for Python 3.12)."""
    wheel = next((ROOT / "build" / "schemas").glob("every_eval_ever-*.whl"), None)
    if wheel is None:
        pytest.skip("no schema of Every Eval Ever here: `make schemas` brings it")
    with zipfile.ZipFile(wheel) as files:
        return json.loads(files.read("every_eval_ever/schemas/eval.schema.json"))


@pytest.fixture
def cell(made_up):
    """One quantized cell: a text and a task of the hub, times, and a failure."""
    text = made_up.perplexity(6.25, 0.05, task="wikitext2")
    text = text.model_copy(update={"notes": {"text": WIKITEXT, "windows": "141 of 2048"}})
    plain = made_up.accuracy("arc_easy", 0.5)
    plain = plain.model_copy(update={"notes": {"dataset": "allenai/ai2_arc@main ARC-Easy"}})
    normalised = plain.model_copy(update={"name": "acc_norm", "value": 0.48})
    make = made_up.record
    failure = Failure(stage="kernels", type="KernelUnavailable", message="no compiler.")
    return [
        make("gptq", "w4g128", metrics=[text], model="opt"),
        make("gptq", "w4g128", "zeroshot", metrics=[normalised, plain], model="opt"),
        make("gptq", "w4g128", "latency", metrics=made_up.latencies(5.0), model="opt"),
        make("gptq", "w4g128", "kernels", error=failure, model="opt"),
    ]


def made(records, kind: str) -> dict:
    files, _ = interchange_files(records)
    return {name: data.decode() for name, data in files.items() if kind in name}


def test_eval_results_are_what_the_hub_reads(cell) -> None:
    ((name, text),) = made(cell, "eval_results/").items()
    assert name.startswith("interchange/eval_results/opt-gptq-w4g128-s0-")
    written = yaml.safe_load(text)
    assert all(entry.keys() <= KEYS for entry in written)
    found = {entry.dataset_id: entry for entry in parse_eval_result_entries(written)}
    assert len(found) == len(written) == 2
    text_entry = found["Salesforce/wikitext"]
    assert isinstance(text_entry, EvalResultEntry)
    assert (text_entry.task_id, text_entry.value) == ("wikitext2", 6.25)
    assert text_entry.dataset_revision == COMMIT
    assert text_entry.notes == (
        "perplexity (ppl); GPTQ w4g128; 20480 tokens; standard error 0.05; windows 141 of 2048"
    )
    task = found["allenai/ai2_arc"]
    assert (task.task_id, task.value, task.dataset_revision) == ("ARC-Easy", 0.5, None)
    assert task.date == "2026-11-21T10:00:00+00:00"


def test_a_cell_without_data_of_the_hub_has_no_eval_results_and_it_is_said(made_up) -> None:
    files, said = interchange_files([made_up.record(metrics=[made_up.perplexity(5.0)])])
    assert not any("eval_results" in name for name in files)
    assert said == [
        "1 cell has no figure on a dataset of the hub, so there is no .eval_results file of them: "
        "the format asks for the dataset's id."
    ]


def test_every_eval_ever_validates_against_its_own_schema(cell, schema) -> None:
    ((name, text),) = made(cell, "every_eval_ever/").items()
    assert name.startswith("interchange/every_eval_ever/data/bitsweep/local/opt-gptq-w4g128/")
    record = json.loads(text)
    jsonschema.Draft7Validator(schema).validate(record)
    assert record["schema_version"] == schema["version"]
    details = record["model_info"]["additional_details"]
    assert details["quantization_method"] == "gptq"
    assert details["quantization_bits_per_weight"] == "4.16"
    assert details["quantization_scheme_bits"] == "4"
    assert details["quantization_calib_sequences"] == "64"
    assert details["base_model"] == "local/opt"
    results = {
        (each["evaluation_name"], each["metric_config"]["metric_id"]): each
        for each in record["evaluation_results"]
    }
    assert set(results) == {  # nothing of times, which are no evaluation
        ("wikitext2", "perplexity"),
        ("arc_easy", "accuracy"),
        ("arc_easy", "acc_norm"),
    }
    accuracy = results["arc_easy", "accuracy"]
    assert accuracy["score_details"]["score"] == 0.5
    assert accuracy["score_details"]["uncertainty"]["num_samples"] == 500
    assert accuracy["source_data"]["hf_repo"] == "allenai/ai2_arc"
    assert accuracy["metric_config"]["max_score"] == 1.0
    assert accuracy["metric_config"]["lower_is_better"] is False
    assert results["wikitext2", "perplexity"]["metric_config"]["max_score"] == "Infinity"
    command = record["source_metadata"]["additional_details"]["command"]
    assert command.startswith("bitsweep run ")


def test_a_wrong_record_would_be_refused_by_the_schema(cell, schema) -> None:
    figures = [(record, metric) for record in cell for metric in record.metrics]
    record = every_eval_ever(cell, figures)
    record["model_info"]["additional_details"]["quantization_bits"] = 4
    with pytest.raises(jsonschema.ValidationError, match="is not of type 'string'"):
        jsonschema.Draft7Validator(schema).validate(record)


@pytest.mark.parametrize("name", ["quickstart", "real-smollm2", "peers"])
def test_the_reference_records_validate_too(name, schema) -> None:
    records = load_records(REFERENCE / name)
    files, _ = interchange_files(records)
    cells = {record.cell_key for record in records}
    found = [json.loads(data) for path, data in files.items() if path.endswith(".json")]
    assert len(found) == len(cells)
    for record in found:
        jsonschema.Draft7Validator(schema).validate(record)
    assert files == interchange_files(list(reversed(records)))[0]


def test_the_newest_figure_counts_and_the_verb_writes_the_files(cell, tmp_path, capsys) -> None:
    newer = cell[0].metrics[0].model_copy(update={"value": 6.5})
    again = {"metrics": [newer], "started_at": "2026-11-22T10:00:00+00:00", "key": "f" * 64}
    folder = tmp_path / "cells" / "a"
    folder.mkdir(parents=True)
    for number, record in enumerate([*cell, cell[0].model_copy(update=again)]):
        (folder / f"{number}.json").write_text(record.model_dump_json())
    assert cli.main(["report", str(tmp_path), "--interchange"]) == cli.OK
    place = tmp_path / "reports" / "all" / "interchange"
    assert f"interchange: 2 files in {place}" in capsys.readouterr().out
    (file,) = place.rglob("*.yaml")
    assert {entry["value"] for entry in yaml.safe_load(file.read_text())} == {6.5, 0.5}
    assert cli.main(["report", str(tmp_path)]) == cli.OK  # without: none that are out of date
    assert list(place.rglob("*.json")) == []
