"""Memory and time of streamed quantization by model size, compared with the cost model.

  python -m benchmarks.scaling                    measure, and compare with the cost model
  python -m benchmarks.scaling --predict          predict large models; measures nothing
  python -m benchmarks.scaling --write FILE       measure, and write the tables into docs/scaling.md

Checkpoints of 4 to 128 blocks with random weights are quantized, each in a fresh process whose
memory limit (RLIMIT_DATA: private writable memory) is the memory plan's figure: several times less
than the largest checkpoint. Peak memory is the high-water mark of the resident set (VmHWM, reset
before the work) minus the resident set before it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import scaling_time
from benchmarks.predictions import predictions
from benchmarks.scaling_time import FIT, HELD_OUT, Case

if TYPE_CHECKING:
    from quant.calibrate.cost import StageCost
    from quant.config import QuantizationConfig

WIDTH, TOKENS, WINDOW = 512, 2048, 256
DEPTHS = (4, 16, 32, 128)
# The limit counts what is allocated, not what is resident: holes between allocations too.
SLACK = 32_000_000


@dataclass(frozen=True)
class Measured:
    """The figures of one process: bytes above its memory at the start, seconds of the whole run.

    peak         the high-water mark of the whole run.
    passes       peak during passes through quantized blocks (no Hessians, no solver), sampled
                 every 10 ms.
    activations  between blocks, and of a batch inside a block.
    """

    base: int
    peak: int
    passes: int
    limit: int | None
    planned: int
    block: int
    outside: int
    activations: int
    weights: int
    stages: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--predict", action="store_true", help="print predictions only")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this page")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        case = Case(**json.loads(options.child[1]))
        print(json.dumps(asdict(measure(Path(options.child[0]), case))))
        return
    if options.predict:
        print(predictions())
        return
    found = measurements()
    print(found)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        page = replace_part(page, "measured", found)
        options.write.write_text(replace_part(page, "predicted", predictions()), encoding="utf-8")


def measurements() -> str:
    """Measure memory by depth, each in its own process, and compare seconds with the cost model."""
    import torch

    from harness.records import environment

    begin = time.perf_counter()
    growth = {case: in_fresh_process(case) for case in map(depth, DEPTHS)}
    spent = scaling_time.timed((*FIT, *HELD_OUT), make_checkpoint)
    rates = scaling_time.fitted_rates({case: spent[case] for case in FIT})
    lines = [
        f"{environment.machine()['cpu']}, 1 thread, torch {torch.__version__}; float32, GPTQ at 4 "
        f"bits in groups of 128; {time.perf_counter() - begin:.0f} s in all.",
        "",
        f"Width {WIDTH}, {TOKENS} tokens in windows of {WINDOW}:",
        "",
        *memory_table(growth),
        "",
        "Rates of this machine, fitted:",
        "",
        *scaling_time.report(spent, rates),
    ]
    return "\n".join(lines)


def depth(blocks: int) -> Case:
    return Case(WIDTH, WIDTH, blocks, TOKENS, WINDOW)


def memory_table(results: dict[Case, Measured]) -> list[str]:
    """Peak memory and its parts in MB, one line per depth."""
    rows = [
        "| blocks | weights | process before | limit above | planned | two blocks + activations | "
        "peak of the passes | peak with Hessians and solver | wall s a block |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case, got in results.items():
        streamed = 2 * got.block + got.activations + got.outside
        limit = "none" if got.limit is None else mb(got.limit)
        each = sum(got.stages.values()) / case.blocks
        rows.append(
            f"| {case.blocks} | {mb(got.weights)} | {mb(got.base)} | {limit} | {mb(got.planned)} | "
            f"{mb(streamed)} | {mb(got.passes)} | {mb(got.peak)} | {each:.2f} |"
        )
    return [*rows, "", "All in MB (10^6 bytes)."]


def replace_part(page: str, name: str, content: str) -> str:
    """The page with the text between the markers `begin name` and `end name` replaced."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"the page has no markers {begin} and {end}; add them.")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", page)


def mb(count: float) -> str:
    return f"{count / 1e6:.0f}"


def in_fresh_process(case: Case) -> Measured:
    """Make a checkpoint, quantize it in a process of its own, remove it."""
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder) / "model", case)
        command = [sys.executable, "-m", "benchmarks.scaling", "--child", folder]
        done = subprocess.run(
            [*command, json.dumps(asdict(case))], check=True, stdout=subprocess.PIPE, text=True
        )
        return Measured(**json.loads(done.stdout.splitlines()[-1]))


