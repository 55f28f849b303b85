"""Decode speed of any architecture at several bit widths on one device, with its roofline.

  python -m benchmarks.decode --architecture opt-66b --bits 16,4,3 --tokens 128 --json FILE
  python -m benchmarks.decode --architecture opt-175b --bits 3
  python -m benchmarks.decode        both of these

Weights are random and made on the device in packed form, so nothing is downloaded; only torch and
transformers are needed. The widths are built, timed and freed in turn in one process. A width that
does not fit is refused with its memory figures, and the others are timed (exit status 1). Times are
of greedy decode steps at batch 1 with a static KV cache, in a CUDA graph on a GPU, from an idle
device, as in generation that reads every token.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from cuda_ext.ops import KernelUnavailable, resolve_kernel
from harness.suites.published_latency import Published, published_latencies
from quant.decode.caches import Decoder
from quant.decode.choose import make_decoder
from quant.errors import NotEnoughMemory, SchemeError
from quant.measure import roofline
from quant.measure.architectures import ARCHITECTURES, ArchitectureError, architecture_config
from quant.measure.dummy import MemoryNeed, build_dummy, predict_memory
from quant.scheme import Scheme
from quant.spread.split import GIB

FULL = 16
WARM_TOKENS = 8
# What is run without --architecture: the sizes of the paper's Table 6 that fit one GPU of 139 GiB.
DEFAULT_RUNS = (("opt-66b", "16,4,3"), ("opt-175b", "3"))
WORKSPACE = 2**30  # bytes beside model and cache: library workspaces, the array of the bandwidth


@dataclass(frozen=True)
class Settings:
    """What is timed; group_size None is one grid per row."""

    architecture: str
    device: str
    dtype: str
    kernel: str
    group_size: int | None
    prompt: int
    tokens: int
    repeats: int
    seed: int

    @property
    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def scheme(self, bits: int) -> Scheme | None:
        return None if bits == FULL else Scheme(bits, self.group_size)


@dataclass(frozen=True)
class Row:
    """One width: milliseconds per token (median, p10, p90), bytes that a token reads, measured read
    bandwidth in GB/s, share of that roofline, and speed-up over full precision."""

    architecture: str
    bits: int
    scheme: str
    kernel: str
    mode: str
    ms_per_token: float
    p10_ms: float
    p90_ms: float
    prefill_ms: float
    weight_bytes: int
    bytes_per_token: int
    kv_bytes: int
    read_gb_per_s: float
    roofline_share: float
    speedup: float | None
    build_s: float
    memory_gib: float | None


def kv_bytes(config: Any, settings: Settings) -> int:
    """Bytes of keys and values, twice: the static cache, and the dynamic one that checks it."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width: int = heads * (config.hidden_size // config.num_attention_heads)
    positions = settings.prompt + settings.tokens
    layers: int = config.num_hidden_layers
    return 4 * positions * layers * width * settings.torch_dtype.itemsize


def time_width(settings: Settings, bits: int, bandwidth: float) -> Row:
    """Build, time and free one width. Raises NotEnoughMemory before anything is allocated."""
    began = time.perf_counter()
    model = _build(settings, bits)
    build_s = time.perf_counter() - began
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (1, settings.prompt)
    prompt = torch.randint(0, model.config.vocab_size, shape, generator=generator)
    prompt = prompt.to(settings.device)
    decoder = make_decoder(model, prompt, settings.tokens)
    prefill, times = _decode(decoder, prompt, settings)
    if not bool(torch.isfinite(decoder.logits).all()):
        raise RuntimeError(
            f"{settings.architecture} at {bits} bits gave logits that are not finite."
        )
    moved = (
        roofline.weight_bytes_per_token(model)
        + decoder.kv_bytes()
        + roofline.activation_bytes_per_token(model, settings.torch_dtype)
    )
    median, tenths = statistics.median(times), statistics.quantiles(times, n=10)
    scheme = settings.scheme(bits)
    return Row(
        architecture=settings.architecture,
        bits=bits,
        scheme=settings.dtype if scheme is None else scheme.name,
        kernel="torch" if scheme is None else resolve_kernel(settings.kernel, settings.device),
        mode=decoder.mode + (f" ({decoder.reason})" if decoder.reason else ""),
        ms_per_token=median,
        p10_ms=tenths[0],
        p90_ms=tenths[-1],
        prefill_ms=statistics.median(prefill),
        weight_bytes=roofline.weight_bytes(model),
        bytes_per_token=moved,
        kv_bytes=decoder.kv_bytes(),
        read_gb_per_s=bandwidth / 1e9,
        roofline_share=moved / (median / 1e3) / bandwidth,
        speedup=None,
        build_s=build_s,
        memory_gib=_held(settings.device),
    )


