"""Count what the CUDA products cost a GPU before one is at hand: `python -m tools.machine_code`.

Compiles every width for sm_90, disassembles it and prints the tables of docs/kernels.md, section
"Machine code": registers, spilled bytes, and instructions for 512 bytes of weights.

  python -m tools.machine_code           print them
  python -m tools.machine_code --write   put them into docs/kernels.md

The instructions of an instance are those of the shortest way round one step of its main loop that
meets every tensor-core product (HMMA) and every asynchronous copy (LDGSTS); a step whose units run
through an inner loop counts that loop as often as it runs. Branches that a full step does not take
(rest blocks, inputs that are not aligned, the end of a row block) are not on that way.

Needs nvcc and nvdisasm (in the development environment: nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import argparse
import heapq
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cuda_ext import toolchain
from tools.readme import rewritten

ARCHITECTURE = "sm_90"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "kernels.md"
WIDTHS = ("2", "3", "4", "8", "ternary")
# Units of 2 KB in a step of the main loop (csrc/cuda/plan.h, step_units).
UNITS = {"2": 2, "3": 3, "4": 4, "8": 4, "ternary": 1}
LOADS_PER_UNIT = 4  # of 512 bytes: a warp's 32 lanes with 16 bytes each
# H200: multiprocessors x schedulers x clock, and the bandwidth that copies reach.
ISSUE_SLOTS_PER_S = 132 * 4 * 1.755e9
BYTES_PER_S = 4.3e12
SHAPES = ((4096, 11008), (8192, 28672), (12288, 49152), (49152, 12288))


@dataclass(frozen=True)
class Instance:
    """One compiled kernel; `tokens` is the tile of activations, `segment` blocks share a scale."""

    width: str
    dtype: str
    segment: int
    tokens: int
    registers: int
    spilled_bytes: int
    stack_bytes: int
    instructions: float  # for 512 bytes of weights
    wide_copies: int  # asynchronous copies of 16 bytes a lane in the main loop
    narrow_copies: int  # of fewer bytes


@dataclass(frozen=True)
class Block:
    """A basic block: its instructions and the indices of the blocks that may follow."""

    code: tuple[str, ...]
    next: tuple[int, ...]

    def count(self, word: str) -> int:
        return sum(word in line for line in self.code)


def nvdisasm() -> str:
    """Return the disassembler; FileNotFoundError with the pip command where there is none."""
    found = importlib.util.find_spec("nvidia")
    for folder in (found.submodule_search_locations or []) if found else []:
        for program in sorted(Path(folder).glob("*/bin/nvdisasm")):
            return str(program)
    if on_path := shutil.which("nvdisasm"):
        return on_path
    raise FileNotFoundError("no nvdisasm: pip install nvidia-cuda-nvdisasm")


def functions(text: str) -> dict[str, list[Block]]:
    """Return the basic blocks of every function of nvdisasm's output (-c), in address order."""
    return {name: _blocks(lines) for name, lines in _lines(text)}


def _lines(text: str) -> Iterator[tuple[str, list[str]]]:
    for part in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition(":")
        labels_and_code = re.findall(
            r"^(\.L_x_\d+:)|^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", body, flags=re.MULTILINE
        )
        yield name, [label or code for label, code in labels_and_code]


def _blocks(lines: Sequence[str]) -> list[Block]:
    pieces: list[list[str]] = [[]]
    at: dict[str, int] = {}
    for line in lines:
        if line.startswith(".L_x_"):
            if pieces[-1]:
                pieces.append([])
            at[line.rstrip(":")] = len(pieces) - 1
            continue
        pieces[-1].append(line)
        if re.search(r"\b(BRA|EXIT|RET|BRX)\b", line):
            pieces.append([])
    blocks = []
    for index, piece in enumerate(pieces):
        last = piece[-1] if piece else ""
        target = re.search(r"BRA[^`]*`\((\.L_x_\d+)\)", last)
        after = [at[target[1]]] if target else []
        # A predicate, of the instruction or among its operands, lets it fall through.
        conditional = (
            last.startswith("@") or "BRA.DIV" in last or re.search(r"BRA\S* !?U?P\d", last)
        )
        ends = (target or re.search(r"\b(EXIT|RET|BRX)\b", last)) and not conditional
        if not ends and index + 1 < len(pieces):
            after.append(index + 1)
        blocks.append(Block(tuple(piece), tuple(after)))
    return blocks


