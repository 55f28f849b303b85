"""Quantize in a process of its own and kill it (SIGKILL) at a chosen moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from architectures import random_windows

from quant.checkpoint import partial
from quant.checkpoint.make import files_hash, quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.layers import QuantizationPlan
from quant.scheme import Scheme
from quant.solvers.gptq import GPTQOptions
from quant.stream import QuantizationResult, Workplace

CONTEXT = multiprocessing.get_context("forkserver")
# Heavy ones, and none that only the path of the tests would find.
CONTEXT.set_forkserver_preload(
    [
        "quant.checkpoint.make",
        "quant.checkpoint.source",
        "transformers.models.auto.modeling_auto",
        "transformers.models.llama.modeling_llama",
    ]
)

SCHEME = Scheme(4, group_size=16)


def make(
    model: Path, target: Path, activations: str = "cpu", method: str = "gptq"
) -> QuantizationResult:
    """Quantize the folder `model` into `target`: act-order, so that groups are scattered."""
    plan = QuantizationPlan(method, SCHEME, batch_tokens=50)
    if method == "gptq":
        options = GPTQOptions(act_order=True, damping=0.1)
        plan = QuantizationPlan(method, SCHEME, options, batch_tokens=50)
    with CheckpointSource(model, torch.float32) as source:
        return quantize_to(
            target,
            source,
            random_windows(5) if method == "gptq" else [],
            plan,
            model_hash=files_hash(model),
            method={"name": method},
            workplace=Workplace(activations=activations),
        )


def kill(model: Path, target: Path, when: str, block: int, *more: str) -> None:
    """Run `make` in a process that is killed in block `block`: "solved", "written" or "noted"."""
    process = CONTEXT.Process(target=_make_and_die, args=(model, target, when, block, *more))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def _make_and_die(model: Path, target: Path, when: str, block: int, *more: str) -> None:
    torch.set_num_threads(1)
    put, write_json = partial.PartialArtifact.put, partial._write_json

    def dying_put(self: Any, index: int, *rest: Any) -> None:
        if index == block and when == "solved":
            _die()
        put(self, index, *rest)
        if index == block and when == "noted":
            _die()

    def dying_write(path: Path, content: Any) -> None:
        if when == "written" and path.name == f"{block:05}.json":
            _die()
        write_json(path, content)

    partial.PartialArtifact.put = dying_put  # type: ignore[method-assign]
    _replace(partial, "_write_json", dying_write)
    make(model, target, *more)


def _replace(module: Any, name: str, value: Callable[..., None]) -> None:
    setattr(module, name, value)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
