"""The command of a cell makes the same cell again: composed, it has the keys of the records."""

import shlex
import subprocess
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.config.kept import cells_of
from harness.records.record import Record
from harness.records.store import load_records
from harness.report.command import command
from harness.run.launch import resolve_all

REFERENCE = Path(__file__).parents[3] / "results" / "reference"


def by_cell(folder: str) -> dict[str, list[Record]]:
    found = defaultdict(list)
    for record in load_records(REFERENCE / folder):
        found[f"{record.cell.method} {record.cell.scheme}"].append(record)
    return found


@pytest.mark.parametrize("name", ["none w16", "rtn w2g128", "gptq w3"])
def test_the_command_has_the_keys_of_the_records(name: str) -> None:
    records = by_cell("quickstart")[name]
    words = shlex.split(command(records))
    assert words[:2] == ["bitsweep", "run"]
    (cell,) = resolve_all(cells_of(words[2:], multirun=False))
    # A timing's key has the machine as well.
    expected = {each.suite: each.key for each in records if each.suite != "latency"}
    assert {stage: cell.keys.stages[stage] for stage in expected} == expected
    assert len(expected) >= 3


def test_a_model_with_a_file_of_its_own_is_named_by_it() -> None:
    said = command(by_cell("real-smollm2")["gptq w3g64"])
    assert " model=smollm2-135m-wheel " in said
    assert " calib=text calib.length=2048 calib.path=valid.txt " in said
    assert " suite.perplexity.paths.wikitext2=wiki.test.raw " in said


def test_other_models_are_named_by_where_they_are(made_up: SimpleNamespace) -> None:
    hub = {"model.source": "hub", "model.id": "org/own", "model.revision": "abc"}
    said = command([made_up.record(model="own", config=hub)])
    assert " model=hub model.id=org/own model.name=own model.revision=abc " in said
    local = command([made_up.record(model="own", config={"model.source": "local"})])
    assert " model=local model.path=FOLDER model.name=own " in local


@pytest.mark.parametrize(
    "name",
    [
        "a b; touch $HOME/`id`",
        'it\'s "so"',
        "Größe, 模型|x",
        "C:\\models\\a\\",
        "${seed} \\${seed}",
        "null",
        "!x #y ~z",
    ],
)
def test_a_name_survives_shell_and_hydra(made_up: SimpleNamespace, name: str) -> None:
    local = {"model.source": "local", "model.name": name}
    said = command([made_up.record(model=name, config=local)])
    words = subprocess.run(  # a real shell, which expands what shlex.split does not
        ["bash", "-c", f"printf '%s\\0' {said}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")[2:-1]
    (cell,) = cells_of([each for each in words if each.startswith("model")], multirun=False)
    assert cell.config.model.name == name


def test_a_calibration_of_another_name_is_chosen_by_its_protocol(made_up: SimpleNamespace) -> None:
    calib = {"name": "my code", "protocol": "text-calibration", "path": "code.txt"}
    own = {f"calib.{key}": value for key, value in calib.items()}
    said = command([made_up.record(method="gptq", config=own)])
    words = shlex.split(said)
    (cell,) = cells_of([each for each in words if each.startswith("calib")], multirun=False)
    assert {key: getattr(cell.config.calib, key) for key in calib} == calib


def test_parts_of_the_user_need_their_folder(made_up: SimpleNamespace) -> None:
    record = made_up.record(inputs={"code": "ab" * 32})
    assert command([record]).endswith(" --config-dir FOLDER")