def shortest(blocks: Sequence[Block], begin: int, end: int) -> int | None:
    """Return the fewest instructions from block `begin` on until `end` begins; None if no way."""
    reached: set[int] = set()
    queue = [(len(blocks[begin].code), after) for after in blocks[begin].next]
    heapq.heapify(queue)
    while queue:
        length, index = heapq.heappop(queue)
        if index == end:
            return length
        if index in reached:
            continue
        reached.add(index)
        for after in blocks[index].next:
            heapq.heappush(queue, (length + len(blocks[index].code), after))
    return None


def round_trip(blocks: Sequence[Block], through: Sequence[int]) -> int:
    """Return the instructions of the shortest way round through these blocks in address order."""
    places = sorted(through)
    legs = [shortest(blocks, a, b) for a, b in pairwise([*places, places[0]])]
    if not places or None in legs:
        raise ValueError(f"no way through blocks {places}; the main loop is not as expected.")
    return sum(leg for leg in legs if leg is not None)


def loop_of(blocks: Sequence[Block]) -> tuple[list[int], list[int]]:
    """Return the blocks with products, and those with asynchronous copies of the same loop."""
    products = [i for i, block in enumerate(blocks) if block.count("HMMA")]
    copies = [
        i
        for i, block in enumerate(blocks)
        if block.count("LDGSTS")
        and shortest(blocks, i, products[0]) is not None
        and shortest(blocks, products[0], i) is not None
    ]
    return products, copies


def instructions(blocks: Sequence[Block], width: str, tokens: int) -> float:
    """Return the instructions for 512 bytes of weights (see the module's first lines).

    The compiler writes the products of a step once for every unit, or once for its first unit and
    once for an inner loop over the others.
    """
    products, copies = loop_of(blocks)
    units, planes = UNITS[width], 2 if width == "ternary" else 1
    bits = 2 if width == "ternary" else int(width)
    # m16n8k16 takes 256 weights and 8 tokens.
    unit_products = LOADS_PER_UNIT * 512 * 8 / bits / 256 * (tokens / 8) * planes
    written = round(sum(blocks[i].count("HMMA") for i in products) / unit_products)
    length = round_trip(blocks, [*products, *copies])
    if written < units:
        inner: list[int] = []
        while sum(blocks[i].count("HMMA") for i in inner) < unit_products:
            inner.insert(0, products[-1 - len(inner)])
        words = max(i for i in copies if blocks[i].count("LDGSTS") == LOADS_PER_UNIT)
        length += (units - written) * round_trip(blocks, [words, *inner])
    return length / (units * LOADS_PER_UNIT)


def compiled(width: str, folder: Path) -> list[Instance]:
    """Compile one width for sm_90 and return its instances; BuildError or CalledProcessError."""
    source = f"cuda/linear_{width}.cu"
    compiler, nvcc = toolchain.find_compiler(), toolchain.find_nvcc()
    units = toolchain.units(compiler, nvcc, (ARCHITECTURE,))
    (unit,) = (unit for unit in units if unit.source == source)
    cubin = folder / f"{width}.cubin"
    command = [*unit.command, "-cubin", "-Xptxas", "-v", str(toolchain.SOURCES / source)]
    said = _output([*command, "-o", str(cubin)])
    listing = _output([nvdisasm(), "-c", str(cubin)])
    found = []
    for name, blocks in functions(listing).items():
        shape = re.search(r"ConfigINS\w*?\d(Half|BFloat16)ELi\dELb\dELi(\d)ELi(\d+)E", name)
        if shape is None:
            continue
        dtype, segment, tokens = shape[1], int(shape[2]), int(shape[3])
        stack, stores, loads, registers = map(int, _resources(said, name))
        _, copies = loop_of(blocks)
        wide = sum(blocks[i].count("LDGSTS.E.BYPASS.128") for i in copies)
        found.append(
            Instance(
                width, {"Half": "float16", "BFloat16": "bfloat16"}[dtype], segment, tokens,
                registers, stores + loads, stack, instructions(blocks, width, tokens), wide,
                sum(blocks[i].count("LDGSTS") for i in copies) - wide,
            )
        )  # fmt: skip
    return found


