"""Sweeps by workers that are killed, held against undisturbed ones."""

import json
import os
import random
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from harness.config.compose import compose_cells
from harness.records.leases import Owner
from harness.records.record import QUANTIZATION
from harness.records.store import load_records
from harness.run import launch
from harness.run.diary import Diary, Doing
from harness.run.status import RUNNING, sweeps
from tests import warm

# The interpreter of a worker, forked from one that has imported the packages already.
WARM = """
import os
import sys
from pathlib import Path
from tests import warm
os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # empty: read where torch is imported
warm.use(Path(sys.argv[1]))
worker = warm.start([word for word in sys.argv[2:] if word != "-u"])
status = worker.wait()
print(*worker.read(), file=sys.stderr)
sys.exit(status)
"""
# The whole command, whose workers are warm as well.
DRIVER = """
import sys
from submitit import LocalExecutor, SlurmExecutor
def warm(executor):
    begin = executor.__init__
    def init(self, *arguments, **more):
        begin(self, *arguments, **more)
        self.python = sys.argv[1]
    executor.__init__ = init
warm(LocalExecutor)
warm(SlurmExecutor)
from harness.cli import main
sys.exit(main(sys.argv[2:]))
"""


def python() -> str:
    return shlex.join([sys.executable, "-c", WARM, str(warm.place())])


def begin(words: list[str], interpreter: str | None = None) -> warm.Process:
    """`bitsweep run -m` in a process of its own; interpreter: its workers', a warm one if None."""
    return warm.start(["-c", DRIVER, interpreter or python(), "run", "-m", *words])


def wait_for(what: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def workers(results: Path) -> dict[int, Doing]:
    """What living workers do, by their process numbers."""
    found = {}
    for folder in (results / "runs").glob("*"):
        for who, (doing, lease) in Diary(folder).runners().items():
            newest = lease._newest()
            owner = None if newest is None else Owner.read(newest[1])
            if who.startswith("worker") and lease.lives() and owner is not None:
                found[owner.pid] = doing
    return found


def figures(results: Path) -> list[str]:
    """What the records say, without what is about time, memory or the machine at that moment."""
    found = []
    for record in load_records(results):
        kept = [m.model_dump_json() for m in record.metrics if m.unit not in ("s", "bytes", "J")]
        if record.suite == QUANTIZATION:
            kept = [m for m in kept if "second" not in m]
        layers = [(each.name, each.loss) for each in record.layers]
        found.append(json.dumps([record.key, record.status, sorted(record.inputs.items()), layers]))
        found += kept
    return found


def tables(results: Path) -> dict[str, bytes]:
    """The tables of accuracy: those of time and memory differ from run to run."""
    folder = results / "reports" / "run" / "tables"
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name.startswith("accuracy")
    }


def undisturbed(words: list[str], results: Path) -> tuple[list[str], dict[str, bytes]]:
    """Figures and tables of the same sweep, run here without anything between."""
    cells = compose_cells([*words, f"paths.results={results}"], multirun=True)
    assert launch.run_cells(cells, quiet=True).status == 0
    return figures(results), tables(results)


def disturb(
    words: list[str], results: Path, kills: int, seed: int, started: list[warm.Process]
) -> list[str]:
    """Run a sweep while workers and the command itself are killed; return what was."""
    chance, killed = random.Random(seed), []
    command = begin(words)
    started.append(command)
    for number in range(kills):
        wait_for(lambda: any(doing.cell for doing in workers(results).values()))
        time.sleep(chance.uniform(0, 0.6))
        running = workers(results)
        if number % 3 == 2:
            command.kill()
            killed.append("command")
            for pid in running:  # a node that is switched off takes its workers along
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            command = begin(words)
            started.append(command)
        elif running:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(sorted(running)), signal.SIGKILL)
                killed.append("worker")
        if not any(each.state == RUNNING for each in sweeps(results)) and command.poll() == 0:
            break
    assert command.wait(300) == 0, command.read()[1]
    return killed


def survived(
    words: Sequence[str], launcher: str, kills: int, folder: Path, started: list[warm.Process]
) -> tuple[Path, list[str]]:
    """Hold a sweep that is killed so often against an undisturbed one.

    Returns its results folder, and what was killed.
    """
    figures_then, tables_then = undisturbed([*words], folder / "undisturbed")
    results = folder / "results"
    killed = disturb([*words, f"hydra/launcher={launcher}"], results, kills, kills, started)
    assert {"worker", "command"} <= set(killed)
    assert figures(results) == figures_then
    assert tables(results) == tables_then
    return results, killed
