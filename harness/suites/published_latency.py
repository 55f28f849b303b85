"""A table of published decode times beside measured ones."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache

from harness.report.columns import Place
from harness.report.published_files import published_file
from harness.report.rows import Figure, Row
from harness.report.table import Cell, Column, Note, Table, significant

PLACE = Place("published", "Decode time of {model} beside published", 50)
OVER_SEVERAL = (
    "Where a number of devices is named, ours is of a model whose blocks are spread over them, run "
    "by the harness's own loop, no serving engine."
)
NOT_MEASURED = "not measured on this machine"
COLUMNS = (
    Column("source", "source", numeric=False),
    Column("model", "model", numeric=False),
    Column("weights", "weights", numeric=False),
    Column("device", "device", numeric=False),
    Column("ms_per_token", "decode", "ms/token"),
    Column("speedup", "speed-up", "× FP16"),
)


@dataclass(frozen=True)
class Published:
    """One line of results/published/latency.csv."""

    model: str
    method: str
    bits: int
    gpu: str
    gpus: int
    ms_per_token: float
    speedup: float | None
    beside: tuple[str, ...]
    source: str


@lru_cache(maxsize=1)
def published_latencies() -> tuple[Published, ...]:
    """The published decode times; BitsweepError if the file is missing."""
    with published_file("latency.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Published(
                model=line["model"],
                method=line["method"],
                bits=int(line["bits"]),
                gpu=line["gpu"],
                gpus=int(line["gpus"]),
                ms_per_token=float(line["ms_per_token"]),
                speedup=float(line["speedup"]) if line["speedup"] else None,
                beside=tuple(line["beside"].split()),
                source=line["source"],
            )
            for line in csv.DictReader(file)
        )


def published_table(suite: str, model: str, rows: list[Row]) -> Table | None:
    """Published times for `model`, then the measured ones; None if none are published.

    suite  name of the suite that measured our decode times.
    """
    name = model.removeprefix("dummy-")
    lines = [each for each in published_latencies() if name in each.beside]
    timed = any(key[0] == suite for row in rows for key in row.figures)
    if not lines or not timed:
        return None
    cells = [_published_line(line) for line in lines]
    for bits in sorted({line.bits for line in lines}, reverse=True):
        ours = [_our_line(suite, model, row) for row in rows if _bits(row) == bits]
        cells += [line for line in ours if line] or [_missing_line(model, bits)]
    others = [row for row in rows if _bits(row) not in {line.bits for line in lines}]
    cells += [line for row in others if (line := _our_line(suite, model, row))]
    note = Note(
        "Published: batch 1, 128 tokens generated, a model on as many GPUs as it needs, so a "
        "speed-up may be of one GPU against several. Ours: × full precision on the same device."
    )
    notes = [note]
    if any(_several(suite, row) for row in rows):
        notes.append(Note(OVER_SEVERAL))
    title = PLACE.title.replace("{model}", model)
    return Table(PLACE.name, model, title, list(COLUMNS), cells, notes)


def _published_line(line: Published) -> list[Cell]:
    return [
        Cell(line.source, line.source),
        Cell(line.model, line.model),
        _text(f"{line.bits} bits, {line.method}" if line.bits < 16 else line.method),
        _text(f"{line.gpus} × {line.gpu}"),
        Cell(significant(line.ms_per_token), line.ms_per_token),
        Cell() if line.speedup is None else Cell(significant(line.speedup), line.speedup),
    ]


def _our_line(suite: str, model: str, row: Row) -> list[Cell]:
    """Empty for a row that was not timed."""
    decode, speedup = _figure(suite, row, "decode_ms"), _figure(suite, row, "decode_speedup")
    if decode is None:
        return []
    return [
        Cell("ours", "ours"),
        Cell(model, model),
        _text(f"{row.scheme_label}, {row.label}"),
        _text(_device(decode) + _against(speedup)),
        Cell(significant(decode.value), decode.value, low=decode.low, high=decode.high),
        Cell() if speedup is None else Cell(significant(speedup.value), speedup.value),
    ]


def _missing_line(model: str, bits: int) -> list[Cell]:
    name = "FP16" if bits == 16 else f"{bits} bits"
    said = Cell(NOT_MEASURED, NOT_MEASURED)
    return [Cell("ours", "ours"), Cell(model, model), _text(name), said, Cell(), Cell()]


def _text(text: str) -> Cell:
    return Cell(text, text)


def _bits(row: Row) -> int | None:
    return None if row.bits is None else int(row.bits)


def _figure(suite: str, row: Row, metric: str) -> Figure | None:
    found = [figure for key, figure in row.figures.items() if (key[0], key[2]) == (suite, metric)]
    return found[0] if found else None


def _several(suite: str, row: Row) -> bool:
    """Whether a model of the row lay on several devices."""
    decode, speedup = _figure(suite, row, "decode_ms"), _figure(suite, row, "decode_speedup")
    return bool((decode and decode.note("devices")) or _against(speedup))


def _against(speedup: Figure | None) -> str:
    """How many devices the full-precision baseline took, if as many as several."""
    count = "" if speedup is None else speedup.note("baseline devices")
    return f"; full precision over {count}" if count else ""


def _device(figure: Figure) -> str:
    """The device of a timing, from its notes."""
    return figure.note("gpu") or f"processor, {figure.note('threads') or '?'} threads"
