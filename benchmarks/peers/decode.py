"""Decoding beside llama.cpp: SmolLM2-135M at batch 1 on this processor, in one run.

Ours has random weights, in which times do not differ; the scheme packs its head at 8 bits, as the
file of llama.cpp has it, and once leaves it float32.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import environment
from benchmarks.peers.figures import conditions, spread
from quant.decode.caches import Decoder
from quant.decode.choose import make_decoder
from quant.measure.architectures import architecture_config
from quant.measure.dummy import build_dummy
from quant.measure.roofline import weight_bytes_per_token
from quant.scheme import Scheme

ARCHITECTURE = "smollm2-135m"
SCHEMES = tuple(Scheme(bits, 64, head=Scheme(8, 32)) for bits in (4, 3, 2))
PROMPT, TOKENS, LONG, ROUNDS = 16, 32, 512, 5


@dataclass
class Times:
    """Milliseconds of every round: by the clock, and of the processor (all threads together)."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def add(self, clock: float, processor: float) -> None:
        self.clock.append(clock)
        self.processor.append(processor)


@dataclass
class Subject:
    """Something that decodes: its name, the bytes that a token reads, and what it took."""

    name: str
    read: int
    decode: Times = field(default_factory=Times)
    prompt: Times = field(default_factory=Times)


class Ours(Subject):
    """A dummy of SmolLM2-135M through quant.decode."""

    def __init__(self, scheme: Scheme | None) -> None:
        config = architecture_config(ARCHITECTURE)
        model = build_dummy(
            config, scheme, device="cpu", dtype=torch.float32, kernel="auto", seed=0
        )
        super().__init__(scheme.name if scheme else "float32", weight_bytes_per_token(model))
        generator = torch.Generator().manual_seed(1)
        self._long = torch.randint(0, config.vocab_size, (1, LONG), generator=generator)
        self._decoder = _fused(model, self._long[:, :PROMPT])

    def round(self) -> None:
        self._decoder.prefill(self._long[:, :PROMPT])
        self.decode.add(*(value / TOKENS for value in _timed(self._steps)))
        self.prompt.add(*_timed(lambda: self._decoder.prefill(self._long)))

    def _steps(self) -> None:
        for _ in range(TOKENS):
            self._decoder.step()


class LlamaCpp(Subject):
    """The peer in a process of its own; it waits on a pipe while ours is measured."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        about = self._read()
        self.system = about["system"]
        super().__init__(f"llama.cpp Q4_1 ({about['version']})", about["bytes"])

    def round(self) -> None:
        for what, number, times in (("decode", TOKENS, self.decode), ("prompt", LONG, self.prompt)):
            assert self._child.stdin is not None
            self._child.stdin.write(f"{what} {number}\n")
            self._child.stdin.flush()
            found = self._read()
            times.add(found["ms"], found["processor_ms"])

    def _read(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with status {self._child.wait()}.")
        return json.loads(line)


def decode() -> None:
    """SmolLM2-135M on the processor: ms a token and of a prompt of 512, beside llama.cpp."""
    interpreter = environment.interpreter("llama.cpp")
    ours = [Ours(scheme) for scheme in (*SCHEMES, SCHEMES[0].without_head, None)]
    subjects: list[Ours | LlamaCpp] = list(ours)
    if interpreter is None:
        _run(subjects)
        return
    with _peer(interpreter) as peer:
        _run([peer, *subjects])
        print(f"llama.cpp: {peer.system}")


def _run(subjects: list[Ours | LlamaCpp]) -> None:
    for turn in range(ROUNDS + 1):
        if turn == 1:  # the first round warms up
            for each in subjects:
                each.decode, each.prompt = Times(), Times()
        for each in subjects[:: 1 if turn % 2 == 0 else -1]:
            each.round()
        print(f"round {turn} of {ROUNDS}", file=sys.stderr, flush=True)
    print(table(subjects))
    print(conditions())


def table(subjects: Sequence[Subject]) -> str:
    """Medians [fastest, slowest] of the rounds; by the clock, and the processor's time beside."""
    lines = [
        f"{'':<34}{'MB read':>8}{'ms a token':>24}{'processor':>11}{f'prompt of {LONG}, ms':>26}"
        f"{'processor':>11}"
    ]
    for each in subjects:
        lines.append(
            f"{each.name:<34}{each.read / 1e6:>8.1f}{spread(each.decode.clock, 2):>24}"
            f"{statistics.median(each.decode.processor):>11.2f}"
            f"{spread(each.prompt.clock, 0):>26}{statistics.median(each.prompt.processor):>11.0f}"
        )
    return "\n".join(lines)


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds by the clock, and of the processor."""
    start, spent = time.perf_counter(), time.process_time()
    run()
    return 1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - spent)


def _fused(model: Any, prompt: torch.Tensor) -> Decoder:
    decoder = make_decoder(model, prompt, LONG)
    if decoder.reason:
        raise RuntimeError(f"not the path to be measured: {decoder.mode} ({decoder.reason}).")
    return decoder


@contextmanager
def _peer(interpreter: Path) -> Iterator[LlamaCpp]:
    command = [
        str(interpreter),
        str(environment.HERE / "llama_cpp.py"),
        str(torch.get_num_threads()),
    ]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        try:
            yield LlamaCpp(child)
        finally:
            child.terminate()
