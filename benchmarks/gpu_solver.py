"""GPTQ on one GPU: random OPT models of real size through the whole calibration, timed by stage.

  python -m benchmarks.gpu_solver --shape opt-175b     two of its 96 blocks, the rest extrapolated
  python -m benchmarks.gpu_solver --shape opt-13b      all 40 blocks, measured

Needs torch and transformers alone. Weights and calibration tokens are random: the work, not the
result, is that of the real model. Published times: Table 2 of the GPTQ paper (arXiv 2210.17323), on
one A100 of 80 GB.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from cuda_ext.ops import resolve_kernel
from quant.calibrate.stream import QuantizationResult, Workplace, quantize_model
from quant.config import QuantizationConfig
from quant.scheme import Scheme
from quant.solvers import gptq

STAGES = ("structure", "capture", "read", "hessian", "solve", "write", "forward")
OF_A_BLOCK = ("read", "hessian", "solve", "write")


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
            model: PreTrainedModel = OPTForCausalLM(config).eval()
            return model
    finally:
        torch.set_default_dtype(before)


def quantize(
    shape: Shape, blocks: int, device: str, config: QuantizationConfig
) -> QuantizationResult:
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
    return quantize_model(model, windows, config, progress, Workplace(activations=device))


@dataclass(frozen=True)
class Timing:
    """Seconds of the blocks that ran, by stage, and of the whole model: measured, or extrapolated.

    column_loop_s and factor_s are parts of the stage "solve": column loops, and factorizations with
    writing back.
    """

    stages: dict[str, float]
    column_loop_s: float
    factor_s: float
    block_s: float
    total_s: float
    extrapolated_from: int | None
    peak_bytes: int | None


def timing(shape: Shape, blocks: int, result: QuantizationResult) -> Timing:
    """What a run of `blocks` of the shape's blocks took."""
    seconds = {cost.name: cost.seconds for cost in result.stages}
    loop = sum(layer.seconds for layer in result.layers)
    # The last block makes no inputs for another: it has no forward stage.
    forward = seconds.get("forward", 0.0) / max(blocks - 1, 1)
    block = sum(seconds.get(stage, 0.0) for stage in OF_A_BLOCK) / blocks + forward
    once = seconds.get("structure", 0.0) + seconds.get("capture", 0.0)
    whole = blocks == shape.blocks
    return Timing(
        stages={stage: seconds.get(stage, 0.0) for stage in STAGES},
        column_loop_s=loop,
        factor_s=seconds["solve"] - loop,
        block_s=block,
        total_s=sum(seconds.values()) if whole else once + block * shape.blocks,
        extrapolated_from=None if whole else blocks,
        peak_bytes=max(
            (c.peak_bytes for c in result.stages if c.peak_bytes is not None), default=None
        ),
    )


def show(name: str, shape: Shape, found: Timing) -> None:
    """Seconds by stage, of one block, and of the whole model, said to be extrapolated if it is."""
    for stage, seconds in found.stages.items():
        print(f"{stage:<10} {seconds:10.2f} s")
    print(
        f"  of solve: column loops {found.column_loop_s:.2f} s, factorizations and writing back "
        f"{found.factor_s:.2f} s"
    )
    if found.peak_bytes is not None:
        print(f"peak memory {found.peak_bytes / 2**30:.1f} GiB")
    print(f"one block  {found.block_s:10.2f} s")
    how = "measured"
    if found.extrapolated_from is not None:
        how = f"EXTRAPOLATED from {found.extrapolated_from} blocks"
    print(
        f"{name}, {shape.blocks} blocks, {shape.sequences} x {shape.length} tokens: "
        f"{found.total_s / 60:.1f} min ({how}; published on one A100: {shape.published})"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="opt-175b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--blocks", type=int, help="blocks to run (default: by shape)")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--kernel", default="auto", help="auto, cuda, cpu or reference")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--json", type=Path, help="write everything to this file, too")
    return parser


def main(command: Sequence[str] | None = None) -> int:
    """0, or 2 with one sentence where there is no GPU."""
    arguments = _parser().parse_args(command)
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
    config = QuantizationConfig(
        gptq.SOLVER,
        Scheme(arguments.bits),
        kernel=kernel,
        batch_tokens=arguments.batch_tokens,
    )
    result = quantize(shape, blocks, arguments.device, config)
    found = timing(shape, blocks, result)
    show(arguments.shape, shape, found)
    if arguments.json:
        told = {
            "name": arguments.shape,
            "device": where,
            "torch": torch.__version__,
            "kernel": kernel,
            "bits": arguments.bits,
            "batch_tokens": arguments.batch_tokens,
            "shape": asdict(shape),
            "timing": asdict(found),
        }
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
