"""The cost table: seconds to quantize, milliseconds a token, bytes of weights and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from harness.report.names import (
    Footnotes,
    failed_seeds,
    missing,
    name_cells,
    name_columns,
)
from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import Cell, Column, Note, Table, ranged, significant

REFERENCE_KERNEL = (
    "reference kernel, plain PyTorch that unpacks every weight at every step: "
    "exact, but no measure of what packed kernels reach"
)


def _plain(figure: Figure) -> str:
    return significant(figure.value)


def _range(figure: Figure) -> str:
    return ranged(figure.value, figure.low, figure.high)


def _percent(figure: Figure) -> str:
    return significant(100 * figure.value, 2)


def _megabytes(figure: Figure) -> str:
    return significant(figure.value / 1e6)


READ = ("latency", "device")  # suite and task of the read bandwidth

# Notes of a timing that are shown elsewhere.
NOT_CONDITIONS = ("kernel:", "decode mode:", "full-precision twin:")

# Follow from other columns, or (peak memory on a processor) are mostly the libraries: the screen,
# which has room for ten columns, can do without.
FILES_ONLY = ("decode_tokens_per_s", "decode_bandwidth", "bytes_per_token", "peak_memory_bytes")

# metric of the latency suite -> (header, detail, how it is written)
METRICS: dict[str, tuple[str, str, Callable[[Figure], str]]] = {
    "weight_bytes": ("weights", "MB", _megabytes),
    "prefill_ms": ("prefill", "ms", _plain),
    "decode_ms": ("decode", "ms/token", _range),
    "decode_speedup": ("speed-up", "× full", _plain),
    "roofline_share": ("roof", "%", _percent),
    "bytes_per_token": ("reads", "MB/token", _megabytes),
    "decode_tokens_per_s": ("tokens", "/s", _plain),
    "decode_bandwidth": ("reads", "GB/s", _plain),
    "peak_memory_bytes": ("peak", "MB", _megabytes),
}


def cost_table(model: str, rows: list[Row]) -> Table | None:
    """The table of one model's rows; None when nothing was quantized or timed."""
    keys = cost_keys(rows)
    quantized = any(_quantized(row) for row in rows)
    failed = not keys and any("latency" in row.failures for row in rows)
    if not keys and not quantized and not failed:
        return None
    footnotes = Footnotes()
    columns = name_columns(rows)
    if quantized:
        columns.append(Column("quantization_s", "quant.", "s"))
    columns += [_column(key, keys) for key in keys]
    if failed:
        columns.append(Column("latency:status", "latency"))
    cells = []
    for row in rows:
        line = name_cells(row, rows, footnotes)
        if quantized:
            line.append(_quantization_cell(row, footnotes))
        line += [_cell(row, key, rows, footnotes) for key in keys]
        if failed:
            line.append(missing(row, "latency", footnotes))
        cells.append(line)
    notes = _notes(rows, keys)
    return Table(
        "cost",
        model,
        f"Time and memory of {model}",
        columns,
        cells,
        notes,
        footnotes.texts,
        footnotes.causes,
    )


def cost_keys(rows: list[Row]) -> list[FigureKey]:
    """In the order of METRICS; several prompt lengths stand side by side."""
    names = list(METRICS)
    keys = {key for row in rows for key in row.figures if key[0] == "latency" and key[2] in names}
    return sorted(keys, key=lambda key: (names.index(key[2]), key[1]))


def _column(key: FigureKey, keys: list[FigureKey]) -> Column:
    _, task, metric = key
    header, detail, _ = METRICS[metric]
    on_screen = metric not in FILES_ONLY
    if sum(other[2] == metric for other in keys) > 1:
        return Column(f"{task}:{metric}", task, f"{header} {detail}", on_screen=on_screen)
    return Column(metric, header, detail, on_screen=on_screen)


def _quantized(row: Row) -> bool:
    stages = (*row.seconds, *row.failures)
    return "quantization" in stages and not row.full_precision


