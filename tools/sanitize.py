"""Run every CUDA kernel, over few and ragged shapes, under NVIDIA's compute-sanitizer.

  python tools/sanitize.py                       memcheck, racecheck and synccheck
  python tools/sanitize.py initcheck             these
  python tools/sanitize.py --launch              the launches alone, without the sanitizer
  python tools/sanitize.py --launch --device cpu the same calls to the CPU's kernels

Results are compared with plain PyTorch, too. The exit status is 1 when a tool or a comparison finds
something, 2 when there is no GPU or no compute-sanitizer.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from cuda_ext import packed
from cuda_ext.column_loop import gptq_column_loop
from cuda_ext.layout import pack_codes
from cuda_ext.ops import why_unavailable

TOOLS = ("memcheck", "racecheck", "synccheck")
ALL_TOOLS = (*TOOLS, "initcheck")
# Inputs, outputs, group: ragged everywhere; a row that several blocks share; whole tiles.
SHAPES = ((37, 13, None), (544, 19, 32), (4096, 72, 128), (1024, 136, 256))
BATCHES = (1, 3, 8, 17, 33, 64)
# Columns, rows, columns to quantize: ragged; the common block; shared memory that is asked for.
LOOPS = ((7, 65, 5), (128, 200, 128), (300, 70, 290))
FOUND = 7  # the status that compute-sanitizer gives when it found something


def launch(device: str = "cuda") -> int:
    """Run every kind of kernel once for every shape; the number of wrong results."""
    torch.manual_seed(0)
    wrong = 0
    for levels, shape in itertools.product(("2", "3", "4", "8", "ternary"), SHAPES):
        bits = 2 if levels == "ternary" else int(levels)
        wrong += launch_layer(bits, levels == "ternary", shape, device)
    wrong += sum(
        _column_loop(*shape, ternary, device) for shape in LOOPS for ternary in (False, True)
    )
    if device == "cuda":
        torch.cuda.synchronize()
    return wrong


def _column_loop(columns: int, rows: int, count: int, ternary: bool, device: str) -> int:
    """GPTQ's column loop, in three groups, has the bits of the CPU's."""
    upper = (torch.randn(columns, columns) * 0.1).triu() + torch.eye(columns)
    weight, scale = torch.randn(columns, rows), torch.rand(3, rows) + 0.1
    other = scale + 0.1 if ternary else torch.full_like(scale, 2.0)
    group = torch.arange(count, dtype=torch.int32) % 3

    def run(device: str) -> list[torch.Tensor]:
        work, kind = weight.to(device, copy=True), "negative" if ternary else "zero"
        grids = {"scale": scale.to(device), kind: other.to(device), "group": group.to(device)}
        made = gptq_column_loop(work, upper.to(device), **grids, count=count, max_code=3 - ternary)
        return [tensor.cpu() for tensor in (*made, work)]

    if all(torch.equal(a, b) for a, b in zip(run(device), run("cpu"), strict=True)):
        return 0
    print(f"gptq_column_loop, {columns} x {rows}, ternary {ternary}: not the bits of the CPU")
    return 1


def launch_layer(
    bits: int, ternary: bool, shape: tuple[int, int, int | None], device: str = "cuda"
) -> int:
    """Repack, dequantize and multiply a random layer; the number of wrong results."""
    inputs, outputs, group = shape
    size = group or inputs
    grid, column = (-(-inputs // size), outputs), torch.arange(inputs) // size
    top = 3 if ternary else 2**bits
    codes = torch.randint(0, top, (inputs, outputs), dtype=torch.uint8)
    zeros = torch.randint(0, top, grid, dtype=torch.uint8)
    scales, negative = ((torch.rand(grid) + 0.1).half() for _ in range(2))
    if ternary:
        sided = torch.where(codes == 2, scales.float()[column], negative.float()[column])
        weight = (sided * (codes.float() - 1)).t()
    else:
        weight = (scales.float()[column] * (codes.float() - zeros.float()[column])).t()
    held = packed.pack(
        pack_codes(codes, bits, dim=0).to(device),
        scales.to(device),
        None if ternary else pack_codes(zeros, bits).to(device),
        negative.to(device) if ternary else None,
        bits=bits,
        in_features=inputs,
    )
    name = "ternary" if ternary else f"{bits} bits"
    taken = {"bits": bits, "out_features": outputs, "group_size": size}
    wrong = 0
    for dtype in (torch.float16, torch.bfloat16):
        whole = packed.dequantize(held, in_features=inputs, dtype=dtype, **taken)
        wrong += _differs(f"dequantize, {name}", whole, weight, 0.01)
        for batch in BATCHES:
            x = torch.randn(batch, inputs).to(dtype)
            bias = torch.ones(outputs, dtype=dtype)
            y = packed.linear(x.to(device), held, bias=bias.to(device), **taken)
            wrong += _differs(f"linear {batch}, {name}", y, x.float() @ weight.t() + 1, 0.02)
    return wrong


def _differs(what: str, found: torch.Tensor, expected: torch.Tensor, most: float) -> int:
    error = float((found.float().cpu() - expected).abs().max() / expected.abs().max())
    if error <= most:
        return 0
    print(f"{what}, {tuple(expected.shape)}: relative error {error:.3g}")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("tools", nargs="*", default=TOOLS, metavar="tool")
    parser.add_argument("--launch", action="store_true")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.device == "cpu" and not options.launch:
        parser.error("the sanitizer knows GPUs only; use --launch with --device cpu.")
    reason = why_unavailable(torch.device(options.device))
    if reason is not None:
        print(f"sanitize: {reason}", file=sys.stderr)
        return 2
    if options.launch:
        return int(launch(options.device) > 0)
    program = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    if program is None:
        print("sanitize: no compute-sanitizer on PATH or in /usr/local/cuda/bin.", file=sys.stderr)
        return 2
    if unknown := sorted(set(options.tools) - set(ALL_TOOLS)):
        parser.error(f"{', '.join(unknown)}: choose of {', '.join(ALL_TOOLS)}")
    return max(_check(program, tool) for tool in options.tools)


def _check(program: str, tool: str) -> int:
    # Without torch's cache every tensor is an allocation of its own, whose end memcheck knows.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable]
    done = subprocess.run([*command, str(Path(__file__)), "--launch"], env=environment)
    print(f"sanitize: {tool}: {'clean' if done.returncode == 0 else 'FOUND SOMETHING'}", flush=True)
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
