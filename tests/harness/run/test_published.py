"""What people publish names no place, person or machine; what only names a thing changes no key."""

import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from harness.config.schema import Cell, CellConfig
from harness.records.record import Record
from harness.records.store import load_records
from harness.run.events import Event, Failed, Finished
from harness.run.launch import run
from harness.run.stage import run_cell
from quant.checkpoint.folder import verify
from tests.harness.cells import cell_of, plan_of

Make = Callable[..., CellConfig]


@pytest.fixture
def without_clock(tiny_cell: Make) -> Make:
    """The same cells without the suite that takes time."""

    def make(*overrides: str) -> CellConfig:
        config = tiny_cell(*overrides)
        del config.suite["latency"]
        return config

    return make


def events_of(config: CellConfig) -> list[Event]:
    events: list[Event] = []
    run_cell(cell_of(config), events.append)
    return events


def test_a_run_in_an_odd_folder_leaves_no_place_in_its_files(
    without_clock: Make, tiny_model: Path, stories_file: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "an odd (place) ünd more"
    shutil.copytree(tiny_model, odd / "models" / "tiny")
    shutil.copy(stories_file, odd / "stories.txt")
    save_file({}, odd / "models" / "tiny" / "consolidated.safetensors")
    places = [
        f"model.path='{odd / 'models' / 'tiny'}'",
        f"calib.path='{odd / 'stories.txt'}'",
        f"suite.perplexity.paths.documents='{odd / 'stories.txt'}'",
        f"paths.results='{odd / 'results'}'",
    ]
    config = without_clock(*places, "method=gptq")
    assert run([Cell(config, tuple(places))]) == 0
    # A failure whose message names files, which change after the plan.
    broken = cell_of(without_clock(*places, "method=none", "scheme=w16"))
    weights = odd / "models" / "tiny" / "model.safetensors"
    tensors = load_file(weights)
    lost = tensors.pop(next(name for name in tensors if name.endswith("fc1.weight")))
    save_file({**tensors, "x": lost}, weights, {"format": "pt"})
    events: list[Event] = []
    run_cell(broken, events.append)
    (failure,) = [each for each in events if isinstance(each, Failed)]
    assert str(odd) in failure.message, "on the screen the place is needed"

    files = [file for file in (odd / "results").rglob("*") if file.is_file()]
    published = [file for file in files if file.suffix not in (".log", ".png")]
    assert {file.name for file in published} >= {"cells.yaml", "config.json", "artifact.json"}
    for file in published:
        content = file.read_bytes()
        for place in (odd, tmp_path, Path.home(), Path(__file__).parents[3]):
            assert str(place).encode() not in content, file
            assert place.name.encode() not in content or place != odd, file
        if len(platform.node()) > 3:
            assert platform.node().encode() not in content, file
    errors = [record.error.message for record in load_records(odd / "results") if record.error]
    assert any(message.startswith("<model>: the files hold no values for") for message in errors)
    made = next(r for r in load_records(odd / "results") if r.suite == "quantization")
    assert made.weights["unread"] == ["consolidated.safetensors"]
    assert "tied to" in made.weights["keys"]["lm_head.weight"]


def test_the_host_is_recorded_only_when_it_is_asked_for(without_clock: Make) -> None:
    only = ("method=none", "scheme=w16")
    for asked in (False, True):
        config = without_clock(*only, f"runtime.record_host={asked}", f"seed={int(asked)}")
        events_of(config)
        record = cell_of(config).find("perplexity")
        assert isinstance(record, Record)
        assert record.environment.get("host") == (platform.node() if asked else None)


def test_names_change_no_key(
    tiny_cell: Make, without_clock: Make, stories_file: Path, tmp_path: Path
) -> None:
    renamed_text = tmp_path / "other.txt"
    shutil.copy(stories_file, renamed_text)
    first = without_clock("method=gptq")
    other = without_clock(
        "method=gptq",
        "model.name=renamed",
        "calib.name=called-otherwise",
        f"calib.path={renamed_text}",
        f"suite.perplexity.paths.documents={renamed_text}",
    )
    assert cell_of(first).keys.cell == cell_of(other).keys.cell
    assert cell_of(first).keys.stages == cell_of(other).keys.stages
    assert {e.stage for e in events_of(first) if isinstance(e, Finished)} == {
        "quantization",
        "perplexity",
    }
    assert plan_of(other).todo == [], "nothing is quantized again"
    found = cell_of(other).find("perplexity")
    assert found is not None
    assert (found.cell.model, found.cell.calibration) == ("renamed", "called-otherwise")
    assert found.cell.bits_per_weight is not None
    artifact = cell_of(other).artifact
    assert artifact is not None
    assert verify(artifact)
    more = tiny_cell("method=gptq", "model.name=third")
    assert [e.stage for e in events_of(more) if isinstance(e, Finished) and not e.cached] == [
        "latency"
    ]
    assert len(list(Path(first.paths.results).glob("cells/*"))) == 1


@pytest.mark.parametrize("change", ["seed=1", "calib.sequences=3", "model.dtype=bfloat16"])
def test_what_decides_is_in_the_key(tiny_cell: Make, change: str) -> None:
    assert (
        cell_of(tiny_cell("method=gptq", change)).keys.cell
        != cell_of(tiny_cell("method=gptq")).keys.cell
    )