def _quantization_cell(row: Row, footnotes: Footnotes) -> Cell:
    total = row.figures.get(("quantization", "total", "seconds"))
    seconds = row.seconds.get("quantization") if total is None else total.value
    if seconds is None:
        return missing(row, "quantization", footnotes)
    marks = failed_seeds(row, "quantization", footnotes)
    return Cell(significant(seconds), seconds, marks=marks)


def _cell(row: Row, key: FigureKey, rows: list[Row], footnotes: Footnotes) -> Cell:
    figure = row.figures.get(key)
    if figure is None:
        if key[2].endswith("_speedup"):
            return _no_speedup(row, footnotes)
        return missing(row, "latency", footnotes)
    marks = failed_seeds(row, "latency", footnotes)
    if key[2] == "decode_ms" and figure.note("decode mode") != _usual_mode(rows):
        marks += (footnotes.mark(f"decoded with {figure.note('decode mode')}"),)
    if figure.kernel == "reference" and key[2] in ("decode_ms",):
        marks += (footnotes.mark(REFERENCE_KERNEL),)
    text = METRICS[key[2]][2](figure)
    return Cell(text, figure.value, figure.stderr, figure.low, figure.high, marks)


def _no_speedup(row: Row, footnotes: Footnotes) -> Cell:
    """A full-precision row has no twin to be compared with; one too large for memory is said."""
    if row.full_precision:
        return Cell()
    for key, figure in row.figures.items():
        reason = figure.note("full-precision twin") if key[2] == "decode_ms" else ""
        if reason:
            return Cell(marks=(footnotes.mark(f"full-precision twin {reason}"),))
    return missing(row, "latency", footnotes)


def _usual_mode(rows: list[Row]) -> str:
    """How most rows were decoded: static cache in a CUDA graph or not, or a dynamic cache."""
    modes = Counter(
        figure.note("decode mode")
        for row in rows
        for key, figure in row.figures.items()
        if key[2] == "decode_ms"
    )
    return max(modes, key=lambda mode: (modes[mode], mode), default="")


def _notes(rows: list[Row], keys: list[FigureKey]) -> list[Note]:
    tasks = sorted({key[1] for key in keys if key[2] == "decode_ms"})
    if not tasks:
        return []
    notes = [
        Note(
            f"Medians [p10–p90] at batch 1 with the KV cache, {', '.join(tasks)}. Speed-up: the "
            "time of the full-precision twin, measured in turn in the same process, over this "
            "one's."
        )
    ]
    if _usual_mode(rows):
        notes.append(Note(f"Decoded with {_usual_mode(rows)}."))
    if any(key[2] == "roofline_share" for key in keys):
        notes.append(
            Note(
                "Roof: weights, KV cache and activations of a token over its time, against the "
                f"read bandwidth measured in the same process ({_bandwidths(rows)} GB/s)."
            )
        )
    timed = _said(rows, "decode_ms")
    settings = {
        ", ".join(part for part in text.split("; ") if not part.startswith(NOT_CONDITIONS))
        for text in timed
    }
    notes += [Note(f"Conditions: {text}.") for text in sorted(settings) if text]
    peaks = tuple(_column(key, keys).name for key in keys if key[2] == "peak_memory_bytes")
    notes += [
        Note(f"Peak memory: {text.removeprefix('measured: ')}.", peaks)
        for text in _said(rows, "peak_memory_bytes")
        if text
    ]
    return notes


def _said(rows: list[Row], metric: str) -> list[str]:
    """The different notes that the figures of a metric carry."""
    return sorted({f.notes for row in rows for key, f in row.figures.items() if key[2] == metric})


def _bandwidths(rows: list[Row]) -> str:
    """ "41.2" or "38.5–42.0": every process measures its own."""
    found = [f.value for row in rows for key, f in row.figures.items() if key[:2] == READ]
    ends = dict.fromkeys(significant(end) for end in (min(found), max(found))) if found else {}
    return "–".join(ends) or "?"
