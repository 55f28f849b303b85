"""Quantize models in this process, whose environment decides on instruction sets; say what came.

  python -m tests.quant.one_setting RUNS.json

RUNS is a list of {"model": folder, "windows": [[id, ...], ...], "scheme": {...}, "options": {...},
"solver": name, "transforms": bool, "batch_tokens": n, "threads": n, "arithmetic": name,
"kernel": name}. Prints a JSON list of {"artifact": sha256 of its manifest, "loss": the sum}.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from quant.checkpoint.make import quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.config import QuantizationConfig
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.transforms import awq, equalize

TRANSFORMS = ((equalize.TRANSFORM, None), (awq.TRANSFORM, awq.Options(steps=8)))
SOLVERS = {"gptq": gptq, "rtn": rtn}


def run(wanted: dict[str, Any]) -> dict[str, Any]:
    """One quantization."""
    torch.set_num_threads(wanted.get("threads", 1))
    solver = SOLVERS[wanted.get("solver", "gptq")]
    options = gptq.Options(**wanted.get("options", {})) if solver is gptq else None
    config = QuantizationConfig(
        solver.SOLVER,
        Scheme(**wanted["scheme"]),
        options,
        transforms=TRANSFORMS if wanted.get("transforms") else (),
        kernel=wanted.get("kernel", "auto"),
        batch_tokens=wanted.get("batch_tokens", 2048),
        arithmetic=wanted.get("arithmetic", "portable"),
    )
    windows = [torch.tensor(window) for window in wanted["windows"]]
    with (
        tempfile.TemporaryDirectory() as folder,
        CheckpointSource(wanted["model"], torch.float32) as source,
    ):
        target = Path(folder) / "artifact"
        method = {"name": solver.SOLVER.name}
        result = quantize_to(target, source, windows, config, model_hash="m", method=method)
        manifest = (target / "artifact.json").read_bytes()
    losses = [layer.loss or 0.0 for layer in result.layers]
    return {"artifact": hashlib.sha256(manifest).hexdigest(), "loss": sum(losses)}


if __name__ == "__main__":
    found = [run(wanted) for wanted in json.loads(Path(sys.argv[1]).read_text())]
    print(json.dumps(found))
