"""What workers of a launcher cost beside the stages of their cells, on trivial cells.

  python -m benchmarks.launcher_overhead [--launcher local] [--workers 2] [--cells 200]

A cell is rounding and one window of text on a random model of one block, as in
benchmarks.harness_overhead. The overhead of a cell is a worker's time from ready to its last cell,
minus the seconds of its stages in the records: claims, locks, processes, records, notes. The start
of a worker (interpreter, libraries) comes once and is printed apart.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.harness_overhead import REPOSITORY, STORY, save_tiny_model
from harness.run.diary import Diary


def sweep(folder: Path, launcher: str, workers: int, cells: int) -> float:
    """Run the sweep; return its wall seconds."""
    (folder / "story.txt").write_text(STORY, encoding="utf-8")
    command = [sys.executable, "-m", "harness", "run", "-m"]
    command += ["model=local", f"model.path={folder / 'tiny'}", "model.name=tiny", "method=rtn"]
    command += [f"seed=range({cells})", "suite=[perplexity_documents]"]
    command += [f"suite.perplexity.paths.documents={folder / 'story.txt'}"]
    command += ["suite.perplexity.max_windows=1", "tracker=none", "runtime.threads=1"]
    command += [f"paths.results={folder / 'results'}", f"hydra/launcher={launcher}"]
    command += [f"hydra.launcher.workers={workers}"]
    began = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def overheads(results: Path) -> tuple[list[float], list[float]]:
    """Seconds of overhead a cell of each worker, and seconds of each worker's start."""
    (folder,) = (results / "runs").iterdir()
    diary = Diary(folder)
    stages: dict[str, float] = defaultdict(float)
    last: dict[str, float] = defaultdict(float)
    for number, settled in diary.settled().items():
        stages[settled.runner] += sum(settled.finished.values())
        at = (folder / "settled" / f"{number}.json").stat().st_mtime
        last[settled.runner] = max(last[settled.runner], at)
    found, starts = [], []
    for who, (doing, _) in diary.runners().items():
        if doing.born is None or not doing.cells:
            continue
        ready = (folder / "runners" / f"{who}.lock").stat().st_mtime
        found.append((last[who] - ready - stages[who]) / doing.cells)
        starts.append(doing.born)
    return found, starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--launcher", default="local", help="slurm, local or ray")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cells", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_tiny_model(REPOSITORY, folder / "tiny")
        wall = sweep(folder, options.launcher, options.workers, options.cells)
        each, starts = overheads(folder / "results")
    print(
        f"hydra/launcher={options.launcher}: {options.cells} cells by {len(each)} workers in "
        f"{wall:.0f} s; overhead of a cell {1e3 * statistics.fmean(each):.0f} ms; start of a "
        f"worker {min(starts):.1f} to {max(starts):.1f} s, once each"
    )


if __name__ == "__main__":
    main()
