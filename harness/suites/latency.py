"""Latency at batch 1: prefill and decode with the KV cache, beside the full-precision baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from harness.errors import ConfigError
from harness.report.columns import (
    COST,
    ByRow,
    FigureColumn,
    OwnTable,
    Shown,
    SuiteTable,
    condition_notes,
)
from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import Cell, Note, Table, ranged, significant
from harness.suites.base import (
    Facts,
    Suite,
    SuiteContext,
    SuiteResult,
    at_least_one,
    machine_inputs,
)
from harness.suites.energy import ENERGY
from harness.suites.published_latency import PLACE, published_table
from harness.suites.serving import serving_of

NAME = "latency"

REFERENCE_KERNEL = (
    "reference kernel, plain PyTorch that unpacks every weight at every step: "
    "exact, but no measure of what packed kernels reach"
)
DEQUANTIZES = "dequantizes first"
DEQUANTIZED = (
    "weights are dequantized before every product, because the compiled kernels have no code for "
    "these bits or groups"
)
# Notes of a timing that are shown elsewhere.
NOT_CONDITIONS = ("kernel", "decode mode", "full-precision baseline", "devices", ENERGY)


@dataclass
class Config:
    """How long prompt and answer are, and how often they are timed."""

    prompt_tokens: int = 128
    decode_tokens: int = 64
    warmup: int = 3
    repeats: int = 5


def check(config: Config, facts: Facts) -> None:
    """ConfigError for a number that is too small, or a context that is."""
    for name in ("prompt_tokens", "decode_tokens", "repeats"):
        at_least_one(f"{facts.key}.{name}", getattr(config, name))
    if config.warmup < 0:
        raise ConfigError(f"{facts.key}.warmup={config.warmup} is too small; use 0 or more.")
    context = (facts.shape or {}).get("max_position_embeddings")
    needed = positions(config)
    if isinstance(context, int) and needed > context:
        raise ConfigError(
            f"{facts.key} needs {needed} tokens (prompt_tokens={config.prompt_tokens} + "
            f"decode_tokens={config.decode_tokens}), but model={facts.model} has a context "
            f"of {context}: make one of the two smaller."
        )


def positions(config: Config) -> int:
    """Tokens of the prompt and of the answer."""
    return config.prompt_tokens + config.decode_tokens


def run(context: SuiteContext, config: Config) -> SuiteResult:
    """Times of the model and, when it is quantized, of its baseline: every repeat and token."""
    from harness.suites import timing_tokens

    return timing_tokens.run(context, config)


def _plain(figure: Figure) -> Cell:
    return _written(figure, significant(figure.value))


def _range(figure: Figure) -> Cell:
    return _written(figure, ranged(figure.value, figure.low, figure.high))


def _bits(figure: Figure) -> Cell:
    return Cell(f"{figure.value:.2f}", figure.value)


def _percent(figure: Figure) -> Cell:
    return _written(figure, significant(100 * figure.value, 2))


def _megabytes(figure: Figure) -> Cell:
    return _written(figure, significant(figure.value / 1e6))


def _written(figure: Figure, text: str) -> Cell:
    return Cell(text, figure.value, figure.stderr, figure.low, figure.high)


def _how_decoded(row: Row, key: FigureKey, rows: Sequence[Row]) -> list[str]:
    """Footnotes of a decode time that was not taken as the others were."""
    figure, said = row.figures[key], []
    mode = figure.note("decode mode")
    if mode != _usual_mode(tuple(rows)):
        said.append(f"decoded with {mode}")
    said += spread_footnotes(figure)
    if figure.kernel == "reference":
        said.append(REFERENCE_KERNEL)
    if figure.kernel is not None and DEQUANTIZES in figure.kernel:
        said.append(DEQUANTIZED)
    return said


def spread_footnotes(figure: Figure) -> list[str]:
    """The footnote of a model that lay on several devices."""
    count = figure.note("devices")
    return [f"over {count} devices, the harness's own loop"] if count else []


def _against(row: Row, key: FigureKey, _rows: Sequence[Row]) -> list[str]:
    """The footnote of a speed-up over a baseline on another number of devices."""
    figure = row.figures[key]
    own, other = figure.note("devices") or "1", figure.note("baseline devices") or "1"
    return [] if own == other else [f"full precision over {other} devices, this model on {own}"]


@lru_cache(maxsize=4)  # asked for every row
def _usual_mode(rows: tuple[Row, ...]) -> str:
    """How most rows were decoded: static cache in a CUDA graph or not, or a dynamic cache."""
    modes = Counter(figure.note("decode mode") for figure in _figures("decode_ms", rows))
    return max(modes, key=lambda mode: (modes[mode], mode), default="")


def _no_energy(row: Row, key: FigureKey) -> str | None:
    """Why there is no energy in a row, where other rows have some."""
    decoded = row.figures.get((NAME, key[1], "decode_ms"))
    reason = "" if decoded is None else decoded.note(ENERGY)
    return f"energy {reason}" if reason else None


def _no_speedup(row: Row, _key: FigureKey) -> str | None:
    """A full-precision row has no other baseline; one too large for memory is said."""
    if row.full_precision:
        return ""
    for (suite, _, metric), figure in row.figures.items():
        reason = figure.note("full-precision baseline")
        if reason and (suite, metric) == (NAME, "decode_ms"):
            return f"full-precision baseline {reason}"
    return None


def _notes(rows: Sequence[Row], shown: Sequence[Shown]) -> list[Note]:
    decoded = [each.key for each in shown if each.key[2] == "decode_ms"]
    if not decoded:
        return []
    tasks = ", ".join(sorted(task for _, task, _ in decoded))
    notes = [
        Note(
            f"Medians [p10–p90] at batch 1 with the KV cache, {tasks}. Speed-up: the "
            "time of the full-precision baseline, measured in turn in the same process, over this "
            "one's."
        )
    ]
    mode = _usual_mode(tuple(rows))
    if mode:
        notes.append(Note(f"Decoded with {mode}."))
    notes += _energy_notes(rows)
    if any(each.key[2] == "roofline_share" for each in shown):
        cached = any(each.value > 1 for each in _figures("roofline_share", rows))
        why = " Above 100 %: a processor's caches hold what a token reads." * cached
        notes.append(
            Note(
                "Roof: weights, KV cache and activations of a token over its time, against the "
                f"read bandwidth measured in the same process ({_bandwidths(rows)} GB/s).{why}"
            )
        )
    notes += condition_notes(_figures("decode_ms", rows), NOT_CONDITIONS)
    peaks = tuple(each.column.name for each in shown if each.key[2] == "peak_memory_bytes")
    notes += [
        Note(f"Peak memory: {text.removeprefix('measured: ')}.", peaks)
        for text in sorted({figure.notes for figure in _figures("peak_memory_bytes", rows)})
        if text
    ]
    return notes


def _energy_notes(rows: Sequence[Row]) -> list[Note]:
    found = sorted({figure.note("measured") for figure in _figures("joules_per_token", rows)})
    return [Note(f"Energy of decoding: {text}.") for text in found]


def _figures(metric: str, rows: Sequence[Row]) -> list[Figure]:
    """The figures of one metric in all rows."""
    return [
        figure
        for row in rows
        for key, figure in row.figures.items()
        if (key[0], key[2]) == (NAME, metric)
    ]


def _bandwidths(rows: Sequence[Row]) -> str:
    """ "41.2" or "38.5–42.0": every process measures its own."""
    read = (NAME, "device")
    found = [f.value for row in rows for key, f in row.figures.items() if key[:2] == read]
    ends = dict.fromkeys(significant(end) for end in (min(found), max(found))) if found else {}
    return "–".join(ends) or "?"


def _beside_published(model: str, rows: list[Row]) -> Table | None:
    return published_table(NAME, model, rows)


PLOT = ByRow(
    name="latency",
    title="Decode time",
    axis="decode, ms per token at batch 1 (median, p10 to p90)",
    beside=("baseline_decode_ms", "full-precision baseline, measured in turn"),
)

# In files alone is what follows from other columns, or (peak memory on a processor) is mostly the
# libraries: the screen has room for ten columns.
TABLE = SuiteTable(
    columns=(
        FigureColumn("model_bits_per_weight", "bits/weight", "of model", _bits, optional=True),
        FigureColumn("weight_bytes", "weights", "MB", _megabytes),
        FigureColumn("prefill_ms", "prefill", "ms", _plain),
        FigureColumn(
            "decode_ms", "decode", "ms/token", _range, footnotes=_how_decoded, plot=PLOT, cost="ms"
        ),
        FigureColumn(
            "decode_speedup",
            "speed-up",
            "× full",
            _plain,
            footnotes=_against,
            absent=_no_speedup,
            optional=True,
        ),
        FigureColumn("roofline_share", "roof", "%", _percent),
        FigureColumn(
            "joules_per_token",
            "energy",
            "J/token",
            _range,
            absent=_no_energy,
            cost="J",
            optional=True,
        ),
        FigureColumn("bytes_per_token", "reads", "MB/token", _megabytes, on_screen=False),
        FigureColumn("decode_tokens_per_s", "tokens", "/s", _plain, on_screen=False),
        FigureColumn("decode_bandwidth", "reads", "GB/s", _plain, on_screen=False),
        FigureColumn("peak_memory_bytes", "peak", "MB", _megabytes, on_screen=False),
    ),
    joins=COST,
    rank=20,
    task_by_task=False,
    notes=_notes,
    tables=(OwnTable(PLACE, _beside_published),),
    serving=serving_of,
)

SUITE = Suite(
    name=NAME,
    # 2: static cache, bytes of the cache counted, speed-up instead of time ratio
    version=2,
    config=Config,
    run=run,
    check=check,
    inputs=machine_inputs,
    timing=True,
    preload=("harness.suites.timing_tokens",),
    positions=positions,
    table=TABLE,
)
