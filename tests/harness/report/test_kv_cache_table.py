"""The table and the plots of key-value caches, from made-up records."""

from harness.records.record import Failure, Metric
from harness.report.curve_plot import lines_figure
from harness.report.frame import from_records
from harness.report.rows import read_rows
from harness.suites.kv_cache import CURVES
from harness.suites.kv_cache_table import EXPLAINED, table

CACHES = {"full": None, "H2O": 0.2, "KIVI": 0.1, "staircase": 0.3}  # KL


def metrics(budgets: tuple[float, ...] = (4.0,)) -> list[Metric]:
    found = []
    for budget in budgets:
        for label, kl in CACHES.items():
            where = "wikitext2@64"
            task = where if kl is None else f"{where} {budget:g} bits"
            notes = {"scheme": label, "where": where, "panel": task}
            if kl is not None:
                notes |= {"budget": f"{budget:g}", "settings": "2 bits, group 32"}
            if label == "staircase":
                notes["reading"] = "staircase: our reading"
            values = {"bits_per_number": budget, "cache_bytes": 2**20, "perplexity": 5.0}
            values |= {} if kl is None else {"kl_divergence": kl / budget, "top1_agreement": 0.5}
            named = f"{task} {label}"
            points = {} if kl is None else {f"{named}:{at}": at for at in (8, 32)}
            found += [
                Metric(name=name, task=named, value=value, unit="1", n=9, n_unit="tokens",
                       notes=notes)
                for name, value in values.items()
            ]  # fmt: skip
            found += [
                Metric(name="kv_kl_by_position", task=name, value=(kl or 0) * at, unit="nat", n=9,
                       n_unit="tokens", stderr=0.01, notes={**notes, "position": str(at)})
                for name, at in points.items()
            ]  # fmt: skip
    return list({(each.task, each.name): each for each in found}.values())


def rows_of(made_up, *given):
    schemes = [("none", "w16"), ("rtn", "w4")]
    records = [
        made_up.record(*name, suite="kv_cache", metrics=each)
        for name, each in zip(schemes, given, strict=False)
    ]
    return read_rows(from_records(records)).rows


def test_a_line_for_every_row_and_cache(made_up) -> None:
    made = table("tiny", rows_of(made_up, metrics(), metrics()))
    names = [each.name for each in made.columns]
    caches = [line[names.index("cache")] for line in made.rows]
    assert [each.text for each in caches] == ["full", "KIVI", "H2O", "staircase"] * 2  # by KL
    kivi = dict(zip(names, (cell.text for cell in made.rows[1]), strict=True))
    assert kivi["settings"] == "2 bits, group 32"
    assert (kivi["bits_per_number"], kivi["cache_bytes"]) == ("4.00", "1.00")
    assert (kivi["kl_divergence"], kivi["top1_agreement"]) == ("0.0250", "50.0")
    assert made.rows[0][names.index("kl_divergence")].value is None
    assert caches[3].marks == (1,)
    assert made.footnotes == ["staircase: our reading"]
    said = [note.text for note in made.notes]
    assert said == ["Windows of wikitext2, 64 tokens.", "Budget: 4 bits a number.", EXPLAINED]
    assert "budget" not in names  # the same in all lines, so it stands below


def test_budgets_that_differ_have_a_column(made_up) -> None:
    made = table("tiny", rows_of(made_up, metrics((4.0, 3.0))))
    names = [each.name for each in made.columns]
    lines = [(line[names.index("budget")].text, line[names.index("cache")].text)
             for line in made.rows]  # fmt: skip
    found = [("–", "full")]
    for budget in ("3", "4"):
        found += [(budget, name) for name in ("KIVI", "H2O", "staircase")]
    assert lines == found
    assert table("tiny", rows_of(made_up, [made_up.perplexity(5.0)])[:0]) is None


def test_a_panel_for_every_row_and_budget_and_a_line_for_every_cache(made_up) -> None:
    rows = rows_of(made_up, metrics((3.0, 4.0)), metrics())
    figure = lines_figure(rows, "kv_cache", CURVES[0])
    titles = [panel.get_title().partition(", ")[2] for panel in figure.axes]
    assert titles == [f"wikitext2@64 {bits} bits" for bits in (3, 4, 4)]
    assert [len(panel.lines) for panel in figure.axes] == [3, 3, 3]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[8, 0.2 * 8], [32, 0.2 * 32]]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["H2O", "KIVI", "staircase"]
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert len(set(colours)) == 3
    assert colours == [line.get_color() for line in figure.axes[2].lines]


def test_a_failed_suite_is_a_line_with_its_cause(made_up) -> None:
    why = Failure(stage="kv_cache", type="KvCacheError", message="a window of 8")
    failed = made_up.record("none", "w16", suite="kv_cache", status="failed", error=why, metrics=[])
    made = table("tiny", read_rows(from_records([failed])).rows)
    assert [len(line) for line in made.rows] == [len(made.columns)]
    assert made.rows[0][[each.name for each in made.columns].index("cache")].text == "failed"
    assert "a window of 8" in made.footnotes[0]
