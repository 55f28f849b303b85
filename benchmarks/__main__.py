"""Time the steps of a sweep: medians with the fastest and slowest run, and the machine's name.

  python -m benchmarks            everything
  python -m benchmarks solve pack only these
  python -m benchmarks harness --checkout OLD --checkout NEW   two commits in turn

Separate commands, each with --help: python -m benchmarks.decode, benchmarks.scaling,
benchmarks.gpu_solver, benchmarks.compression; for kernels, python -m cuda_ext.bench.

Times depend on the machine and its load: compare only lines of one run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import crowded, harness_overhead, methods, perplexity, reading, report, solver
from benchmarks.peers import bitsandbytes_files, decode, gguf_files
from benchmarks.peers import quantize as producers
from harness.models.model import Place, StoredModel, find_model
from harness.records import environment

RUNS = 5


def timed(run: Callable[[], object], runs: int = RUNS) -> list[float]:
    """Seconds of `runs` calls, after one that is not counted."""
    run()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def show(what: str, seconds: list[float]) -> None:
    """Print one line: median [fastest, slowest]."""
    middle, least, most = (1e3 * f(seconds) for f in (statistics.median, min, max))
    print(f"{what:<52} {middle:10.2f} ms [{least:.2f}, {most:.2f}]", flush=True)


def start() -> None:
    """Start-up of the command line, as a user sees it."""
    for arguments in (["--help"], ["run", "--help"]):
        command = [sys.executable, "-m", "harness", *arguments]
        run = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        show(f"bitsweep {' '.join(arguments)}", timed(run))


def pack() -> None:
    """Packing and unpacking codes of a 4096 x 4096 layer."""
    from cuda_ext.layout import pack_codes, unpack_codes

    for bits in (2, 3, 4, 8):
        codes = torch.randint(0, 2**bits, (4096, 4096), dtype=torch.uint8)
        words = pack_codes(codes, bits)
        show(f"pack 4096 x 4096, {bits} bits", timed(partial(pack_codes, codes, bits)))
        show(f"unpack 4096 x 4096, {bits} bits", timed(partial(unpack_codes, words, bits, 4096)))


def solve() -> None:
    """The solvers on one layer of 1024 outputs and 1024 inputs."""
    from quant.scheme import Scheme
    from quant.solvers import gptq, rtn

    torch.manual_seed(0)
    weight, inputs = torch.randn(1024, 1024), torch.randn(4096, 1024)
    hessian = inputs.T @ inputs * (2 / 32)

    def both(scheme: Scheme) -> object:
        return gptq.solve(weight, scheme, gptq.prepare(hessian))

    for scheme in (Scheme(4), Scheme(4, 128), Scheme(2, 32)):
        show(f"rtn 1024 x 1024 {scheme.name}", timed(partial(rtn.solve, weight, scheme)))
        show(f"gptq 1024 x 1024 {scheme.name}", timed(partial(both, scheme)))


def quantize() -> None:
    """The embedded model from calibration windows to quantized weights."""
    from harness.config.compose import compose_cells
    from harness.data import protocols
    from quant.calibrate.stream import quantize_model
    from quant.config import QuantizationConfig
    from quant.scheme import Scheme
    from quant.solvers import gptq, rtn
    from quant.solvers.base import Solver

    config = compose_cells([], False, None)[0].config
    stored, place = find_model(config.model), Place("cpu", "auto")
    assert isinstance(stored, StoredModel)
    tokenizer, plain = stored.tokenizer(), stored.load(place)
    context = protocols.context_length(plain.config, config.model.context)
    windows = protocols.calibration_windows(config.calib, tokenizer, context, None).windows

    def run(method: Solver) -> object:
        how = QuantizationConfig(method, Scheme(4, 128))
        return quantize_model(stored.load(place), windows, how)

    for method in (rtn.SOLVER, gptq.SOLVER):
        what = f"embedded model, {method.name} w4g128, {len(windows)} windows"
        show(what, timed(partial(run, method), 3))


BENCHMARKS = {
    "start": start,
    "pack": pack,
    "solve": solve,
    "quantize": quantize,
    "solver": solver.solve,
    "embedded": solver.embedded,
    "attention": solver.attention,
    "perplexity": perplexity.perplexity,
    "reading": reading.reading,
    "decode": decode.decode,
    "producers": producers.quantize,
    "methods": methods.methods,
    "gguf": gguf_files.gguf,
    "bitsandbytes": bitsandbytes_files.bitsandbytes,
    "crowded": crowded.crowded,
    "report": report.report,
    "harness": harness_overhead.harness,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    known = ", ".join(BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {known}")
    parser.add_argument(
        "--checkout",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="what harness measures instead of this checkout; two are compared",
    )
    options = parser.parse_args()
    names = options.names or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"{name} is not a benchmark: choose from {known}.")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the bar of files being read would mix with the figures
    machine = environment.machine()
    print(f"{machine['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in names:
        print(f"\n{BENCHMARKS[name].__doc__}")
        if name == "harness":
            harness_overhead.harness(options.checkout)
        else:
            BENCHMARKS[name]()


if __name__ == "__main__":
    main()
