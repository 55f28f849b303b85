"""What the harness costs beside the work: start-up, planning, and the time around every cell.

  python -m benchmarks harness                                  this checkout
  python -m benchmarks harness --checkout OLD --checkout NEW    both in turn, and their ratio

Whole processes are timed, as a user sees them, after a run that is not counted. The overhead of a
cell is what a sweep of nine takes beyond one of one cell, without the seconds that their records
say the stages took, divided by eight: starting a process, locks, records, the report. Its stages
are trivial, rounding and one window of text on a random model of one block. Nothing of the harness
is imported, so any commit can be measured.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RUNS = 5
CELLS = 9
STAGES = 2  # of a cell: its quantization and its perplexity

HELP = "--help"
PLAN = "plan experiment=quickstart, all of it done"
PLAN_AFRESH = "plan experiment=quickstart, none of it done"
FRESH = "overhead of a cell that is run"
CACHED = "overhead of a cell that is done"
GOALS = {HELP: 0.1, PLAN: 1.0, FRESH: 0.15}  # seconds

# The cells and suites of the quickstart, so short that it is done in a minute.
QUICKSTART = (
    "experiment=quickstart",
    "tracker=none",
    "calib.sequences=2",
    "suite.perplexity.max_windows=1",
    "suite.divergence.max_windows=1",
    "suite.zeroshot.limit=1",
    "suite.latency.prompt_tokens=2",
    "suite.latency.decode_tokens=2",
    "suite.latency.warmup=1",
    "suite.latency.repeats=1",
)
STORY = "Tom had red apples and put them in a box. Anna looked into the box and saw the apples."


@dataclass(frozen=True)
class Site:
    """A checkout, and a folder for what its runs leave."""

    checkout: Path
    folder: Path

    def prepare(self) -> None:
        """Make the tiny model and text, run the short quickstart, and fill the caches."""
        save_tiny_model(self.checkout, self.folder / "tiny")
        (self.folder / "story.txt").write_text(STORY, encoding="utf-8")
        self.seconds("run", *QUICKSTART, self._results("quickstart"))
        self.measure()

    def measure(self) -> dict[str, float]:
        """Seconds of everything, once."""
        plan = self.seconds("plan", *QUICKSTART, self._results("quickstart"))
        return {
            HELP: self.seconds("--help"),
            PLAN: plan,
            PLAN_AFRESH: self.seconds("plan", *QUICKSTART, self._results("nothing")),
            **self._overheads(),
        }

    def seconds(self, *arguments: str) -> float:
        """Wall time of one command; CalledProcessError when it fails."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.checkout),
            "HF_HUB_OFFLINE": "1",
            # As on a machine that has run it before, and nothing is written into the checkout.
            "PYTHONPYCACHEPREFIX": str(self.folder / "bytecode"),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-m", "harness", *arguments]
        began = time.perf_counter()
        subprocess.run(command, cwd=self.checkout, env=environment, check=True, capture_output=True)
        return time.perf_counter() - began

    def _overheads(self) -> dict[str, float]:
        fresh, cached = [], []
        for cells in (1, CELLS):
            results = self.folder / f"{cells}-cells"
            shutil.rmtree(results, ignore_errors=True)
            whole = self._sweep(cells)
            fresh.append(whole - stage_seconds(results, cells))
            cached.append(self._sweep(cells))
        return {FRESH: per_cell(*fresh), CACHED: per_cell(*cached)}

    def _sweep(self, cells: int) -> float:
        return self.seconds(
            "run",
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
            self._results(f"{cells}-cells"),
        )

    def _results(self, name: str) -> str:
        return f"paths.results={self.folder / name}"


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


def stage_seconds(results: Path, cells: int) -> float:
    """Seconds that the records of a results folder say their stages took."""
    files = list(results.glob("cells/*/*.json"))
    if len(files) != cells * STAGES:
        raise RuntimeError(
            f"{results} holds {len(files)} records where {cells} cells have {cells * STAGES}: "
            "see its runs/ for the log of what failed."
        )
    return sum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in files)


def per_cell(one: float, many: float) -> float:
    """What each further cell costs, from one sweep of one cell and one of CELLS."""
    return (many - one) / (CELLS - 1)


def turns(sites: int, runs: int) -> Iterator[list[int]]:
    """Who is measured in which order: A B, B A, ..., so that a machine that warms up is fair."""
    for run in range(runs):
        order = list(range(sites))
        yield order if run % 2 == 0 else order[::-1]


def table(found: Sequence[dict[str, list[float]]]) -> list[str]:
    """A line a figure: median [fastest, slowest] of every checkout, the ratio of two, the goal.

    The ratio is the median of those of one round each, the last checkout over the first.
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
                    found[number].setdefault(name, []).append(seconds)
    # Others' work beside it is in all of these figures: on a busy machine they say little.
    load = f"load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
    print(f"median [fastest, slowest] of {runs} runs in ms; {load}", flush=True)
    print("\n".join(table(found)), flush=True)


def _spread(seconds: Sequence[float]) -> str:
    return f"{_ms(statistics.median(seconds))} [{_ms(min(seconds))}, {_ms(max(seconds))}]"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}"
