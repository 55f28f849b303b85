"""GPTQ on one GPU: random OPT models of real size through the whole calibration, timed by stage.

  python -m benchmarks.gpu_solver --shape opt-175b     two of its 96 blocks, the rest extrapolated
  python -m benchmarks.gpu_solver --shape opt-13b      all 40 blocks, measured

Needs torch and transformers alone. Weights and calibration tokens are random: the work, not the
result, is that of the real model. Published times: Table 2 of the GPTQ paper (arXiv 2210.17323), on
one A100 of 80 GB.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import torch
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from cuda_ext.ops import resolve_kernel
from quant.scheme import Scheme
from quant.solvers.gptq import GPTQOptions
from quant.stream import QuantizationPlan, QuantizationResult, Workplace, quantize_model

STAGES = ("layout", "capture", "hessian", "solve", "forward")


@dataclass(frozen=True)
class Shape:
    """An OPT model: sizes, calibration (sequences x tokens), and how many blocks are run."""

    width: int
    feed_forward: int
    heads: int
    blocks: int
    run: int
    sequences: int
    length: int
    published: str


SHAPES = {
    "opt-175b": Shape(12288, 49152, 96, 96, 2, 128, 2048, "4.2 h"),
    "opt-66b": Shape(9216, 36864, 72, 64, 2, 128, 2048, "1.6 h"),
    "opt-13b": Shape(5120, 20480, 40, 40, 40, 128, 2048, "20.9 min"),
    "tiny": Shape(128, 512, 4, 6, 2, 4, 64, "none"),
}


def random_model(shape: Shape, blocks: int, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """`blocks` blocks of the shape with OPT's own initialization, and a small vocabulary."""
    config = OPTConfig(
        hidden_size=shape.width,
        word_embed_proj_dim=shape.width,
        ffn_dim=shape.feed_forward,
        num_attention_heads=shape.heads,
        num_hidden_layers=blocks,
        vocab_size=1024,
        max_position_embeddings=shape.length,
        dropout=0.0,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return OPTForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def quantize(shape: Shape, blocks: int, device: str, plan: QuantizationPlan) -> QuantizationResult:
    """Quantize a random model; prints a line a layer of its first block as it goes."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    model = random_model(shape, blocks, device, dtype)
    generator = torch.Generator().manual_seed(1)
    windows = [
        torch.randint(0, 1024, (shape.length,), generator=generator) for _ in range(shape.sequences)
    ]

    def progress(done: int, total: int, name: str) -> None:
        if done <= total // blocks or done % 24 == 0:
            print(f"  {done}/{total} {name}", flush=True)

    # Activations stay on the GPU (6 GiB at most), as in the published runs.
    return quantize_model(model, windows, plan, progress, Workplace(activations=device))


def show(name: str, shape: Shape, blocks: int, result: QuantizationResult) -> None:
    """Seconds by stage, of one block, and of the whole model, said to be extrapolated if it is."""
    seconds = {cost.name: cost.seconds for cost in result.stages}
    peaks = [cost.peak_bytes for cost in result.stages if cost.peak_bytes is not None]
    sweep = sum(layer.seconds for layer in result.layers)
    for stage in STAGES:
        print(f"{stage:<10} {seconds.get(stage, 0.0):10.2f} s")
    factor = seconds["solve"] - sweep
    print(f"  of solve: sweeps {sweep:.2f} s, factorizations and writing back {factor:.2f} s")
    print(f"peak memory {max(peaks, default=0) / 2**30:.1f} GiB")
    # The last block makes no inputs for another: it has no forward stage.
    forward = seconds.get("forward", 0.0) / max(blocks - 1, 1)
    block = (seconds["hessian"] + seconds["solve"]) / blocks + forward
    print(f"one block  {block:10.2f} s")
    once = seconds.get("layout", 0.0) + seconds.get("capture", 0.0)
    total = once + block * shape.blocks if blocks < shape.blocks else sum(seconds.values())
    how = "measured" if blocks >= shape.blocks else f"EXTRAPOLATED from {blocks} blocks"
    print(
        f"{name}, {shape.blocks} blocks, {shape.sequences} x {shape.length} tokens: "
        f"{total / 60:.1f} min ({how}; published on one A100: {shape.published})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="opt-175b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--blocks", type=int, help="blocks to run (default: by shape)")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--kernel", default="auto", help="auto, cuda, cpu or reference")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "no GPU here: torch.cuda.is_available() is False; run this on a machine with one, or "
            "try it with --shape tiny --device cpu.",
            file=sys.stderr,
        )
        return 2
    shape = SHAPES[arguments.shape]
    blocks = min(arguments.blocks or shape.run, shape.blocks)
    kernel = resolve_kernel(arguments.kernel, arguments.device)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else "the CPU"
    print(f"{arguments.shape} on {where}, torch {torch.__version__}, kernel {kernel}")
    plan = QuantizationPlan(
        "gptq",
        Scheme(arguments.bits),
        gptq=GPTQOptions(kernel=kernel),
        batch_tokens=arguments.batch_tokens,
    )
    result = quantize(shape, blocks, arguments.device, plan)
    show(arguments.shape, shape, blocks, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
