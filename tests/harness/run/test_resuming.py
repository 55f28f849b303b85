"""That a quantization goes on is told once, with the blocks that were really taken over."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from harness.run.events import Event, Resumed
from harness.run.resuming import Resuming
from harness.run.screen import Screen, duration

SECONDS = {"structure": 100.0, "capture": 50.0, "read": 20.0, "hessian": 3.0, "solve": 1.5}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Where three finished blocks of six layers wait for the next run."""
    blocks = tmp_path / ".model.partial" / "blocks"
    blocks.mkdir(parents=True)
    stages = [{"name": name, "seconds": seconds} for name, seconds in SECONDS.items()]
    for index in range(3):
        note = {"layers": [{"tokens": 96}] * 6, "stages": stages}
        (blocks / f"{index:05}.json").write_text(json.dumps(note))
    return tmp_path / "model"


def told(artifact: Path, steps: list[int], resumed: int) -> list[Event]:
    """The events of a run that counts these steps and says at its end what it took over."""
    events: list[Event] = []
    seen: list[int] = []
    resuming = Resuming(artifact, 5, events.append)
    step = resuming.watch(lambda done, total, what: seen.append(done))
    for done in steps:
        step(done, 30, "a layer")
    resuming.tell(resumed)
    assert seen == steps
    return events


@pytest.mark.parametrize("taken", [1, 2, 3])
def test_the_first_step_shows_how_many_blocks_were_taken_over(artifact: Path, taken: int) -> None:
    steps = list(range(6 * taken + 1, 31))
    assert told(artifact, steps, taken) == [Resumed("quantization", taken, 5, 4.5 * taken)]


def test_it_is_told_before_the_step(artifact: Path) -> None:
    events: list[object] = []
    resuming = Resuming(artifact, 5, events.append)
    resuming.watch(lambda done, total, what: events.append(done))(13, 30, "a layer")
    assert [type(event) for event in events] == [Resumed, int]


def test_what_was_thrown_away_is_not_told(artifact: Path) -> None:
    """Another version of the code: the run begins anew, and passes 7, 13 and 19 on its way."""
    assert told(artifact, list(range(1, 31)), 0) == []


def test_a_run_that_had_only_to_be_completed_tells_at_its_end(artifact: Path) -> None:
    assert told(artifact, [], 3) == [Resumed("quantization", 3, 5, 13.5)]


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"layers": 3, "stages": []}'])
def test_a_damaged_note_ends_what_is_known(artifact: Path, damage: str) -> None:
    (artifact.parent / ".model.partial/blocks/00001.json").write_text(damage)
    assert told(artifact, [7], 1) == [Resumed("quantization", 1, 5, 4.5)]
    assert told(artifact.with_name("other"), [1], 0) == []


def test_the_screen_says_it_in_a_line() -> None:
    console = Console(width=200)
    screen = Screen(console, [])
    screen._name = "[1/2] opt-gptq-w4-s0"
    with console.capture() as capture:
        screen.show(Resumed("quantization", 33, 96, 4321.0))
    assert capture.get().strip() == (
        "[1/2] opt-gptq-w4-s0 quantization continues after 33 of 96 blocks that an interrupted run "
        "finished, which saves 72 min"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (119.0, "119.0 s"), (200, "3 min"), (9000, "2 h 30 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rounding_reads_no_block_again(artifact: Path) -> None:
    for path in artifact.with_name(".model.partial").glob("blocks/*.json"):
        path.write_text(path.read_text().replace("96", "0"))
    assert told(artifact, [], 1) == [Resumed("quantization", 1, 5, sum(SECONDS.values()))]


def test_blocks_after_a_gap_are_made_again(artifact: Path) -> None:
    artifact.with_name(".model.partial").joinpath("blocks", "00001.json").unlink()
    assert told(artifact, [], 3) == [Resumed("quantization", 3, 5, 4.5)]
