"""The table of all methods under one protocol: experiment=methods/ablation, in docs/methods.

A line a cell, full precision first, then by bits, the best first. Each is compared on the same
windows with plain rounding and with plain GPTQ on its own grid or, where these were not measured,
on the uniform grid of as many bits and as long groups; a method that loses to one of them says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from harness.paired.comparison import Comparison, compare
from harness.records.record import QUANTIZATION, Items, Record
from harness.report.frame import from_records
from harness.report.rows import Figure, FigureKey, Row, read_rows
from harness.report.table import Cell, Column, Note, Table, measured
from quant.solvers import gptq

EXPERIMENT = "methods/ablation"
NAME = "ablation"
TO_RUN = f"To run: `bitsweep run experiment={EXPERIMENT}`."
PERPLEXITY = ("perplexity", "wikitext2", "perplexity")
WEIGHT_ERROR = (QUANTIZATION, "mean of layers", "weight_error")
# Options of the plain methods that rows are compared with.
USUAL = {**asdict(gptq.DEFAULT_OPTIONS), "damping_ladder": []}
FAST = "fast arithmetic"  # said once, below the table
ORACLE_GAP = (QUANTIZATION, "pieces of layers", "oracle_gap")
COLUMNS = (  # those of first_cells
    Column("method", "method", numeric=False),
    Column("scheme", "scheme", numeric=False),
    Column("bits_per_weight", "bits/", "weight"),
    Column("perplexity", "WikiText-2", "ppl ↓"),
)


def plain(row: Row, method: str, rows: Sequence[Row]) -> Row | None:
    """The row of a method without options that `row` is compared with; None if it is that one."""
    if row.full_precision:
        return None
    grid = (row.bits, row.group_size)
    found = [r for r in rows if r.method == method and _as_in_the_paper(r)]
    alike = [r for r in found if (r.bits, r.group_size) == grid and not _searched(r)]
    same = [r for r in alike if r.scheme == row.scheme] or alike
    return same[0] if same and same[0] is not row else None


def _as_in_the_paper(row: Row) -> bool:
    """Whether a row has no transform, and no option but the arithmetic differs from its default."""
    recipe = json.loads(row.recipe)
    given = {key: value for key, value in recipe["method"].items() if key in USUAL}
    return not recipe.get("transform") and all(USUAL[key] == value for key, value in given.items())


def _searched(row: Row) -> bool:
    """Whether the grids of a row were searched."""
    return row.scheme.endswith(("_mse", "_hessian"))


def ablation_table(records: Sequence[Record]) -> Table:
    """The table of the records' cells."""
    rows = read_rows(from_records(records)).rows
    rows = [row for row in rows if PERPLEXITY in row.figures]
    rows.sort(key=lambda row: (-(row.bits or 16), row.figures[PERPLEXITY].value))
    columns = [
        *COLUMNS,
        Column("spread", "over", "seeds"),
        Column("against_rtn", "against RTN", "nat a token"),
        Column("against_gptq", "against GPTQ", "nat a token"),
        Column("weight_error", "weight", "error"),
        Column("oracle_gap", "oracle", "gap %"),
    ]
    lines = [_line(row, rows) for row in rows]
    windows, fast = measured_windows(rows), said_of_arithmetic(rows)
    seeds = max((len(row.seeds) for row in rows), default=0)
    model = rows[0].model if rows else ""
    notes = [
        Note(
            f"The first {windows} windows of WikiText-2's test text in every cell, "
            f"{_drawn(seeds)}. Against: difference of the mean loss "
            "and its 95 % paired bootstrap interval over windows, from plain RTN and plain GPTQ "
            "on the same grid, or on the uniform grid of as many bits and as long groups. "
            "loses: the whole interval is above 0. Weight error: mean of layers of "
            "||W - Q|| / ||W||, after transforms. Oracle gap: by how much the solver's error "
            "differed from its textbook's on pieces of the model in that run; a cell that differs "
            f"by more than 1 % has no figures.{fast}"
        )
    ]
    return Table(NAME, model, f"Every method under one protocol: {model}", columns, lines, notes)


def _line(row: Row, rows: Sequence[Row]) -> list[Cell]:
    ppl = row.figures[PERPLEXITY]
    error, gap = row.figures.get(WEIGHT_ERROR), row.figures.get(ORACLE_GAP)
    return [
        *first_cells(row),
        Cell() if ppl.spread is None else Cell(f"{ppl.spread:.2f} ({ppl.seeds})", ppl.spread),
        *(against(row, plain(row, method, rows)) for method in ("rtn", "gptq")),
        Cell() if error is None else Cell(f"{error.value:.3f}", error.value),
        Cell() if gap is None else Cell(_percent(gap), gap.value),
    ]


def first_cells(row: Row, unsaid: Sequence[str] = (FAST,)) -> list[Cell]:
    """What a row is and its perplexity; unsaid are words of its variant that a table says once."""
    ppl, bits, label = row.figures[PERPLEXITY], row.bits_per_weight, _label(row, unsaid)
    return [
        Cell(label, label),
        Cell(row.scheme_label, row.scheme),
        Cell() if bits is None else Cell(f"{bits:.2f}", bits),
        Cell(measured(ppl.value, ppl.stderr, 2, 3), ppl.value, ppl.stderr),
    ]


def measured_windows(rows: Sequence[Row]) -> int:
    """On how many windows perplexities were measured."""
    return max((i.count for row in rows for i in row.figures[PERPLEXITY].items), default=0)


def said_of_arithmetic(rows: Sequence[Row]) -> str:
    """A sentence where codes were found in fast arithmetic."""
    return " Codes in fast arithmetic." if any(FAST in row.label for row in rows) else ""


def _drawn(seeds: int) -> str:
    """How often calibration windows were drawn, of the row with the most seeds."""
    if seeds <= 1:
        return "one draw of calibration windows"
    return (
        f"one draw of calibration windows or, where the column over seeds has a standard "
        f"deviation and its number, the mean of {seeds}"
    )


def is_plain(row: Row) -> bool:
    """Whether a row's words are its method's alone: no options, no transforms."""
    return _label(row) == row.method_label


def _label(row: Row, unsaid: Sequence[str] = (FAST,)) -> str:
    words = [word for word in row.variant.split(", ") if word not in unsaid]
    return f"{row.method_label} {', '.join(words)}".strip()


def _percent(gap: Figure) -> str:
    return f"{100 * abs(gap.value):.2f}"


def loses(row: Row, other: Row | None, perplexity: FigureKey = PERPLEXITY) -> bool:
    """Whether a row is worse than another: all of the interval of their paired difference."""
    found = other and _compared(row, other, perplexity)
    return bool(found and found.low > 0)


def against(row: Row, other: Row | None) -> Cell:
    """The difference of the mean loss from another row's with its interval, or an empty cell."""
    if other is None:
        return Cell()
    found = _compared(row, other)
    if found is None:
        return Cell("no windows kept")
    text = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return Cell(text + _verdict(found), found.difference)


def _compared(row: Row, other: Row, perplexity: FigureKey = PERPLEXITY) -> Comparison | None:
    mine, theirs = row.figures[perplexity].items, other.figures[perplexity].items
    return compare(_losses(theirs), [_losses(mine)])[0] if mine and theirs else None


def _losses(items: Sequence[Items]) -> list[Items]:
    """The items of the mean loss, of those of a perplexity."""
    return [each.model_copy(update={"exponential": False}) for each in items]


def _verdict(found: Comparison) -> str:
    return ", loses" if found.low > 0 else ""
