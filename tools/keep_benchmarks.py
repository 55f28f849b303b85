"""Store the output of benchmarks, with command and machine, in results/reference/benchmarks.

    python tools/keep_benchmarks.py             all of them; takes minutes, needs an idle machine
  python tools/keep_benchmarks.py solver start  some of them

Timings depend on the machine named in the file; ratios within a file were measured in turn.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from harness.records import environment

REPOSITORY = Path(__file__).resolve().parents[1]
KEPT = REPOSITORY / "results" / "reference" / "benchmarks"
COMMANDS = {
    "kernels": "cuda_ext.bench --shapes llama-7b-up --batches 1,4,8,16,64 --seconds 6",
    "kernels_isa": "cuda_ext.bench --isa --bits 2,3,4 --batches 1,8 --seconds 4",
    "crossover": "cuda_ext.bench --crossover --bits 4 --seconds 2",
    "solver": "benchmarks solver",
    "embedded": "benchmarks embedded",
    "attention": "benchmarks attention",
    "start": "benchmarks start",
    "methods": "benchmarks methods",
    "reading": "benchmarks reading",
    "report": "benchmarks report",
}


def header(command: str) -> str:
    """The header of a benchmark's output: command, machine, commit and date."""
    machine = environment.machine()
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    commit = environment.commit()
    assert commit is not None, "tools are part of a checkout"
    state = commit["id"][:12] + (" with changes" if commit["dirty"] else "")
    return f"$ {command}\n# {where}; commit {state}; {datetime.now(UTC):%Y-%m-%d}\n\n"


def keep(name: str) -> None:
    """Run one benchmark and store its output; CalledProcessError if it fails."""
    module, *arguments = shlex.split(COMMANDS[name])
    print(f"{name}: python -m {COMMANDS[name]}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(done.stdout)
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}.txt").write_text(header(f"python -m {COMMANDS[name]}") + done.stdout)


def main() -> int:
    """Return 0, or the exit status of the first benchmark that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(COMMANDS)}")
    names = parser.parse_args().names or list(COMMANDS)
    for name in names:
        if name not in COMMANDS:
            parser.error(f"{name} is not kept: choose from {', '.join(COMMANDS)}.")
    for name in names:
        try:
            keep(name)
        except subprocess.CalledProcessError as error:
            print(f"{name} failed with status {error.returncode}: {error.cmd}", file=sys.stderr)
            return int(error.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
