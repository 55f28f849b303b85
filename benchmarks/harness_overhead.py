"""Overhead of the harness: start-up, planning, and the time around every cell.

  python -m benchmarks harness                                  this checkout
  python -m benchmarks harness --checkout OLD --checkout NEW    both in turn, and their ratio

Times whole processes, as a user sees them. The stages of a cell are trivial: rounding and one
window of text on a random model of one block.

A cell that is run: a sweep prints a line on stderr when a stage is finished. The time of a cell is
from the last line of the previous cell to its own last line, without start-up and report. Its
overhead (process, locks, records) is that time minus the seconds of its stages in the records.
A cell that is done: the overhead is the time of a sweep of nine cells minus that of one cell,
divided by eight.

Wall time is unreliable on a busy machine, so CPU time of all processes is measured too: for a cell
that is run, with its stages, from its first line to that of the next cell. The harness is not
imported, so any commit can be measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RUNS = 3
CELLS = 9
STAGES = 2  # of a cell: its quantization and its perplexity

HELP = "--help"
PLAN = "plan experiment=quickstart"
WHOLE = "a cell that is run, with its stages"
WHOLE_CPU = "a cell that is run, with its stages, processor"
FRESH = "overhead of a cell that is run"
CACHED = "overhead of a cell that is done"
CACHED_CPU = "overhead of a cell that is done, processor"
GOALS = {HELP: 0.1, PLAN: 1.0, FRESH: 0.15, CACHED: 0.15}  # seconds

STORY = "Tom had red apples and put them in a box. Anna looked into the box and saw the apples."
_FINISHED = re.compile(r"\[(\d+)/\d+\] (\S+) \w+ [\d.]+ s\s*$")  # "[2/9] tiny-rtn-w4-s1 NAME 0.4 s"


@dataclass(frozen=True)
class Said:
    """A line of stderr, with its time and the CPU time used until then.

    at         seconds since the process began.
    processor  CPU seconds of the process and its descendants; 0 unless a stage was finished.
    """

    at: float
    processor: float
    line: str


@dataclass(frozen=True)
class Timed:
    """A finished command: wall seconds, CPU seconds, and its stderr."""

    wall: float
    processor: float
    said: tuple[Said, ...]


@dataclass(frozen=True)
class Site:
    """A checkout, and a folder for the files of its runs."""

    checkout: Path
    folder: Path

    def prepare(self) -> None:
        """Make the tiny model and text; fill the caches of bytecode and of composed cells."""
        save_tiny_model(self.checkout, self.folder / "tiny")
        (self.folder / "story.txt").write_text(STORY, encoding="utf-8")
        self.timed("--help")
        self._plan()
        self._sweep(1, "plan")

    def measure(self) -> dict[str, list[float]]:
        """Seconds of everything, measured once; for a cell that is run, one value per cell."""
        found = {HELP: [self.timed("--help").wall], PLAN: [self._plan().wall]}
        results = self.folder / "results"
        shutil.rmtree(results, ignore_errors=True)
        said = self._sweep(CELLS).said
        walls = cell_seconds(said, CELLS)
        found[WHOLE] = list(walls.values())
        found[WHOLE_CPU] = cell_processor(said)
        found[FRESH] = [wall - stage_seconds(results, name) for name, wall in walls.items()]
        one, many = self._sweep(1), self._sweep(CELLS)
        found[CACHED] = [per_cell(one.wall, many.wall)]
        found[CACHED_CPU] = [per_cell(one.processor, many.processor)]
        return found

    def timed(self, *arguments: str) -> Timed:
        """Run and time one command; CalledProcessError if it fails."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.checkout),
            "HF_HUB_OFFLINE": "1",
            # Bytecode is cached, as after a first run, but not in the checkout.
            "PYTHONPYCACHEPREFIX": str(self.folder / "bytecode"),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-m", "harness", *arguments]
        said: list[Said] = []
        before, began = os.times(), time.perf_counter()
        with subprocess.Popen(
            command,
            cwd=self.checkout,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                at = time.perf_counter() - began
                used = processor_of(process.pid) if _FINISHED.match(line) else 0.0
                said.append(Said(at, used, line))
        wall, after = time.perf_counter() - began, os.times()
        if process.returncode:
            text = "".join(each.line for each in said)
            raise subprocess.CalledProcessError(process.returncode, command, stderr=text)
        processor = sum(after[2:4]) - sum(before[2:4])  # of children that have ended
        return Timed(wall, processor, tuple(said))

    def _plan(self) -> Timed:
        return self.timed("plan", PLAN.split()[1], f"paths.results={self.folder / 'nothing'}")

    def _sweep(self, cells: int, verb: str = "run") -> Timed:
        return self.timed(
            verb,
            "-m",
            "model=local",
            f"model.path={self.folder / 'tiny'}",
            "model.name=tiny",
            "method=rtn",
            f"seed={','.join(map(str, range(cells)))}",
            "suite=[perplexity_documents]",
            f"suite.perplexity.paths.documents={self.folder / 'story.txt'}",
            "suite.perplexity.max_windows=1",
            "tracker=none",
            "runtime.threads=1",
            f"paths.results={self.folder / 'results'}",
        )


def save_tiny_model(checkout: Path, folder: Path) -> None:
    """A random OPT model of one block of width 32, with the tokenizer of the embedded model."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    (embedded,) = checkout.glob("*/embedded/model")
    config = OPTConfig.from_pretrained(embedded)
    config.hidden_size = config.word_embed_proj_dim = 32
    config.ffn_dim, config.num_hidden_layers, config.num_attention_heads = 64, 1, 2
    config.max_position_embeddings = 64
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded / name, folder / name)


def cell_seconds(said: Iterable[Said], cells: int) -> dict[str, float]:
    """Seconds of each cell, by name, since the end of the previous one; without the first cell.

    Raises RuntimeError if stderr lacks a line for a stage.
    """
    ends: dict[int, tuple[str, float]] = {}
    lines = 0
    for each in said:
        if match := _FINISHED.match(each.line):
            ends[int(match[1])] = (match[2], each.at)
            lines += 1
    if lines != cells * STAGES or sorted(ends) != list(range(1, cells + 1)):
        raise RuntimeError(
            f"the sweep printed {lines} finished stages of {len(ends)} cells, but {cells} cells "
            f"have {cells * STAGES}: run it by hand to see its output."
        )
    return {
        ends[number][0]: ends[number][1] - ends[number - 1][1] for number in range(2, cells + 1)
    }


def cell_processor(said: Iterable[Said]) -> list[float]:
    """CPU seconds of all processes from the first line of each cell to that of the next.

    At the first line, the process of the previous cell has been waited for, so that no time is
    missed or counted twice.
    """
    firsts: dict[int, float] = {}
    for each in said:
        if match := _FINISHED.match(each.line):
            firsts.setdefault(int(match[1]), each.processor)
    return [firsts[number + 1] - firsts[number] for number in range(1, len(firsts))]


def processor_of(pid: int) -> float:
    """CPU seconds of a process, its descendants, and the children it waited for."""
    import psutil

    used = 0.0
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            used += sum(each.cpu_times()[:4])  # own and waited-for, user and system
    return used


def stage_seconds(results: Path, cell: str) -> float:
    """Seconds of the stages in the records of a cell."""
    files = list(results.glob(f"cells/{cell}-*/*.json"))
    if len(files) != STAGES:
        raise RuntimeError(
            f"{results} holds {len(files)} records of {cell}, which has {STAGES} stages: see its "
            "runs/ for the log of what failed."
        )
    return sum(float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) for file in files)


def per_cell(one: float, many: float) -> float:
    """Seconds per further cell, from a sweep of one cell and one of CELLS."""
    return (many - one) / (CELLS - 1)


def turns(sites: int, runs: int) -> Iterator[list[int]]:
    """The order of measurement: A B, B A, ..., so that warming up affects both equally."""
    for run in range(runs):
        order = list(range(sites))
        yield order if run % 2 == 0 else order[::-1]


def table(found: Sequence[dict[str, list[float]]]) -> list[str]:
    """One line per figure: median [fastest, slowest] of every checkout, the ratio, the goal.

    The ratio, last checkout over first, is the median of the ratios of single rounds.
    """
    lines = []
    for name in found[0]:
        columns = "".join(f"{_spread(each[name]):>30}" for each in found)
        if len(found) > 1:
            pairs = zip(found[-1][name], found[0][name], strict=True)
            columns += f"{statistics.median(new / old for new, old in pairs):>9.2f}x"
        goal = f"   goal {_ms(GOALS[name])} ms" if name in GOALS else ""
        lines.append(f"{name:<46}{columns}{goal}")
    return lines


def harness(checkouts: Sequence[Path] = (), runs: int = RUNS) -> None:
    """Start-up, planning and the overhead of a cell; whole processes."""
    with tempfile.TemporaryDirectory() as folder:
        sites = [
            Site(checkout.resolve(), Path(folder) / str(number))
            for number, checkout in enumerate(checkouts or [REPOSITORY])
        ]
        for site in sites:
            site.prepare()
        found: list[dict[str, list[float]]] = [{} for _ in sites]
        for order in turns(len(sites), runs):
            for number in order:
                for name, seconds in sites[number].measure().items():
                    found[number].setdefault(name, []).extend(seconds)
    # Other processes affect all of these figures, so print the load.
    load = f"load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
    print(f"median [fastest, slowest] of {runs} runs in ms; {load}", flush=True)
    print("\n".join(table(found)), flush=True)


def _spread(seconds: Sequence[float]) -> str:
    return f"{_ms(statistics.median(seconds))} [{_ms(min(seconds))}, {_ms(max(seconds))}]"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}"
