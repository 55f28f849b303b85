"""A cell on a machine as it is, and with a busy process on every core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROUNDS = 2
GOAL = 3.0
CELL = (
    "method=gptq",
    "scheme=w4g128",
    "calib.sequences=8",
    "suite=[perplexity,latency]",
    "suite.perplexity.max_windows=4",
    "tracker=none",
)


def crowded() -> None:
    """A small cell, as the machine is and with a busy process on every core: fastest of rounds."""
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for number in range(ROUNDS):
        for full in (False, True) if number % 2 == 0 else (True, False):
            with _busy(len(os.sched_getaffinity(0)) if full else 0):
                found[full].append(_stages())
    total = []
    for stage in (*found[False][0], "cell"):
        alone, beside = (
            min(sum(each.values()) if stage == "cell" else each[stage] for each in found[full])
            for full in (False, True)
        )
        total.append(beside / alone)
        print(f"{stage:<16} {alone:7.2f} s   crowded {beside:7.2f} s   {total[-1]:5.2f} times")
    print(f"goal: at most {GOAL:g} times; load {os.getloadavg()[0]:.1f}")


def _stages() -> dict[str, float]:
    """Seconds of the stages of one run of the cell."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "harness", "run", *CELL, f"paths.results={folder}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = {}
        for file in sorted(Path(folder).glob("cells/*/*.json")):
            record = json.loads(file.read_text(encoding="utf-8"))
            seconds[record["suite"]] = float(record["seconds"])
            during = record["environment"]["cores"].get("during") or {}
            said = f"{record['environment']['threads']} threads, others {during.get('others')}"
            print(f"  {record['suite']:<14} {record['seconds']:7.2f} s, {said}", flush=True)
    return seconds


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Context: so many processes that do nothing but compute."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
