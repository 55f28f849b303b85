"""Quantize in a process of its own and kill it (SIGKILL) at a chosen moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from quant.calibrate.layers import BlockSolver
from quant.calibrate.stream import QuantizationResult, Workplace
from quant.checkpoint import partial
from quant.checkpoint.make import files_hash, quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.config import QuantizationConfig
from quant.scheme import Scheme
from quant.solvers import gptq, qronos, rtn
from quant.transforms import awq, equalize, hadamard, residual_hadamard, round_inputs
from tests.quant import rotating
from tests.quant.architectures import random_windows

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
KEPT = equalize.Options(keep="where_needed", powers_of_two=False)
OPTIONS = gptq.Options(act_order=True, damping=0.1)
CONFIGS = {
    "rtn": QuantizationConfig(rtn.SOLVER, SCHEME, batch_tokens=50),
    "gptq": QuantizationConfig(gptq.SOLVER, SCHEME, OPTIONS, batch_tokens=50),
    "equalized": QuantizationConfig(
        gptq.SOLVER, SCHEME, OPTIONS, ((equalize.TRANSFORM, None),), batch_tokens=50
    ),
    "kept": QuantizationConfig(
        gptq.SOLVER, SCHEME, OPTIONS, ((equalize.TRANSFORM, KEPT),), batch_tokens=50
    ),
    "awq": QuantizationConfig(
        gptq.SOLVER, SCHEME, OPTIONS, ((awq.TRANSFORM, awq.Options(steps=4)),), batch_tokens=50
    ),
    "rotated": QuantizationConfig(
        gptq.SOLVER, SCHEME, OPTIONS, ((rotating.TRANSFORM, None),), batch_tokens=50
    ),
    "residual": QuantizationConfig(
        gptq.SOLVER,
        SCHEME,
        OPTIONS,
        ((residual_hadamard.TRANSFORM, None), (hadamard.TRANSFORM, None)),
        batch_tokens=50,
    ),
    "qronos": QuantizationConfig(
        qronos.SOLVER,
        SCHEME,
        qronos.Options(true_sequential=True),
        ((rotating.TRANSFORM, None),),
        batch_tokens=50,
    ),
    "rounded": QuantizationConfig(
        qronos.SOLVER,
        SCHEME,
        transforms=(
            (rotating.TRANSFORM, None),
            (round_inputs.TRANSFORM, round_inputs.Options(4, "tensor", symmetric=False)),
        ),
        batch_tokens=50,
    ),
}


def make(
    model: Path, target: Path, activations: str = "cpu", method: str = "gptq"
) -> QuantizationResult:
    """Quantize the folder `model` into `target`: act-order, so that groups are scattered."""
    config = CONFIGS[method]
    with CheckpointSource(model, torch.float32) as source:
        return quantize_to(
            target,
            source,
            random_windows(5) if config.needs_calibration else [],
            config,
            model_hash=files_hash(model),
            method={"name": method},
            workplace=Workplace(activations=activations),
        )


def kill(model: Path, target: Path, when: str, block: int, *more: str) -> None:
    """Run `make` in a process that is killed when block `block` is

    "solved"   handed over: the block before it is written.
    "writing"  half written by the other thread, while a layer of the block after it is solved.
    "written"  all there but its note.
    "noted"    all there.
    """
    process = CONTEXT.Process(target=_make_and_die, args=(model, target, when, block, *more))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def _make_and_die(model: Path, target: Path, when: str, block: int, *more: str) -> None:
    torch.set_num_threads(1)
    put, keep = partial.PartialArtifact.put, partial.PartialArtifact._keep
    write_json, write_shard = partial._write_json, partial.write_shard
    solve, half_written = BlockSolver.group, threading.Event()

    def dying_put(self: Any, index: int, *rest: Any) -> Callable[[], None]:
        if index == block and when == "solved":
            _die()
        return put(self, index, *rest)

    def dying_keep(self: Any, index: int, *rest: Any) -> None:
        keep(self, index, *rest)
        if index == block and when == "noted":
            _die()

    def dying_write(path: Path, content: Any) -> None:
        if when == "written" and path.name == f"{block:05}.json":
            _die()
        write_json(path, content)

    def halting_write(path: Path, entries: Any) -> None:
        write_shard(path, entries)
        if when == "writing" and f"-{block + 1:05}-of-" in path.name:
            os.truncate(path, path.stat().st_size // 2)
            half_written.set()
            time.sleep(60)

    def dying_solve(self: Any, *rest: Any) -> Any:
        if when == "writing" and self.index == block + 1:
            assert half_written.wait(60)
            _die()
        return solve(self, *rest)

    partial.PartialArtifact.put = dying_put  # type: ignore[method-assign]
    partial.PartialArtifact._keep = dying_keep  # type: ignore[method-assign]
    BlockSolver.group = dying_solve  # type: ignore[method-assign]
    _replace(partial, "_write_json", dying_write)
    _replace(partial, "write_shard", halting_write)
    make(model, target, *more)


def _replace(module: Any, name: str, value: Callable[..., None]) -> None:
    setattr(module, name, value)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