def _build(settings: Settings, bits: int) -> Any:
    config = architecture_config(settings.architecture)
    workspace = WORKSPACE if _cuda(settings.device) else 0
    return build_dummy(
        config,
        settings.scheme(bits),
        device=settings.device,
        dtype=settings.torch_dtype,
        kernel="reference" if bits == FULL else settings.kernel,
        seed=settings.seed,
        beside=kv_bytes(config, settings) + workspace,
    )


def _decode(
    decoder: Decoder, prompt: torch.Tensor, settings: Settings
) -> tuple[list[float], list[float]]:
    """Milliseconds of every prefill and of every decode step after warming up."""
    prefill, steps = [], []
    decoder.prefill(prompt)
    for _ in range(min(WARM_TOKENS, settings.tokens)):
        decoder.step()
    gc.collect()
    gc.disable()
    try:
        for _ in range(settings.repeats):
            prefill.append(_milliseconds(lambda: decoder.prefill(prompt), settings.device))
            steps += [_milliseconds(decoder.step, settings.device) for _ in range(settings.tokens)]
    finally:
        gc.enable()
    return prefill, steps


def _milliseconds(step: Any, device: str) -> float:
    if not _cuda(device):
        began = time.perf_counter()
        step()
        return (time.perf_counter() - began) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    step()
    end.record()
    end.synchronize()
    taken: float = start.elapsed_time(end)
    return taken


