"""The cost model's rates on this machine: fitted on some cases, checked on others.

Seconds are CPU time of the one thread that works, so that neither other processes nor waits for the
disk count, and minima over blocks and rounds, so that first uses do not. Every block but the first
of a round counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from unittest import mock

import torch

from benchmarks import cost_model
from benchmarks.cost_model import BlockShape, Work

if TYPE_CHECKING:
    from quant.calibrate.sink import BlockSink, Finished
    from quant.input_operator import InputOperator
    from quant.transforms.base import Transform
    from quant.weight import AnyWeight

Stages = dict[str, float]
BATCH_TOKENS = 1024
ROUNDS, BLOCKS = 2, 3
# Stages whose rates are fitted together, since they share terms.
FITTED = (("hessian", "forward"), ("factor",), ("loop",), ("write",))
# What no CPU second is spent on: another thread reads, nothing is copied, the disk is waited for.
FREE = {"disk": math.inf, "attach": math.inf, "stored": math.inf}
UNITS = {
    "product": "operations of products of whole activations",
    "attention": "operations of attention",
    "element": "activations and sums read or written",
    "factor": "operations of factorizations",
    "weight": "weights copied, dequantized, compared",
    "lookback": "operations of products in the column loop",
    "panel": "panels of 128 columns of a layer",
    "packed": "weights packed, hashed, written",
    "layer": "layers written",
}


@dataclass(frozen=True)
class Case:
    """A model of Llama's layers and its calibration; k and v have a quarter of the width."""

    width: int
    inner: int
    blocks: int
    tokens: int
    window: int = 256

    @property
    def shape(self) -> BlockShape:
        block = cost_model.llama("", self.width, self.inner, self.width // 4, self.blocks, 512)
        return block.block

    @property
    def work(self) -> Work:
        return cost_model.work(self.shape, self.tokens, self.window, 4, 4.25, BATCH_TOKENS)


FIT = (
    Case(256, 256, BLOCKS, 2048),
    Case(512, 512, BLOCKS, 2048, window=512),
    Case(768, 768, BLOCKS, 1024),
    Case(1024, 1024, BLOCKS, 1024),
)
HELD_OUT = (
    Case(384, 384, BLOCKS, 2048),
    Case(512, 512, BLOCKS, 4096),
    Case(512, 1024, BLOCKS, 2048),
    Case(640, 640, BLOCKS, 2048),
    Case(768, 1536, BLOCKS, 1024, window=512),
    Case(1024, 512, BLOCKS, 2048),
    Case(1280, 1280, BLOCKS, 1024),
)


@dataclass
class BlockSeconds:
    """A sink that notes what every block cost and hands it on to `kept`."""

    kept: BlockSink
    blocks: list[Stages] = field(default_factory=list)

    @property
    def finished(self) -> int:
        return self.kept.finished

    def put(
        self, index: int, weights: dict[str, AnyWeight], made: Finished, /
    ) -> Callable[[], None]:
        # Writing a block, and its pass forward, are told with the block after it.
        found = {stage.name: stage.seconds + stage.background for stage in made.stages}
        found["loop"] = sum(layer.seconds for layer in made.layers)
        found["factor"] = found.pop("solve") - found["loop"]
        self.blocks.append(found)
        return self.kept.put(index, weights, made)

    def put_outside(self, name: str, weight: AnyWeight, /) -> None:
        self.kept.put_outside(name, weight)

    def get(self, index: int) -> tuple[dict[str, AnyWeight], Finished]:
        return self.kept.get(index)

    def other_tensors(self, index: int) -> dict[str, torch.Tensor]:
        return self.kept.other_tensors(index)

    def operators(self, index: int, transforms: Sequence[Transform]) -> dict[str, InputOperator]:
        return self.kept.operators(index, transforms)


def timed(cases: tuple[Case, ...], make: Callable[[Path, Case], None]) -> dict[Case, Stages]:
    """The least CPU seconds a block of every stage; `make` writes the checkpoint of a case."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found: dict[Case, Stages] = {}
        for _ in range(ROUNDS):
            for case in cases:
                for block in _blocks(case, make)[1:]:
                    best = found.setdefault(case, dict(block))
                    best |= {stage: min(spent, best[stage]) for stage, spent in block.items()}
        return found
    finally:
        torch.set_num_threads(threads)


def _blocks(case: Case, make: Callable[[Path, Case], None]) -> list[Stages]:
    from quant.calibrate.stream import quantize_blocks
    from quant.checkpoint.partial import Making, partial_artifact
    from quant.checkpoint.source import CheckpointSource
    from quant.config import QuantizationConfig
    from quant.scheme import Scheme
    from quant.solvers import gptq

    config = QuantizationConfig(gptq.SOLVER, Scheme(4, 128), batch_tokens=BATCH_TOKENS)
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make(model, case)
        making = Making(Path(folder) / "artifact", config.layers, {}, {"name": "gptq"})
        with (
            CheckpointSource(model, torch.float32) as source,
            partial_artifact(making, source) as partial,
            mock.patch("time.perf_counter", time.thread_time),  # the clock of quant.calibrate.cost
        ):
            sink = BlockSeconds(partial)
            quantize_blocks(source, calibration(case), config, sink)
    return sink.blocks


def calibration(case: Case) -> list[torch.Tensor]:
    """Windows of random token ids."""
    generator = torch.Generator().manual_seed(1)
    count = case.tokens // case.window
    return [torch.randint(0, 512, (case.window,), generator=generator) for _ in range(count)]


def fitted_rates(measured: Mapping[Case, Stages]) -> dict[str, float]:
    """The rate of every term: least squares of relative errors, no term takes negative time."""
    rates = dict(FREE)
    for stages in FITTED:
        rows = [
            ({t: x for t, x in case.work[stage].items() if t not in FREE}, got[stage])
            for case, got in measured.items()
            for stage in stages
        ]
        rates |= _rates(rows)
    return rates


def _rates(rows: list[tuple[dict[str, float], float]]) -> dict[str, float]:
    terms = list(dict.fromkeys(term for amounts, _ in rows for term in amounts))
    rates = dict.fromkeys(terms, math.inf)
    while terms:
        table = [[amounts.get(term, 0.0) / spent for term in terms] for amounts, spent in rows]
        matrix = torch.tensor(table, dtype=torch.float64)
        # Amounts lie up to 10^9 apart: columns of one size make a sound system.
        sizes = matrix.norm(dim=0)
        target = torch.ones(len(rows), 1, dtype=torch.float64)
        each = torch.linalg.lstsq(matrix / sizes, target, driver="gelsd").solution[:, 0] / sizes
        least = int((each * sizes).argmin())
        if each[least] > 0:
            return rates | {term: 1 / float(x) for term, x in zip(terms, each, strict=True)}
        del terms[least]
    return rates


def predicted(case: Case, rates: Mapping[str, float]) -> Stages:
    """Seconds a block of every stage at these rates."""
    return cost_model.seconds(case.work, rates)


def report(measured: Mapping[Case, Stages], rates: Mapping[str, float]) -> list[str]:
    """The rates, predicted / measured seconds of every case, and the range of their ratios."""
    stages = [stage for together in FITTED for stage in together]
    lines = ["| rate | a second | of |", "|---|---:|---|"]
    for term, unit in UNITS.items():
        rate = "costs nothing that shows" if math.isinf(rates[term]) else f"{rates[term]:.3g}"
        lines.append(f"| {term} | {rate} | {unit} |")
    lines += [
        "",
        "CPU milliseconds a block, predicted / measured:",
        "",
        f"| | width | inner | tokens | window | {' | '.join(stages)} | all | ratio |",
        "|---|" + "---:|" * (6 + len(stages)),
    ]
    for case, got in measured.items():
        expected = predicted(case, rates)
        cells = [f"{1e3 * expected[s]:.0f} / {1e3 * got[s]:.0f}" for s in stages]
        whole = sum(expected[s] for s in stages), sum(got[s] for s in stages)
        cells += [f"{1e3 * whole[0]:.0f} / {1e3 * whole[1]:.0f}", f"{whole[0] / whole[1]:.2f}"]
        which = "fitted" if case in FIT else "held out"
        lines.append(
            f"| {which} | {case.width} | {case.inner} | {case.tokens} | {case.window} | "
            f"{' | '.join(cells)} |"
        )
    lines += ["", *_spread(measured, rates, stages)]
    return lines


def _spread(
    measured: Mapping[Case, Stages], rates: Mapping[str, float], stages: list[str]
) -> list[str]:
    held = {case: got for case, got in measured.items() if case not in FIT}
    ratios = {s: [predicted(c, rates)[s] / got[s] for c, got in held.items()] for s in stages}
    ratios["all"] = [
        sum(predicted(c, rates)[s] for s in stages) / sum(got[s] for s in stages)
        for c, got in held.items()
    ]
    parts = [f"{name} {min(found):.2f} to {max(found):.2f}" for name, found in ratios.items()]
    widths = sorted({case.width for case in held})
    worst = max(abs(ratio - 1) for ratio in ratios["all"])
    return [
        f"Predicted over measured in the {len(held)} held-out cases: {'; '.join(parts)}. The whole "
        f"block is predicted within {100 * worst:.0f} % for widths {widths[0]} to {widths[-1]}."
    ]
