"""A sweep of 200 cells on 1, 8 and 64 GPUs: times from the cost model; measures nothing.

  python -m benchmarks.sweep_on_gpus [--write docs/scaling.md]

The sweep: OPT 125M to 66B and BLOOM 560M to 7.1B, each in full precision, and rounded to nearest
and by GPTQ at two, three and four bits, with and without groups; GPTQ with several seeds.
Cells are taken in the order of the sweep by whichever worker is free, each worker beginning at its
own share, as harness.run.worker does.
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cost_model
from benchmarks.predictions import BATCH_TOKENS, H200, TOKENS, WINDOW

MODELS = (
    cost_model.opt("OPT-125M", 768, 12),
    cost_model.opt("OPT-1.3B", 2048, 24),
    cost_model.opt("OPT-2.7B", 2560, 32),
    cost_model.opt("OPT-6.7B", 4096, 32),
    cost_model.OPT_13B,
    cost_model.opt("OPT-30B", 7168, 48),
    cost_model.opt("OPT-66B", 9216, 64),
    cost_model.bloom("BLOOM-560M", 1024, 24),
    cost_model.bloom("BLOOM-1.7B", 2048, 24),
    cost_model.bloom("BLOOM-7.1B", 4096, 30),
)
SCHEMES = (2.0, 3.0, 4.0, 2.25, 3.25, 4.25)  # bits a weight, without groups and in groups of 128
GPTQ_SEEDS = (3, 3, 2, 2, 2, 1)  # of each scheme
TEXT_TOKENS = 285_000 + 83_000 + 524_288  # of WikiText-2, PTB and the 256 windows of C4
START_SECONDS = 30.0  # assumed: interpreter, libraries and CUDA of a worker
CELL_SECONDS = 5.0  # assumed: process, CUDA context, tokenizing, records and cards of a cell
GPUS = (1, 8, 64)
BEGIN, END = "<!-- begin gpus -->", "<!-- end gpus -->"


@dataclass(frozen=True)
class Cell:
    """A cell and its seconds on one H200."""

    model: str
    seconds: float


def cells() -> list[Cell]:
    """The 200 cells of the sweep, in its order."""
    found = []
    for model in MODELS:
        measured = _perplexity(model)
        found.append(Cell(model.name, measured + CELL_SECONDS))
        for bits, seeds in zip(SCHEMES, GPTQ_SEEDS, strict=True):
            rounded = _quantization(model, bits, solves=False) + measured + CELL_SECONDS
            found.append(Cell(model.name, rounded))
            solved = _quantization(model, bits, solves=True) + measured + CELL_SECONDS
            found += [Cell(model.name, solved)] * seeds
    return found


def _quantization(model: cost_model.Model, bits: float, solves: bool) -> float:
    work = cost_model.work(model.block, TOKENS, WINDOW, 2, bits, BATCH_TOKENS, "cuda")
    stages = dict(cost_model.seconds(work, H200))
    if not solves:  # rounding reads no calibration text
        stages |= dict.fromkeys(("hessian", "factor", "loop", "forward"), 0.0)
    return cost_model.whole(stages, model.blocks)


def _perplexity(model: cost_model.Model) -> float:
    """Three texts in windows, each block read once."""
    work = cost_model.work(model.block, TEXT_TOKENS, WINDOW, 2, 16.0, BATCH_TOKENS, "cuda")
    stages = cost_model.seconds(work, H200)
    return model.blocks * max(stages["read"], stages["forward"])


def spent(todo: list[Cell], workers: int) -> float:
    """Seconds until all cells are done."""
    shares = [
        deque([*range(n * len(todo) // workers, len(todo)), *range(n * len(todo) // workers)])
        for n in range(workers)
    ]
    taken: set[int] = set()
    free = [(START_SECONDS, worker) for worker in range(workers)]
    last = 0.0
    while len(taken) < len(todo):
        at, worker = heapq.heappop(free)
        number = next(n for n in shares[worker] if n not in taken)
        taken.add(number)
        heapq.heappush(free, (at + todo[number].seconds, worker))
        last = max(last, at + todo[number].seconds)
    return last


def text() -> str:
    """The table with what it assumes."""
    todo = cells()
    total, longest = sum(each.seconds for each in todo), max(each.seconds for each in todo)
    rows = [
        f"**Predictions, not measurements**: {len(todo)} cells on H200s, at the rates below under "
        "Predicted; for every cell "
        f"{CELL_SECONDS:.0f} s and for every worker {START_SECONDS:.0f} s besides, both assumed. "
        f"Work of one GPU in all: {total / 3600:.1f} h; the longest cell: {longest / 60:.0f} min.",
        "",
        "| GPUs | hours | times as fast | busy |",
        "|---:|---:|---:|---:|",
    ]
    alone = spent(todo, 1)
    for count in GPUS:
        hours = spent(todo, count)
        rows.append(
            f"| {count} | {hours / 3600:.2f} | {alone / hours:.1f} | "
            f"{100 * total / (count * hours):.0f} % |"
        )
    return "\n".join(rows)


def write(page: Path, found: str) -> None:
    """Put the table between its marks on a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{found}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page with the marks")
    options = parser.parse_args()
    found = text()
    print(found)
    if options.write is not None:
        write(options.write, found)


if __name__ == "__main__":
    main()
