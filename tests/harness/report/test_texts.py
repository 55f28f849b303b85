"""Rows over seeds and calibration texts: which spread is which, in tables and in the plot."""

import csv
import io
import itertools

import numpy as np
import pytest

from harness.report import from_records
from harness.report.by_calibration import calibration_figure, calibration_plots, panels_of, short
from harness.report.leading import Leading
from harness.report.plots import bits_figure
from harness.report.render import to_csv
from harness.report.rows import Figure, read_rows
from harness.report.table import significant
from harness.report.tables import summary_tables
from harness.report.texts import spread_of, text_groups, text_names
from harness.suites.find import declared_tables
from harness.suites.perplexity import PLOT

KEY = ("perplexity", "embedded_eval", "perplexity")
TEXTS = {"c4": 6.0, "prose": 7.0, "random": 11.0}
SEEDS = (0, 1, 2)


def value_of(text, sequences, seed):
    return TEXTS[text] + 40 / sequences + 0.15 * seed


def calibrated(made_up, text, sequences, seed, value=None, **changes):
    """The records of one GPTQ cell: a quantization that saw the tokens, and a perplexity."""
    config = {
        "calib.name": text,
        "calib.protocol": f"{text}-train",
        "calib.sequences": sequences,
        "calib.length": 512,
        "calib.seed": seed,
        **changes.pop("config", {}),
    }
    value = value_of(text, sequences, seed) if value is None else value
    made = made_up.cell("gptq", "w3", value, seed=seed, config=config)
    found = []
    for record in made:
        if record.suite not in ("quantization", "perplexity"):
            continue
        cell = record.cell.model_copy(update={"calibration": text})
        layers = [layer.model_copy(update={"tokens": 512 * sequences}) for layer in record.layers]
        found.append(record.model_copy(update={"cell": cell, "layers": layers, **changes}))
    return found


@pytest.fixture
def ablation(made_up):
    records = made_up.cell("none", "w16", 5.0) + made_up.cell("rtn", "w3", 9.5)
    for text, sequences, seed in itertools.product(TEXTS, (4, 16, 64), SEEDS):
        records += calibrated(made_up, text, sequences, seed)
    return records


def figure(value, spread=None, seeds=1, higher=False):
    return Figure(
        value, None, None, None, "ppl", 10, "tokens", "ab", higher, None, "", seeds, spread
    )


def test_both_spreads_are_those_of_numpy() -> None:
    draws = np.random.default_rng(0).normal([[5.0], [7.0], [6.0]], 0.2, (3, 4))
    figures = {
        name: figure(values.mean(), values.std(ddof=1), len(values))
        for name, values in zip(("a", "b", "c"), draws, strict=True)
    }
    found = spread_of(figures)
    means = draws.mean(1)
    assert found.mean == pytest.approx(means.mean())
    assert found.sd == pytest.approx(means.std(ddof=1))
    within = ((draws - means[:, None]) ** 2).sum() / (3 * (4 - 1))
    assert found.seeds == pytest.approx(np.sqrt(within))
    assert found.best == (pytest.approx(means.min()), "a")
    assert found.worst == (pytest.approx(means.max()), "b")


def test_the_best_is_the_largest_where_more_is_better() -> None:
    found = spread_of({"a": figure(0.5, higher=True), "b": figure(0.7, higher=True)})
    assert (found.best, found.worst) == ((0.7, "b"), (0.5, "a"))
    assert found.seeds is None


def test_rows_of_one_size_are_grouped_and_other_methods_are_not(made_up, ablation) -> None:
    other = calibrated(made_up, "c4", 4, 0, value=8.0, config={"method.damping": 0.1})
    rows = read_rows(from_records(ablation + other)).rows
    groups = text_groups(rows)
    assert [{row.calibration for row in group} for group in groups] == [set(TEXTS)] * 3
    assert len({row.text_size for group in groups for row in group}) == 3
    assert all("0.1" not in row.recipe_label for group in groups for row in group)


def test_the_table_has_both_spreads_beside_each_other(ablation) -> None:
    tables = {table.name: table for table in summary_tables(from_records(ablation))}
    table = tables["accuracy_texts"]
    names = [column.name for column in table.columns]
    assert names[:5] == ["method", "scheme", "windows", "texts", "seeds"]
    lines = {row[2].text: [cell.text for cell in row] for row in table.rows}
    assert lines.keys() == {"4 x 512", "16 x 512", "64 x 512"}
    means = [np.mean([value_of(text, 16, seed) for seed in SEEDS]) for text in TEXTS]
    assert lines["16 x 512"][3:] == [
        "3",
        "3",
        f"{means[0]:.2f} c4",
        f"{means[2]:.2f} random",
        significant(np.std(means, ddof=1), 2),
        "0.15",
    ]
    assert "standard deviation over the texts" in table.notes[0].text
    assert any("a table of its own" in note.text for note in tables["accuracy"].notes)
    exact = list(csv.DictReader(io.StringIO(to_csv(table))))
    line = next(each for each in exact if each["windows"] == "16 x 512")
    assert float(line["embedded_eval:perplexity:mean"]) == pytest.approx(np.mean(means))


def test_one_text_has_no_such_table_and_no_such_note(made_up) -> None:
    records = [r for seed in SEEDS for r in calibrated(made_up, "c4", 4, seed)]
    tables = {table.name: table for table in summary_tables(from_records(records))}
    assert tables.keys() == {"accuracy", "cost"}
    assert not any("calibration texts" in note.text for note in tables["accuracy"].notes)


