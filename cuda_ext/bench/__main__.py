"""Command line of `python -m cuda_ext.bench`: print tables; --json stores them as well."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import cuda_ext.bench
from cuda_ext.bench import shapes
from cuda_ext.bench.compare import Row, bench, clocks, machine
from cuda_ext.bench.crossover import crossover, meeting
from cuda_ext.ops import KernelUnavailable, resolve_kernel

HEADER = f"{'':26}{'ms':>9}{'p10':>9}{'p90':>9}{'GB/s':>8}{'share':>8}{'speedup':>9}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, or 1 with one sentence if the device has no kernels."""
    options = _options(arguments)
    try:
        resolve_kernel(options.device, options.device)
    except KernelUnavailable as error:
        print(f"no benchmark: {error}", file=sys.stderr)
        return 1
    kept: dict[str, Any] = {"machine": machine(options.device), "clocks_before": clocks()}
    print(", ".join(f"{name} {value}" for name, value in kept["machine"].items()))
    _print_clocks("before", kept["clocks_before"])
    if options.crossover:
        kept["crossover"] = _crossovers(options)
    else:
        kept["rows"] = _tables(options)
    kept["clocks_after"] = clocks()
    _print_clocks("after", kept["clocks_after"])
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cuda_ext.bench", description=cuda_ext.bench.__doc__
    )
    names = ", ".join(shapes.SHAPES)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--shapes", default="llama-7b-up", help=f"of {names}; or opt-175b, all, 512x256"
    )
    parser.add_argument("--batches", default="1,4,8,16,64")
    parser.add_argument("--bits", default="2,3,4,8")
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each shape and batch")
    parser.add_argument("--isa", action="store_true", help="compare the CPU's instruction sets")
    parser.add_argument(
        "--crossover", action="store_true", help="rows from which dequantizing first is faster"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() and not options.isa else "cpu"
    try:
        options.shapes = shapes.chosen(options.shapes)
        options.bits = [int(value) for value in options.bits.split(",")]
        options.batches = [int(value) for value in options.batches.split(",")]
    except ValueError as error:
        parser.error(str(error))
    if not set(options.bits) <= set(shapes.BITS):
        parser.error("bits are 2, 3, 4, 8.")
    for name in ("bits", "batches"):
        chosen = getattr(options, name)
        twice = next((value for value in chosen if chosen.count(value) > 1), None)
        if twice is not None:
            parser.error(f"--{name} names {twice} twice; name it once.")
    if options.isa and options.device != "cpu":
        parser.error("--isa compares instruction sets of the CPU; use --device cpu.")
    return options


def _tables(options: argparse.Namespace) -> list[dict[str, Any]]:
    kept = []
    for shape in options.shapes:
        inputs, outputs = shapes.sizes(shape)
        for batch in options.batches:
            rows, bandwidth = bench(
                shape,
                batch,
                group=options.group,
                bits=options.bits,
                seconds=options.seconds,
                device=options.device,
                by_isa=options.isa,
            )
            print(f"\n{shape} {inputs} -> {outputs}, batch {batch}, reads {bandwidth:.1f} GB/s")
            print(HEADER)
            for row in rows:
                print(_line(row), flush=True)
            kept += [asdict(row) | {"bandwidth_gb_per_s": bandwidth} for row in rows]
    return kept


def _line(row: Row) -> str:
    digits = 3 if row.ms > 0.1 else 4
    times = "".join(f"{ms:9.{digits}f}" for ms in (row.ms, row.p10_ms, row.p90_ms))
    return f"{row.name:26}{times}{row.gb_per_s:8.1f}{row.share:8.0%}{row.speedup:8.2f}x"


def _crossovers(options: argparse.Namespace) -> list[dict[str, Any]]:
    kept = []
    for shape in options.shapes:
        for bits in options.bits:
            found = crossover(shape, bits, options.group, options.seconds / 10, options.device)
            kept += [asdict(crossing) for crossing in found]
            for dtype in dict.fromkeys(crossing.dtype for crossing in found):
                print(f"\n{shape}, {bits} bits, {dtype}: ms of {'rows':>6} packed / dequantized")
                for crossing in found:
                    if crossing.dtype == dtype:
                        ms = f"{crossing.packed_ms:10.3f}{crossing.dequantized_ms:10.3f}"
                        print(f"{crossing.rows:8}{ms}")
                rows = meeting(found, dtype)
                print("dequantizing never won" if rows is None else f"dequantizing wins at {rows}")
    return kept


def _print_clocks(when: str, found: dict[str, str]) -> None:
    if found:
        print(f"{when}: " + ", ".join(f"{name} {value}" for name, value in found.items()))


if __name__ == "__main__":
    sys.exit(main())
