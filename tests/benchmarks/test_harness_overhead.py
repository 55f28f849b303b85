"""The arithmetic of the overhead: what is divided, subtracted, compared and refused."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import harness_overhead
from benchmarks.harness_overhead import (
    CACHED,
    CACHED_CPU,
    CELLS,
    FRESH,
    GOALS,
    HELP,
    PLAN,
    WHOLE,
    WHOLE_CPU,
    Said,
    Site,
    Timed,
    cell_processor,
    cell_seconds,
    per_cell,
    processor_of,
    stage_seconds,
    table,
    turns,
)

NAME = "tiny-rtn-w4-s{}"


def write_records(results: Path, cell: int, seconds: float) -> None:
    for stage in ("quantization", "perplexity"):
        file = results / "cells" / f"{NAME.format(cell)}-0123" / f"{stage}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"seconds": seconds}))


def lines(cells: int, start: float, wall: float, processor: float) -> list[Said]:
    """What a sweep says whose first cell begins at `start`; each ends `wall` after the one before.

    A first stage is finished halfway; the first cell uses ten times what the others do.
    """
    said = [Said(0.5, 0.0, f"{cells} cells, {2 * cells} stages: all to run\n")]
    for number in range(cells):
        label = f"[{number + 1}/{cells}] {NAME.format(number)}"
        end = start + wall * (number + 1)
        used = processor * (10 + number)
        said += [
            Said(end - wall / 2, used - processor / 2, f"{label} quantization 0.4 s\n"),
            Said(end - wall / 3, 0.0, f"{label} memory at most: host 331.2 kB of 21.17 GB\n"),
            Said(end, used, f"{label} perplexity 12.0 s\n"),
        ]
    return [*said, Said(99.0, 0.0, "the report\n")]


def test_a_cell_takes_from_the_end_of_the_one_before_it() -> None:
    found = cell_seconds(lines(3, start=7.0, wall=0.25, processor=1.0), cells=3)
    assert found == {NAME.format(1): pytest.approx(0.25), NAME.format(2): pytest.approx(0.25)}


def test_a_sweep_that_does_not_tell_of_every_stage_is_refused() -> None:
    said = lines(3, start=7.0, wall=0.25, processor=1.0)
    failed = [each for each in said if "s2 perplexity" not in each.line]
    with pytest.raises(RuntimeError, match="5 finished stages of 3 cells, but 3 cells have 6"):
        cell_seconds(failed, cells=3)


def test_what_a_cell_uses_leaves_out_what_came_before_the_first() -> None:
    assert cell_processor(lines(4, 7.0, 0.25, processor=0.125)) == [0.125] * 3


def test_the_processor_is_that_of_all_processes() -> None:
    """A process that only waits, one below it that worked and has ended, and one that works."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    code = (
        "import subprocess, sys\n"
        f"burn = {burn!r}\n"
        "subprocess.run([sys.executable, '-c', burn])\n"
        "child = subprocess.Popen([sys.executable, '-c', burn + 'print(1, flush=True)\\ninput()'],"
        " stdin=subprocess.PIPE)\n"
        "child.wait()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = processor_of(process.pid)
        process.kill()
    # User and system time of both are each cut to whole ticks of the system's clock.
    assert found >= 2 * 0.3 - 4 / os.sysconf("SC_CLK_TCK")


def test_a_further_cell_costs_an_eighth_of_the_difference() -> None:
    assert per_cell(one=10.0, many=12.0) == 0.25


def test_the_seconds_of_stages_are_those_of_the_records_of_a_cell(tmp_path: Path) -> None:
    write_records(tmp_path, 1, seconds=0.5)
    write_records(tmp_path, 11, seconds=7.0)
    assert stage_seconds(tmp_path, NAME.format(1)) == 1.0
    with pytest.raises(RuntimeError, match="holds 0 records of tiny-rtn-w4-s2, which has 2 stages"):
        stage_seconds(tmp_path, NAME.format(2))


def test_checkouts_are_measured_in_turn() -> None:
    assert list(turns(2, 3)) == [[0, 1], [1, 0], [0, 1]]


def test_stages_are_no_overhead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell takes two stages of 0.5 s and 0.1 s; one that is done 0.02 s, half of it at work."""

    def timed(site: Site, *arguments: str) -> Timed:
        if arguments[0] != "run":
            return Timed(0.3 if arguments[0] == "plan" else 0.05, 0.0, ())
        (folder,) = (word for word in arguments if word.startswith("paths.results="))
        results = Path(folder.partition("=")[2])
        (seeds,) = (word for word in arguments if word.startswith("seed="))
        cells = len(seeds.split(","))
        if results.exists():
            return Timed(4 + 0.02 * cells, 2 + 0.01 * cells, ())
        for cell in range(cells):
            write_records(results, cell, seconds=0.5)
        return Timed(20.0, 9.0, tuple(lines(cells, start=7.0, wall=1.1, processor=0.25)))

    monkeypatch.setattr(Site, "timed", timed)
    further = CELLS - 1
    for _ in range(2):  # the second finds what the first left
        assert Site(tmp_path, tmp_path).measure() == {
            HELP: [0.05],
            PLAN: [0.3],
            WHOLE: pytest.approx([1.1] * further),
            WHOLE_CPU: pytest.approx([0.25] * further),
            FRESH: pytest.approx([0.1] * further),
            CACHED: [pytest.approx(0.02)],
            CACHED_CPU: [pytest.approx(0.01)],
        }


def test_a_command_is_timed_by_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "harness"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import sys, time\n"
        "print('begun', file=sys.stderr)\n"
        "while time.process_time() < 0.2: pass\n"
        "print('[1/9] tiny-rtn-w4-s0 perplexity 0.1 s', file=sys.stderr)\n"
        "sys.exit(sys.argv[1] == 'wrong')\n"
    )
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    site = Site(tmp_path, tmp_path)
    before = time.perf_counter()
    found = site.timed("right")
    assert 0.2 <= found.wall <= time.perf_counter() - before
    assert found.processor >= 0.19
    begun, told = found.said
    assert (begun.line, begun.processor) == ("begun\n", 0.0)
    assert begun.at < told.at <= found.wall
    assert told.processor >= 0.19
    assert (tmp_path / "bytecode").is_dir(), "as on a machine that has run it before"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        site.timed("wrong")
    assert refused.value.stderr.startswith("begun\n")


def test_the_table_has_medians_spread_ratio_and_goal() -> None:
    old = {HELP: [0.4, 0.2, 0.3], CACHED_CPU: [0.02, 0.02, 0.02]}
    new = {HELP: [0.1, 0.1, 0.15], CACHED_CPU: [0.01, 0.02, 0.03]}
    first, second = table([old, new])
    assert first.split() == [
        *("--help", "300", "[200,", "400]", "100", "[100,", "150]", "0.50x", "goal", "100", "ms")
    ]
    assert second.endswith(" 1.00x")


def test_one_checkout_has_no_ratio() -> None:
    (line,) = table([{PLAN: [1.5]}])
    assert line.endswith("1500 [1500, 1500]   goal 1000 ms")


def test_the_goals_are_in_seconds() -> None:
    assert [GOALS[name] for name in (HELP, PLAN, FRESH, CACHED)] == [0.1, 1.0, 0.15, 0.15]


def test_the_tiny_model_has_one_block_and_a_tokenizer(tmp_path: Path) -> None:
    harness_overhead.save_tiny_model(harness_overhead.REPOSITORY, tmp_path / "tiny")
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["num_hidden_layers"] == 1
    assert (tmp_path / "tiny" / "tokenizer.json").is_file()