def free() -> None:
    """Free the memory of a width before the next one is built."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def with_speedups(rows: Sequence[Row]) -> list[Row]:
    """Each row with its speed-up over the full-precision row of the same run, if there is one."""
    full = next((row for row in rows if row.bits == FULL), None)
    return [
        Row(**asdict(row) | {"speedup": full.ms_per_token / row.ms_per_token if full else None})
        for row in rows
    ]


def published(architecture: str) -> list[Published]:
    """Published results for an architecture."""
    return [line for line in published_latencies() if architecture in line.beside]


def plan(settings: Settings, widths: Sequence[int]) -> dict[int, MemoryNeed]:
    """Memory of every width, before anything is built."""
    config = architecture_config(settings.architecture)
    kernel = resolve_kernel(settings.kernel, settings.device)
    needs = {}
    for bits in widths:
        scheme = settings.scheme(bits)
        needs[bits] = predict_memory(config, scheme, dtype=settings.torch_dtype, kernel=kernel)
    return needs


def describe(rows: Sequence[Row], architecture: str) -> str:
    """The table: measured results, then published ones with their hardware."""
    lines = [
        f"{'weights':<16}{'ms/token':>10}{'p10':>9}{'p90':>9}{'GB/token':>10}{'of roof':>9}"
        f"{'speed-up':>10}  decode mode"
    ]
    for row in rows:
        speedup = f"{row.speedup:.2f}x" if row.speedup else "–"
        lines.append(
            f"{row.scheme:<16}{row.ms_per_token:>10.3f}{row.p10_ms:>9.3f}{row.p90_ms:>9.3f}"
            f"{row.bytes_per_token / 1e9:>10.3f}{row.roofline_share:>9.0%}{speedup:>10}  {row.mode}"
        )
    for line in published(architecture):
        speedup = f"{line.speedup:.2f}x" if line.speedup else "–"
        what = f"{line.bits} bits" if line.bits < FULL else line.method
        lines.append(
            f"{what:<16}{line.ms_per_token:>10.3f}{'':>37}{speedup:>10}  published: "
            f"{line.model} on {line.gpus} × {line.gpu}, {line.source}"
        )
    return "\n".join(lines)


def machine(device: str) -> dict[str, Any]:
    """Names and versions; no host name, no path."""
    gpu = torch.cuda.get_device_name(device) if _cuda(device) else None
    return {
        "gpu": gpu,
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if all widths were timed, 1 if one was not, 2 for a wrong command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    runs: tuple[tuple[str, str], ...] = DEFAULT_RUNS
    if options.architecture is not None:
        runs = ((options.architecture, options.bits),)
    try:
        planned = [(_settings(options, name), _widths(bits)) for name, bits in runs]
        needs = [plan(settings, widths) for settings, widths in planned]
    except (ArchitectureError, SchemeError, KernelUnavailable, ValueError) as error:
        parser.error(str(error))
    device = planned[0][0].device
    print(", ".join(f"{name} {value}" for name, value in machine(device).items() if value))
    bandwidth = roofline.read_bandwidth(device)
    print(f"reads {bandwidth / 1e9:.1f} GB/s", flush=True)
    free()
    kept = []
    for (settings, widths), need in zip(planned, needs, strict=True):
        for bits in widths:
            weights = f"{need[bits].model / GIB:.2f} GiB of weights"
            print(f"{settings.architecture}, {bits} bits: {weights}", flush=True)
        kept.append(run(settings, widths, bandwidth))
    if options.json:
        text = json.dumps({"machine": machine(device), "runs": kept}, indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(each["not_measured"] for each in kept) else 0


def run(settings: Settings, widths: Sequence[int], bandwidth: float) -> dict[str, Any]:
    """Time the widths of an architecture, print their table, return the entry for the JSON file."""
    rows: list[Row] = []
    refused: dict[str, str] = {}
    for bits in widths:
        try:
            rows.append(time_width(settings, bits, bandwidth))
        except (NotEnoughMemory, torch.OutOfMemoryError) as error:
            reason = refused[str(bits)] = str(error).splitlines()[0]
            print(f"{bits} bits: not measured on this machine: {reason}", file=sys.stderr)
        free()
    rows = with_speedups(rows)
    print(describe(rows, settings.architecture), flush=True)
    return {
        "settings": asdict(settings),
        "rows": [asdict(row) for row in rows],
        "not_measured": refused,
        "published": [asdict(line) for line in published(settings.architecture)],
    }


def _widths(bits: str) -> list[int]:
    return [int(value) for value in bits.split(",")]


def _settings(options: argparse.Namespace, architecture: str) -> Settings:
    """Settings from the options; ValueError for too few tokens or repeats."""
    if min(options.prompt, options.tokens, options.repeats) < 1:
        raise ValueError("--prompt, --tokens and --repeats are at least 1.")
    if options.tokens * options.repeats < 2:
        raise ValueError("--tokens times --repeats is at least 2: one step has no percentiles.")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Settings(
        architecture=architecture,
        device=device,
        dtype=options.dtype or ("float16" if _cuda(device) else "float32"),
        kernel=options.kernel,
        group_size=options.group or None,
        prompt=options.prompt,
        tokens=options.tokens,
        repeats=options.repeats,
        seed=options.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    known = ", ".join(ARCHITECTURES)
    parser.add_argument("--architecture", help=f"a config.json, or of {known}")
    parser.add_argument("--bits", default="16,4,3", help="16 is full precision (default 16,4,3)")
    parser.add_argument("--group", type=int, default=128, help="inputs a group; 0: one grid a row")
    parser.add_argument("--tokens", type=int, default=128, help="decode steps timed a repeat")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--kernel", default="auto", choices=("auto", "cuda", "cpu", "reference"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write everything to this file, too")
    return parser


def _cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _held(device: str) -> float | None:
    """Peak memory in GiB, if the device counts it."""
    return torch.cuda.max_memory_allocated(device) / GIB if _cuda(device) else None


if __name__ == "__main__":
    sys.exit(main())