def make_checkpoint(folder: Path, case: Case) -> None:
    """A Llama of random weights, one shard a block, written block by block."""
    import torch
    from transformers import LlamaConfig

    from quant.checkpoint.tensors import Entry, shard_names, write_index, write_shard

    width, inner, kv = case.width, case.inner, case.width // 4
    config = LlamaConfig(
        vocab_size=512, hidden_size=width, intermediate_size=inner, num_hidden_layers=case.blocks,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=case.window,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def entry(name: str, *shape: int) -> Entry:
        def make() -> torch.Tensor:
            if len(shape) == 1:
                return torch.ones(shape)
            return torch.randn(shape, generator=generator) * float(shape[1] ** -0.5)

        return Entry(name, shape, torch.float32, make)

    shards = []
    for index in range(case.blocks):
        attention, mlp = (f"model.layers.{index}.{part}" for part in ("self_attn", "mlp"))
        sizes = {"q_proj": width, "k_proj": kv, "v_proj": kv, "o_proj": width}
        block = [entry(f"{attention}.{n}.weight", out, width) for n, out in sizes.items()]
        block += [entry(f"{mlp}.{n}.weight", inner, width) for n in ("gate_proj", "up_proj")]
        block.append(entry(f"{mlp}.down_proj.weight", width, inner))
        norms = ("input_layernorm", "post_attention_layernorm")
        block += [entry(f"model.layers.{index}.{name}.weight", width) for name in norms]
        shards.append(block)
    outside = [entry("model.embed_tokens.weight", 512, width), entry("model.norm.weight", width)]
    shards.append([*outside, entry("lm_head.weight", 512, width)])
    placed: dict[str, str] = {}
    for name, shard in zip(shard_names("model", len(shards)), shards, strict=True):
        write_shard(folder / name, shard)
        placed |= {each.name: name for each in shard}
    write_index(folder, "model", placed, sum(e.nbytes for shard in shards for e in shard))


def measure(folder: Path, case: Case) -> Measured:
    """Quantize the checkpoint under a limit and measure this process."""
    import torch

    from quant.checkpoint.skeleton import build_causal_lm
    from quant.config import QuantizationConfig
    from quant.memory.limits import Limits, free_memory
    from quant.memory.plan import IN_HOST, USABLE, plan_quantization
    from quant.memory.shapes import model_shape
    from quant.scheme import Scheme
    from quant.solvers import gptq

    config = QuantizationConfig(gptq.SOLVER, Scheme(4, 128), batch_tokens=1024)
    warm_up(folder / "warm", case, config)
    shape = model_shape(build_causal_lm(folder / "model", torch.float32, {}, ""))
    needed = plan_quantization(shape, config, case.tokens, case.window, Limits(), "cpu").needed(
        IN_HOST
    )
    limit = limit_memory(int(needed / USABLE) + SLACK)
    free = free_memory(torch.device("cpu"), folder)
    memory = plan_quantization(shape, config, case.tokens, case.window, free, "cpu")
    base = reset_high_water_mark()
    stages = quantize(folder, case, config, memory.activations)
    held = {item.name: item.bytes for item in memory.items}
    stored = (folder / "model").glob("*.safetensors")
    return Measured(
        base=base,
        peak=status("VmHWM") - base,
        passes=next(stage.peak_bytes or 0 for stage in stages if stage.name == "forward") - base,
        limit=limit,
        planned=needed,
        block=shape.block_bytes,
        outside=shape.outside_bytes,
        activations=held["activations between blocks"] + held["a batch inside a block"],
        weights=sum(path.stat().st_size for path in stored),
        stages={stage.name: stage.seconds for stage in stages},
    )


def warm_up(folder: Path, case: Case, config: QuantizationConfig) -> None:
    """What libraries take once belongs to the process, not to the work: imports, threads, and the
    kernels that oneDNN compiles for each shape of a product.

    So two blocks of the same shapes go all the way first.
    """
    from quant.memory.heaps import trim_heap

    case = replace(case, blocks=2)
    make_checkpoint(folder / "model", case)
    quantize(folder, case, config, "cpu")
    trim_heap()


def quantize(
    folder: Path, case: Case, config: QuantizationConfig, activations: str
) -> list[StageCost]:
    """Quantize folder/model into folder/artifact; what each stage cost."""
    import torch

    from quant.calibrate.stream import Workplace
    from quant.checkpoint.make import quantize_to
    from quant.checkpoint.source import CheckpointSource

    windows = scaling_time.calibration(case)
    with CheckpointSource(folder / "model", torch.float32) as source:
        result = quantize_to(
            folder / "artifact", source, windows, config, model_hash="benchmark",
            method={"name": "gptq"}, workplace=Workplace(activations=activations),
        )  # fmt: skip
    return result.stages


def limit_memory(above: int) -> int | None:
    """Let this process take only so many bytes more; None where the system cannot say or limit."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + above,) * 2)
    except (ImportError, OSError, ValueError):
        return None
    return above


def reset_high_water_mark() -> int:
    """Forget the old peak; the resident bytes of now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> int:
    """A figure of /proc/self/status, bytes."""
    lines: list[Any] = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