def _resources(said: str, name: str) -> tuple[str, ...]:
    """Return stack, spill stores, spill loads (bytes) and registers that ptxas reports."""
    pattern = (
        rf"Function properties for {re.escape(name)}\s+(\d+) bytes stack frame, (\d+) bytes spill "
        r"stores, (\d+) bytes spill loads\s+ptxas info\s*: Used (\d+) registers"
    )
    found = re.search(pattern, said)
    if found is None:
        raise ValueError(f"ptxas said nothing of {name}")
    return found.groups()


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=True, text=True, capture_output=True)
    return done.stdout + done.stderr


def all_instances() -> list[Instance]:
    """Compile every width; about a minute of one core."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        return [
            one for many in pool.map(lambda w: compiled(w, Path(folder)), WIDTHS) for one in many
        ]


def table(instances: Sequence[Instance]) -> str:
    """Return the tables as Markdown: instances of float16 with long segments."""
    shown = [i for i in instances if i.dtype == "float16" and i.segment > 1]
    by = {(i.width, i.tokens): i for i in shown}
    tokens = sorted({i.tokens for i in shown})
    head = f"| | {' | '.join(f'{t} tokens' for t in tokens)} |"
    rule = "|---|" + "---|" * len(tokens)
    available = ISSUE_SLOTS_PER_S / BYTES_PER_S * 512
    lines = [
        "Instructions for 512 bytes of weights:",
        "",
        head + " slots / count at 8 tokens |",
        rule + "---|",
    ]
    for width in WIDTHS:
        cells = [f"{by[width, t].instructions:.0f}" if (width, t) in by else "—" for t in tokens]
        share = f"{100 * available / by[width, 8].instructions:.0f} %"
        lines.append(f"| {_name(width)} | {' | '.join(cells)} | {share} |")
    lines += ["", "Registers a thread:", "", head, rule]
    for width in WIDTHS:
        cells = [str(by[width, t].registers) if (width, t) in by else "—" for t in tokens]
        lines.append(f"| {_name(width)} | {' | '.join(cells)} |")
    worst = max(i.spilled_bytes + i.stack_bytes for i in instances)
    most = max(i.narrow_copies for i in instances)
    lines += [
        "",
        f"All {len(instances)} instances for {ARCHITECTURE}: at most {worst} bytes of stack and "
        f"spills; weights, scales and activations come in copies of 16 bytes a lane, zero-points "
        f"in at most {most} narrower one{'s' if most != 1 else ''} a step.",
    ]  # fmt: skip
    lines += ["", "Predicted microseconds at batch 1: bytes / issue slots at 100 %.", ""]
    return "\n".join(lines + predicted(instances))


def predicted(instances: Sequence[Instance]) -> list[str]:
    """Return lines of the table of microseconds at batch 1, groups of 128, float16."""
    counts = {
        i.width: i.instructions
        for i in instances
        if (i.dtype, i.tokens) == ("float16", 8) and i.segment > 1 and i.width != "ternary"
    }
    head = " | ".join(_name(width) for width in counts)
    lines = [f"| | {head} | float16, bytes alone |", "|---|" + "---|" * (len(counts) + 1)]
    for inputs, outputs in SHAPES:
        weights = inputs * outputs
        cells = []
        for width, count in counts.items():
            codes, grids = weights * int(width) / 8, weights / 128 * 3  # float16 scale, zero-point
            slots = codes / 512 * count / ISSUE_SLOTS_PER_S
            cells.append(f"{(codes + grids) / BYTES_PER_S * 1e6:.1f} / {slots * 1e6:.1f}")
        plain = f"{weights * 2 / BYTES_PER_S * 1e6:.0f}"
        lines.append(f"| {inputs} → {outputs} | {' | '.join(cells)} | {plain} |")
    return lines


def _name(width: str) -> str:
    return width if width == "ternary" else f"{width} bits"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.machine_code",
        description="Count registers and instructions of the CUDA products for sm_90.",
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/kernels.md")
    arguments = parser.parse_args()
    made = table(all_instances())
    if arguments.write:
        DOCS.write_text(rewritten(DOCS.read_text(), {"machine code": made}))
    else:
        print(made)


if __name__ == "__main__":
    main()
