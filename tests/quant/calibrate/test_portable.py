"""Portable arithmetic: one artifact, whatever the instruction set, the threads and the batches."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from quant.arithmetic import FAST, PORTABLE
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.scheme import Scheme
from quant.solvers import gptq
from tests import warm
from tests.quant.architectures import random_windows, tiny_model, uneven_model

ROOT = Path(__file__).resolve().parents[3]
EMBEDDED = ROOT / "harness" / "embedded" / "model"
# What decides instruction sets: torch's own loops, MKL, oneDNN and our kernels.
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "BITSWEEP_CPU_ISA": "portable",
}
LEVELS = ("default", "avx2", "avx512")


def in_setting(environment: dict[str, str], runs: list[dict[str, Any]], folder: Path) -> Any:
    """What runs give in a process with this environment."""
    file = folder / "runs.json"
    file.write_text(json.dumps(runs))
    if not environment:  # this one's: libraries that have read it may be there already
        done = warm.run(["-m", "tests.quant.one_setting", str(file)], check=True)
        return json.loads(done.stdout.splitlines()[-1])
    kept = {name: value for name, value in os.environ.items() if name not in PLAIN}
    done = subprocess.run(
        [sys.executable, "-m", "tests.quant.one_setting", str(file)],
        env={**kept, "GOMP_SPINCOUNT": "0", **environment},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def levels_here() -> list[str]:
    """Instruction sets of torch's loops that this processor has."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    return list(LEVELS[: LEVELS.index(best) + 1]) if best in LEVELS else ["default"]


def ids(vocabulary: int, count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, (count, length), generator=generator).tolist()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models as files: drawn anew in each setting, random weights would differ in the last bit."""
    root = tmp_path_factory.mktemp("models")
    short = AutoModelForCausalLM.from_pretrained(EMBEDDED, num_hidden_layers=2)
    short.save_pretrained(root / "embedded")
    uneven_model("qwen3").save_pretrained(root / "qwen3")
    return {name: root / name for name in ("embedded", "qwen3")}


def runs_of(folders: dict[str, Path], threads: int, batch_tokens: int) -> list[dict[str, Any]]:
    how = {"threads": threads, "batch_tokens": batch_tokens}
    embedded = {"model": str(folders["embedded"]), "windows": ids(1472, 4, 128)}
    qwen = {"model": str(folders["qwen3"]), "windows": ids(96, 8, 60)}
    return [
        {**embedded, **how, "scheme": {"bits": 2, "group_size": 128}},
        {**embedded, **how, "scheme": {"bits": 3, "grid": "mse"}, "solver": "rtn"},
        {**qwen, **how, "scheme": {"bits": 4, "group_size": 16}, "options": {"act_order": True}},
        {**qwen, **how, "scheme": {"bits": 3}, "transforms": True},
    ]


def test_three_settings_give_one_artifact(folders: dict[str, Path], tmp_path: Path) -> None:
    # One and two threads, two windows a batch and all of them; then the plainest instructions.
    usual = [*runs_of(folders, 1, 256), *runs_of(folders, 2, 2048)]
    plain = runs_of(folders, 1, 2048)
    found = [*in_setting({}, usual, tmp_path), *in_setting(PLAIN, plain, tmp_path)]
    assert len(found) == 3 * len(plain)
    for number in range(len(plain)):
        first, *others = found[number :: len(plain)]
        for other in others:
            assert other["artifact"] == first["artifact"]
            # The sum of what was lost shows how far the numbers behind the codes are apart.
            assert other["loss"] == pytest.approx(first["loss"], rel=1e-12)


@pytest.mark.long
@pytest.mark.realdata
def test_every_setting_gives_one_artifact(
    folders: dict[str, Path], shared: Path, tmp_path: Path
) -> None:
    """All of the matrix, whole models: a quarter of an hour."""
    models = {
        "embedded": (EMBEDDED, ids(1472, 16, 512)),
        "tinystories-656k": (shared / "models" / "tinystories-656k", ids(2048, 16, 256)),
        "qwen3": (folders["qwen3"], ids(96, 12, 60)),
    }
    cases = list(itertools.product(models, ({"bits": 2, "group_size": 32}, {"bits": 4})))
    hashes: dict[str, set[str]] = {}
    for level, mkl, isa in settings():
        runs = [
            {
                "model": str(models[name][0]),
                "windows": models[name][1],
                "scheme": scheme,
                "threads": threads,
                "batch_tokens": batch,
                "kernel": kernel,
            }
            for name, scheme in cases
            for threads, batch in itertools.product((1, 2), (512, 2048))
            for kernel in ("auto", "reference")
        ]
        environment = {"ATEN_CPU_CAPABILITY": level, "BITSWEEP_CPU_ISA": isa} | mkl
        for wanted, made in zip(runs, in_setting(environment, runs, tmp_path), strict=True):
            what = f"{Path(wanted['model']).name} {wanted['scheme']}"
            hashes.setdefault(what, set()).add(made["artifact"])
    for what, found in hashes.items():
        print(what, *sorted(found))
    assert {what: len(found) for what, found in hashes.items()} == dict.fromkeys(hashes, 1)


def settings() -> Iterator[tuple[str, dict[str, str], str]]:
    """torch's loops, MKL and oneDNN, our kernels: those of this processor, together and mixed."""
    ours = {"default": "portable"}
    plain = {name: PLAIN[name] for name in ("MKL_CBWR", "ONEDNN_MAX_CPU_ISA")}
    for level in levels_here():
        yield level, {}, ours.get(level, level)
    yield "default", plain, "portable"
    yield levels_here()[-1], plain, "portable"


def test_weights_stay_what_the_dtype_of_the_model_holds() -> None:
    config = QuantizationConfig(gptq.SOLVER, Scheme(4, 16), arithmetic=PORTABLE)
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model("llama").to(dtype)
        outside = {n: p.clone() for n, p in model.named_parameters() if "layers" not in n}
        result = quantize_model(model, random_windows(8), config)
        name, weight = next(iter(result.weights.items()))
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        assert torch.equal(module.weight, weight.dequantize().to(dtype))
        for other, value in outside.items():
            assert torch.equal(model.get_parameter(other), value)


def test_transforms_are_folded_as_in_fast_arithmetic() -> None:
    from quant.transforms import equalize

    notes = []
    for arithmetic in (FAST, PORTABLE):
        model = uneven_model("llama")
        config = QuantizationConfig(
            gptq.SOLVER,
            Scheme(4, 16),
            transforms=((equalize.TRANSFORM, equalize.Options(powers_of_two=False)),),
            arithmetic=arithmetic,
        )
        layers = quantize_model(model, random_windows(8), config).layers
        notes.append([layer.transforms for layer in layers])
    assert notes[0] == notes[1]
