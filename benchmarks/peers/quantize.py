"""GPTQ of SmolLM2-135M beside other producers, and beside the machine's float32 product rate.

Ours and each peer get the same folder (random weights of the model's shapes, in which times do not
differ) and the same windows of tokens, and run in turn in a process of their own. Ours reports the
operations that its passes need (benchmarks.cost_model) over the rate of float32 products that the
same process measures before and after the run.

Memory is the peak of the resident set above what it is once every weight has been read: weights are
mapped from the file when a model is loaded, so that those which the run reads first would count as
its own. Both sides have multiplied large matrices before, which leaves buffers behind. Both leave
the model with its quantized values; the codes, which only ours gives, wait in a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import cost_model
from benchmarks.peers import environment
from benchmarks.peers.figures import conditions, spread
from quant.config import QuantizationConfig
from quant.scheme import Scheme

ARCHITECTURE, SCHEME = "smollm2-135m", Scheme(4, 64)
MODEL = cost_model.llama("SmolLM2-135M", 576, 1536, 192, 30, 49152)
WINDOWS, WINDOW = 32, 512
BATCH_TOKENS = QuantizationConfig.batch_tokens
ROUNDS = 3
# What of a stage runs in products of large float32 matrices.
TERMS = ("product", "attention", "factor", "lookback")


@dataclass(frozen=True)
class Run:
    """One quantization: seconds by the clock and of the processor, bytes above the loaded model."""

    who: str
    seconds: float
    processor: float
    peak: int
    rate: float | None = None  # float32 operations a second measured in the same process
    stages: dict[str, float] | None = None


def needed_operations() -> float:
    """Operations of all blocks: two forward passes, Hessians, factors and column loops.

    Of a Hessian the entries on and above the diagonal are needed; the model counts whole strips.
    """
    tokens = WINDOWS * WINDOW
    work = cost_model.work(MODEL.block, tokens, WINDOW, 4, SCHEME.bits, BATCH_TOKENS)
    terms = [amount for stage in work.values() for term, amount in stage.items() if term in TERMS]
    below = sum(
        cost_model.gram_elements(inputs) - inputs * (inputs + 1) // 2
        for inputs, _ in MODEL.block.groups
    )
    return MODEL.blocks * (sum(terms) - 2.0 * tokens * below)


def quantize() -> None:
    """GPTQ w4g64 of SmolLM2-135M, 32 windows of 512 tokens: seconds and memory, beside peers."""
    peer = environment.interpreter("llm-compressor")
    with tempfile.TemporaryDirectory() as folder:
        model, windows = Path(folder) / "model", Path(folder) / "windows.json"
        _make(model, windows)
        commands = {"bitsweep": [sys.executable, "-m", __name__, str(model), str(windows)]}
        if peer is not None:
            script = environment.HERE / "llm_compressor.py"
            numbers = [str(SCHEME.bits), str(SCHEME.group_size)]
            commands["llm-compressor"] = [
                str(peer), str(script), str(model), str(windows), *numbers,
            ]  # fmt: skip
        runs = []
        for turn in range(ROUNDS):
            for who, command in commands.items():
                runs.append(_run(who, command))
                print(f"round {turn + 1} of {ROUNDS}: {who}", file=sys.stderr, flush=True)
    print(table(runs))
    print(conditions())


def table(runs: Sequence[Run]) -> str:
    """Medians [fastest, slowest] of each producer, ratios to ours, and the share of the rate."""
    lines = [f"{'':<26}{'s':>24}{'processor s':>14}{'peak above the model, MB':>26}{'ratio':>8}"]
    ours = statistics.median(run.seconds for run in runs if run.rate is not None)
    for who in dict.fromkeys(run.who for run in runs):
        own = [run for run in runs if run.who == who]
        seconds = [run.seconds for run in own]
        processor = statistics.median(run.processor for run in own)
        peak = statistics.median(run.peak for run in own) / 1e6
        lines.append(
            f"{who:<26}{spread(seconds, 1):>24}{processor:>14.1f}{peak:>26.0f}"
            f"{statistics.median(seconds) / ours:>8.2f}"
        )
    needed = needed_operations()
    for run in runs:
        if run.rate is None:
            continue
        stages = ", ".join(f"{name} {value:.1f}" for name, value in (run.stages or {}).items())
        lines.append(
            f"{needed / 1e12:.2f} TFLOP needed; {needed / run.seconds / 1e9:.0f} of "
            f"{run.rate / 1e9:.0f} GFLOP/s of float32 products in the same process: "
            f"{needed / run.seconds / run.rate:.0%} ({stages} s)"
        )
    return "\n".join(lines)


def _make(folder: Path, windows: Path) -> None:
    """A folder with the model and a tokenizer, and the windows of tokens."""
    from transformers import AutoTokenizer

    from harness.embedded import MODEL_DIR
    from quant.measure.architectures import architecture_config
    from quant.measure.dummy import build_dummy

    config = architecture_config(ARCHITECTURE)
    model = build_dummy(config, None, device="cpu", dtype=torch.float32, kernel="auto", seed=0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL_DIR, trust_remote_code=False).save_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, config.vocab_size, (WINDOWS, WINDOW), generator=generator)
    windows.write_text(json.dumps(ids.tolist()), encoding="utf-8")


def _run(who: str, command: list[str]) -> Run:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    name = f"{who} {found.pop('version')}"
    return Run(who=name, **found)


def _ours(folder: Path, windows: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    from benchmarks.scaling import reset_high_water_mark, status
    from bitsweep import __version__
    from quant.calibrate.stream import Workplace, quantize_model
    from quant.solvers import gptq

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    ids = [torch.tensor(window) for window in json.loads(windows.read_text(encoding="utf-8"))]
    config = QuantizationConfig(gptq.SOLVER, SCHEME, batch_tokens=BATCH_TOKENS, arithmetic="fast")
    rates = [_rate()]
    for parameter in model.parameters():
        parameter.detach().sum()  # into memory: see above
    before = reset_high_water_mark()
    clock, processor = time.perf_counter(), time.process_time()
    # The peer keeps no codes beside the model, whose values both leave in memory.
    place = Workplace(results=windows.parent)
    result = quantize_model(model, ids, config, workplace=place)
    seconds, spent = time.perf_counter() - clock, time.process_time() - processor
    peak = status("VmHWM") - before
    rates.append(_rate())
    stages = {stage.name: stage.seconds for stage in result.stages}
    return {
        "version": __version__, "seconds": seconds, "processor": spent, "peak": peak,
        "rate": statistics.mean(rates), "stages": stages,
    }  # fmt: skip


def _rate(size: int = 2048, turns: int = 9) -> float:
    """Operations a second of a float32 product: the median of some turns."""
    from quant.products import product

    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        product(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * float(size) ** 3 / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("windows", type=Path)
    options = parser.parse_args()
    print(json.dumps(_ours(options.folder, options.windows)))


if __name__ == "__main__":
    main()
