"""Divergences from compressed references beside whole ones: bias, stated error, bytes and times.

  python -m benchmarks.compression MODEL_FOLDER TEXT_FILE --bits 8 4 3 --windows 4 --length 512

The model is rounded to nearest in groups of 64 at each width. The table of docs/protocols.md is of
SmolLM2-135M-Instruct and WikiText-2's test text.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.config.schema import ModelConfig
from harness.models.folders import load_model, load_tokenizer
from harness.suites.compressed import ENTRIES, Compressed, compress
from harness.suites.distributions import compare, joined
from quant.blocks import find_blocks, linear_layers, set_weight_matrix, weight_matrix
from quant.scheme import Scheme
from quant.solvers import rtn

GROUP = 64


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line for every width."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a Hugging Face folder")
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3])
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args(arguments)
    described = ModelConfig(name=options.model.name, source="local", dtype="float32")
    model = load_model(options.model, described, "cpu")
    tokenizer = load_tokenizer(options.model, described)
    wanted = options.windows * options.length
    text = options.text.read_text(encoding="utf-8")[: 20 * wanted]
    ids = torch.tensor(tokenizer(text)["input_ids"][:wanted]).view(options.windows, -1)
    with torch.inference_mode():
        show(model, ids, options.bits)


def show(model: Any, ids: Tensor, widths: Sequence[int]) -> None:
    """Compare whole and compressed divergences on windows of ids [windows, length]."""
    first = [model(input_ids=window[None]).logits[0] for window in ids]
    kept, seconds = timed(lambda: [compress(each, 0, at) for at, each in enumerate(first)])
    size = sum(len(each.to_bytes()) for each in kept)
    whole = sum(each.float().nbytes for each in first)
    count = ids.numel()
    print(f"{ENTRIES} logits a position: 1/{whole / size:.1f} of float32's bytes; "
          f"compressed in {1e3 * seconds / count:.2f} ms a position")  # fmt: skip
    for bits in widths:
        other = rounded(model, bits)
        second = [other(input_ids=window[None]).logits[0] for window in ids]
        report(bits, first, kept, second)


def report(bits: int, first: list[Tensor], kept: list[Compressed], second: list[Tensor]) -> None:
    """Print one line."""
    exact, took = timed(lambda: joined([compare(a, b) for a, b in zip(first, second, strict=True)]))
    every = slice(0, len(second[0]))
    found, less = timed(
        lambda: joined([a.compared(every, b) for a, b in zip(kept, second, strict=True)])
    )
    assert found.certain is not None
    assert found.variance is not None
    mean, count = float(exact.divergence.mean()), len(exact.divergence)
    estimate, least = float(found.divergence.mean()), float(found.certain.mean())
    error = math.sqrt(float(found.variance.sum())) / count
    print(
        f"{bits} bits: KL {mean:.6g}, estimate {estimate:.6g} "
        f"({100 * (estimate / mean - 1):+.3f} %, stated "
        f"± {100 * error / mean:.3f} %), at least {100 * least / mean:.1f} %; "
        f"{1e3 * took / count:.2f} ms a position, compressed {1e3 * less / count:.2f}",
        flush=True,
    )


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the processor seconds that it took."""
    start = time.process_time()
    return run(), time.process_time() - start


def rounded(model: Any, bits: int) -> Any:
    """The model with the layers of its blocks rounded to nearest, in full precision."""
    made, scheme = copy.deepcopy(model), Scheme(bits, GROUP)
    for block in find_blocks(made).modules:
        for layer in linear_layers(block).values():
            found = rtn.solve(weight_matrix(layer), scheme)
            set_weight_matrix(layer, found.weight.dequantize())
    return made


if __name__ == "__main__":
    main()
