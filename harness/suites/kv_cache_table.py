"""The table of key-value caches: a line for every row and cache, at equal bytes."""

from __future__ import annotations

from harness.report.names import Footnotes, missing, name_cells, name_columns
from harness.report.rows import Figure, Row
from harness.report.table import Cell, Column, Note, Table, measured, significant, small

NAME = "kv_cache"
TITLE = "Key-value caches of {model}"
FULL = "full"  # the label of the model's own cache
# Notes of figures.
SCHEME, SETTINGS, READING, WHERE, BUDGET = "scheme", "settings", "reading", "where", "budget"
LOSS_BY_POSITION, KL_BY_POSITION = "kv_nll_by_position", "kv_kl_by_position"
EXCESS_BY_POSITION = "kv_excess_nll_by_position"
SIMULATED = "simulated, numbers are rounded as they would be stored and read back, or left out"


def table(model: str, rows: list[Row]) -> Table | None:
    """Lines of every row: the full cache, then the schemes of a budget, the least KL first."""
    shown = [row for row in rows if NAME in row.suites]
    if not shown:
        return None
    said = [next(iter(found.values())) for row in shown for found in _caches(row)]
    wheres = list(dict.fromkeys(each.note(WHERE) for each in said))
    budgets = list(dict.fromkeys(each.note(BUDGET) for each in said if each.note(BUDGET)))
    # What is the same in all lines is said once, below.
    several = [name for name, values in ((WHERE, wheres), (BUDGET, budgets)) if len(values) > 1]
    footnotes, lines = Footnotes(), []
    for row in shown:
        names = name_cells(row, shown, footnotes)
        caches = _caches(row)
        if not caches:
            blank = [Cell()] * (1 + len(several) + len(FIGURES))
            lines.append([*names, missing(row, NAME, footnotes), *blank])
        lines += [[*names, *_line(found, several, footnotes)] for found in caches]
    columns = [
        *name_columns(shown),
        Column("cache", "cache", numeric=False),
        Column("settings", "settings", numeric=False, on_screen=False),
        *(Column(name, HEADERS[name], numeric=False) for name in several),
        *(Column(name, header, detail) for name, (header, detail) in FIGURES.items()),
    ]
    notes = [Note(EXPLAINED)]
    if len(budgets) == 1:
        notes.insert(0, Note(f"Budget: {budgets[0]} bits a number."))
    if len(wheres) == 1:
        notes.insert(0, Note(f"Windows of {wheres[0].replace('@', ', ')} tokens."))
    title = TITLE.replace("{model}", model)
    return Table(NAME, model, title, columns, lines, notes, footnotes.texts, footnotes.causes)


EXPLAINED = (
    "Simulated: numbers are rounded as they would be stored and read back, or left out; no packed "
    "kernel. Bits for each number of a full cache at the context, with scales, zeros, scores and "
    "what stays in 16 bits. Each query sees the cache as it is when its token is decoded. KL and "
    "agreement are with the full cache of the same model."
)
HEADERS = {WHERE: "text@tokens", BUDGET: "budget"}
FIGURES = {
    "bits_per_number": ("bits", "a number"),
    "cache_bytes": ("cache", "MiB"),
    "perplexity": ("perplexity", ""),
    "kl_divergence": ("KL full‖it", "nat, mean"),
    "top1_agreement": ("agree", "%"),
}


def _caches(row: Row) -> list[dict[str, Figure]]:
    """The figures of each cache of a row by metric, in the order of lines."""
    tasks = [k[1] for k in row.figures if k[0] == NAME and k[2] == "bits_per_number"]
    found = [
        {key[2]: each for key, each in row.figures.items() if key[:2] == (NAME, task)}
        for task in tasks
    ]
    return sorted(found, key=_order)


def _order(found: dict[str, Figure]) -> tuple[str, int, float, float]:
    said = found["bits_per_number"]
    text, _, length = said.note(WHERE).rpartition("@")
    least = found["kl_divergence"].value if "kl_divergence" in found else 0.0
    return text, int(length), float(said.note(BUDGET) or 0), least


def _line(found: dict[str, Figure], several: list[str], footnotes: Footnotes) -> list[Cell]:
    said = found["bits_per_number"]
    reading, label = said.note(READING), said.note(SCHEME)
    settings = said.note(SETTINGS) or "the model's own"
    return [
        Cell(label, label, marks=(footnotes.mark(reading),) if reading else ()),
        Cell(settings, settings),
        *(Cell(said.note(name) or "–", said.note(name)) for name in several),
        *(_cell(name, found.get(name)) for name in FIGURES),
    ]


def _cell(name: str, figure: Figure | None) -> Cell:
    if figure is None:
        return Cell()
    if name == "bits_per_number":
        text = f"{figure.value:.2f}"
    elif name == "cache_bytes":
        text = significant(figure.value / 2**20)
    elif name == "top1_agreement":
        error = None if figure.stderr is None else 100 * figure.stderr
        text = measured(100 * figure.value, error, 1, 2)
    elif name == "kl_divergence":
        text = small(figure.value, 3)
    else:
        text = measured(figure.value, figure.stderr, 2, 3)
    return Cell(text, figure.value, figure.stderr, spread=figure.spread)
