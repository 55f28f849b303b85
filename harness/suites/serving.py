"""What a row takes of memory when it serves, from the figures of its latency.

Nothing is measured here, and torch is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.report.frame import FLOAT_BITS
from harness.report.rows import Figure, Row
from harness.report.serving import Serving

Figures = Mapping[tuple[str, str], Figure]  # task, metric

ALL, WINDOW = "all positions", "window:"  # tasks of cache_bytes_per_position: what layers keep
UNBOUNDED = "unbounded"  # the note `positions` of a model that any number of tokens fits
OLDER = (
    "an older record: its cache is lengthened from that of {timed} positions, which is at least "
    "what layers with a window keep, and its workspace is not known and not counted"
)
_STATIC, _ALIGNED = "static cache", 16  # modes of decoding whose cache has room for whole 16s


def serving_of(row: Row, name: str = "latency") -> Serving | None:
    """The memory of a row; None if its records do not say, or know of no cache.

    Of several lengths of the prompt, the longest counts.
    """
    figures = {key[1:]: figure for key, figure in row.figures.items() if key[0] == name}
    tasks = [task for task, metric in figures if metric == "bytes_per_token"]
    weights = figures.get(("model", "weight_bytes"))
    if weights is None or not tasks:
        return None
    task = max(tasks, key=lambda each: (_lengths(each), each))
    workspace = figures.get((task, "workspace_bytes"))
    state = figures.get(("model", "cache_state_bytes"))
    if workspace is not None and state is None:  # a model without a cache of layers
        return None
    bound = "" if state is None else state.note("positions")
    prompt, decoded = _lengths(task)
    return Serving(
        weights=weights.value,
        workspace=0.0 if workspace is None else workspace.value,
        workspace_at=prompt,
        cache=_cache(figures) if state is not None else _lengthened(figures, task),
        state=0.0 if state is None else state.value,
        positions=int(bound) if bound.isdigit() else None,
        timed=prompt + decoded,
        weight_count=_weight_count(row, figures),
        said="" if state is not None else OLDER.format(timed=prompt + decoded),
    )


def _lengths(task: str) -> tuple[int, int]:
    """Tokens of prompt and answer in "prompt128_decode64"."""
    prompt, _, decoded = task.removeprefix("prompt").partition("_decode")
    return int(prompt), int(decoded)


def _cache(figures: Figures) -> tuple[tuple[float, int | None], ...]:
    """Bytes of a position, and the window of the layers that keep it."""
    found = {
        task: figure
        for (task, metric), figure in sorted(figures.items())
        if metric == "cache_bytes_per_position"
    }
    return tuple(
        (figure.value, int(task.removeprefix(WINDOW)) if task.startswith(WINDOW) else None)
        for task, figure in found.items()
    )


def _lengthened(figures: Figures, task: str) -> tuple[tuple[float, int | None], ...]:
    """The same from the bytes of a whole cache: of its buffers, or of its mean length."""
    prompt, decoded = _lengths(task)
    held = figures[task, "bytes_per_token"].note("KV cache")
    mode = figures[task, "decode_ms"].note("decode mode")
    positions = prompt + (decoded + 1) / 2
    if mode.startswith(_STATIC):
        positions = -(-(prompt + decoded) // _ALIGNED) * _ALIGNED
    return ((int(held) / positions, None),) if held else ()


def _weight_count(row: Row, figures: Figures) -> float | None:
    """The number of weights; of older records, from the bytes of full precision."""
    counted = figures.get(("model", "weight_count"))
    if counted is not None:
        return counted.value
    name = "weight_bytes" if row.full_precision else "baseline_weight_bytes"
    full, bits = figures.get(("model", name)), FLOAT_BITS.get(row.dtype or "")
    return None if full is None or bits is None else 8 * full.value / bits
