"""The methods of docs/methods beside GPTQ: seconds of a whole quantization, in turn in one process.

A model of SmolLM2-135M's shapes with random weights, in which times do not differ from those of the
trained one, and the windows of `benchmarks producers`.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from benchmarks.peers.figures import conditions, spread
from benchmarks.peers.quantize import ARCHITECTURE, BATCH_TOKENS, WINDOW, WINDOWS
from quant.config import QuantizationConfig
from quant.memory.heaps import keep_freed_memory
from quant.scheme import Scheme

SCHEME = Scheme(3, 64)
ROUNDS = 3
# Allowed multiples of GPTQ's time; GPTAQ and Qronos are true-sequential.
GOALS = {"gptaq": 1.6, "qronos": 1.6, "gptq, hadamard": 1.15, "gptq, awq": 3.0}


def methods() -> None:
    """GPTAQ, Qronos, GPFQ, Hadamard, AWQ beside GPTQ w3g64 of SmolLM2-135M."""
    keep_freed_memory()  # as in a cell
    runs: dict[str, list[float]] = {}
    for turn in range(ROUNDS):
        for name, config in _configs().items():
            runs.setdefault(name, []).append(_seconds(config))
            print(f"round {turn + 1} of {ROUNDS}: {name}", file=sys.stderr, flush=True)
    print(f"{'':<26}{'s':>24}{'of GPTQ':>10}{'goal':>8}")
    for name, seconds in runs.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, runs["gptq"], strict=True))
        goal = f"{GOALS[name]:.2f}" if name in GOALS else ""
        print(f"{name:<26}{spread(seconds, 1):>24}{ratio:>10.2f}{goal:>8}")
    print(conditions())


def _configs() -> dict[str, QuantizationConfig]:
    from quant.solvers import gpfq, gptaq, gptq, qronos
    from quant.transforms import awq, hadamard, residual_hadamard

    def config(solver: object, *transforms: object, options: object = None) -> QuantizationConfig:
        return QuantizationConfig(
            solver.SOLVER,  # type: ignore[attr-defined]
            SCHEME,
            options,
            transforms=tuple((each.TRANSFORM, None) for each in transforms),  # type: ignore[attr-defined]
            batch_tokens=BATCH_TOKENS,
            arithmetic="fast",
        )

    return {
        "gptq": config(gptq),
        "gptq, true-sequential": config(gptq, options=gptq.Options(true_sequential=True)),
        "gptaq": config(gptaq),
        "qronos": config(qronos),
        "gpfq": config(gpfq),
        "gptq, hadamard": config(gptq, hadamard),
        "gptq, residual hadamard": config(gptq, residual_hadamard),
        "gptq, awq": config(gptq, awq),
    }


def _seconds(config: QuantizationConfig) -> float:
    from quant.calibrate.stream import quantize_model
    from quant.measure.architectures import architecture_config
    from quant.measure.dummy import build_dummy

    shape = architecture_config(ARCHITECTURE)
    model = build_dummy(shape, None, device="cpu", dtype=torch.float32, kernel="auto", seed=0)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, shape.vocab_size, (WINDOWS, WINDOW), generator=generator)
    begin = time.perf_counter()
    quantize_model(model, list(ids), config)
    return time.perf_counter() - begin