def test_the_csv_has_the_deviation_over_seeds(ablation) -> None:
    table = next(t for t in summary_tables(from_records(ablation)) if t.name == "accuracy")
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    name = next(name for name in lines[0] if name.endswith("_sd_seeds"))
    spreads = [float(line[name]) for line in lines if line["seeds"] == "3.0"]
    assert spreads == pytest.approx([0.15] * 9)
    assert all(line[name] == "" for line in lines if line["seeds"] == "1.0")


def test_files_of_one_name_and_other_content_are_different_texts(made_up) -> None:
    records = []
    for content in ("a" * 64, "b" * 64):
        made = calibrated(made_up, "prose", 4, 0, config={"calib.path": "text.txt"})
        records += [
            record.model_copy(
                update={"inputs": {"calibration": content}, "cell_key": record.key + content}
            )
            for record in made
        ]
    read = read_rows(from_records(records))
    assert read.notes == []
    assert [row.label for row in read.rows] == ["GPTQ text=aaaaaaaa", "GPTQ text=bbbbbbbb"]
    assert list(text_names(read.rows).values()) == [
        "prose (text.txt aaaaaaaa)",
        "prose (text.txt bbbbbbbb)",
    ]


def test_a_chat_template_makes_another_text(made_up) -> None:
    records = [
        record
        for config in ({}, {"calib.chat_template": True})
        for record in calibrated(made_up, "c4", 4, 0, config=config)
    ]
    rows = read_rows(from_records(records)).rows
    assert list(text_names(rows).values()) == ["c4 (chat template)", "c4 (c4-train)"]
    assert len(text_groups(rows)) == 1


def test_the_plot_has_a_line_a_text_and_a_band_of_the_seeds(ablation) -> None:
    rows = read_rows(from_records(ablation)).rows
    (panel,) = panels_of(rows, KEY, "perplexity")
    drawn = calibration_figure(rows, [panel], PLOT)
    (axes,) = drawn.axes
    assert axes.get_title() == "GPTQ w3, embedded_eval"
    assert axes.get_ylabel() == "perplexity, mean ± sd of 3 seeds"
    lines = {tuple(line.get_xdata()): line for line in axes.lines if len(line.get_xdata()) == 3}
    assert lines.keys() == {(2048.0, 8192.0, 32768.0)}
    means = [list(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 3]
    assert means == [
        pytest.approx([value_of(text, size, 1) for size in (4, 16, 64)]) for text in TEXTS
    ]
    bands = [band.get_paths()[0].get_extents() for band in axes.collections]
    assert [(band.ymin, band.ymax) for band in bands] == [
        pytest.approx((value_of(text, 64, 1) - 0.15, value_of(text, 4, 1) + 0.15)) for text in TEXTS
    ]
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *TEXTS,
        "full precision",
        "RTN, no calibration",
    ]
    levels = [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
    assert levels == [5.0, 9.5]


def test_the_plot_needs_two_sizes_and_repeats_its_bytes(made_up, ablation) -> None:
    rows = read_rows(from_records(ablation)).rows
    declared = declared_tables(rows, {})
    (plot,) = calibration_plots(Leading(rows, declared))
    assert plot.name == "perplexity_by_calibration"
    assert plot.draw() == calibration_plots(Leading(rows, declared))[0].draw()
    one_size = [r for text in TEXTS for r in calibrated(made_up, text, 4, 0)]
    rows = read_rows(from_records(one_size)).rows
    assert calibration_plots(Leading(rows, declared_tables(rows, {}))) == []


def test_one_seed_has_no_band(made_up) -> None:
    records = [r for size in (4, 16) for r in calibrated(made_up, "c4", size, 0)]
    rows = read_rows(from_records(records)).rows
    (axes,) = calibration_figure(rows, panels_of(rows, KEY, "perplexity"), PLOT).axes
    assert not axes.collections
    assert axes.get_ylabel() == "perplexity"


def test_the_band_leaves_out_points_of_one_seed(made_up) -> None:
    """As where the results of another sweep are joined: one seed says nothing of their spread."""
    cells = [(4, 0), (4, 1), (16, 0), (16, 1), (64, 0)]
    records = [r for size, seed in cells for r in calibrated(made_up, "c4", size, seed)]
    rows = read_rows(from_records(records)).rows
    (axes,) = calibration_figure(rows, panels_of(rows, KEY, "perplexity"), PLOT).axes
    (band,) = axes.collections
    box = band.get_paths()[0].get_extents()
    assert (box.xmin, box.xmax) == (2048.0, 8192.0)


def test_plots_draw_a_line_for_every_calibration(made_up) -> None:
    records = made_up.cell("none", "w16", 5.0)
    for text in ("c4", "random"):
        records += calibrated(made_up, text, 16, 0)
    rows = read_rows(from_records(records)).rows
    assert [row.name for row in rows] == ["full prec.", "GPTQ c4", "GPTQ random"]
    assert [row.label for row in rows] == ["full prec.", "GPTQ", "GPTQ"]
    figure = bits_figure(rows, {KEY: "perplexity"}, PLOT)
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [list(line.get_ydata()) for line in lines] == [
        pytest.approx([value_of(text, 16, 0)]) for text in ("c4", "random")
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["GPTQ c4", "GPTQ random"]


def test_a_setting_without_a_value_reads_as_on_a_command_line(made_up) -> None:
    records = calibrated(made_up, "c4", 16, 0)
    records += calibrated(made_up, "c4", 16, 0, config={"calib.length": None})
    rows = read_rows(from_records(records)).rows
    assert sorted(row.label for row in rows) == ["GPTQ length=512", "GPTQ length=null"]


def test_tokens_are_written_short() -> None:
    assert [short(n) for n in (512, 2048, 131072, 1048576, 2.1e7)] == [
        "512",
        "2.0k",
        "131k",
        "1.0M",
        "21M",
    ]
