"""Tables in LaTeX: what they say, how they fit a page, and that a real TeX sets them."""

import re
import shutil
import subprocess

import pytest

from harness import cli
from harness.report import build_report, from_records, summary_tables
from harness.report.latex import Style, to_latex
from harness.report.table import Cell, Column, Note, Table

SPECIAL = (
    '‖W − Q‖ |x| ± × → ↑ ↓ ≤ ≥ ≈ µ α Δ σ ² ᵀ é Łódź naïve ß … “q” "q" `c` --out'
    " _ % # & $ ~ ^ { } \\"
)
NAMES = [Column("method", "method", numeric=False), Column("scheme", "scheme", numeric=False)]


def table_of(columns: int, rows: int, notes=(), name="wide", title="A title") -> Table:
    heads = [*NAMES, *(Column(f"c{i}", f"task_{i}", "acc. % ↑") for i in range(columns))]
    body = [
        [Cell("GPTQ"), Cell("w4g128"), *(Cell("61.25 ± 0.32", best=i == 0) for i in range(columns))]
        for _ in range(rows)
    ]
    return Table(name, "m", title, heads, body, [Note(text) for text in notes], ["A cause & more."])


def environments(text: str) -> list[str]:
    return re.findall(r"\\begin\{(table|sidewaystable)\}", text)


def heads(text: str) -> list[str]:
    return re.findall(r"task\\_\d+", text)


def test_a_table_that_fits_is_one_float() -> None:
    text = to_latex(table_of(2, 5))
    assert text.startswith("% needs \\usepackage{booktabs}\n\\begin{table}\n")
    assert environments(text) == ["table"]
    assert "footnotesize\\setlength" not in text


def test_a_wide_one_is_set_smaller_then_turned_then_split() -> None:
    smaller = to_latex(table_of(4, 5))
    assert environments(smaller) == ["table"]
    assert "\\footnotesize\\setlength{\\tabcolsep}{4pt}" in smaller
    turned = to_latex(table_of(6, 5))
    assert environments(turned) == ["sidewaystable"]
    assert turned.startswith("% needs \\usepackage{booktabs,rotating}\n")
    for text in (to_latex(table_of(12, 5)), to_latex(table_of(6, 5), Style(wide="split"))):
        assert set(environments(text)) == {"table"}
        assert text.count("\\begin{tabular}") > 1
        assert text.count("method & scheme") == text.count("\\begin{tabular}")
    assert heads(to_latex(table_of(12, 5))) == [f"task\\_{i}" for i in range(12)]


def test_a_long_one_goes_on_over_pages_and_loses_no_row() -> None:
    text = to_latex(table_of(2, 150))
    assert text.count("GPTQ") == 150
    pages = text.count("\\begin{table}")
    assert 4 <= pages <= 5
    assert text.count("(continued)}") == text.count("\\addtocounter{table}{-1}") == pages - 1
    assert text.count("\\label{") == 1
    assert text.count("A cause \\& more.") == 1


def test_a_long_name_is_wrapped() -> None:
    table = table_of(1, 1)
    table.rows[0][0] = Cell("GPTQ act-order, static groups, true-sequential, fast arithmetic")
    text = to_latex(table)
    assert "p{110pt}lr}" in text
    assert text.startswith("% needs \\usepackage{array,booktabs}")


def test_a_row_that_begins_with_a_bracket_is_no_option() -> None:
    table = table_of(1, 1)
    table.rows[0][0] = Cell("[2] *")
    assert "    {}[2] * & w4g128" in to_latex(table)


def test_letters_are_those_of_latex() -> None:
    text = to_latex(table_of(1, 1, [SPECIAL]))
    assert text.isascii()
    assert r"$\Vert$W $-$ Q$\Vert$ \textbar{}x\textbar{} $\pm$ $\times$ $\rightarrow$" in text
    assert r"$^{2}$ $^{T}$ {\'e} \L{}{\'o}d{\'z} na{\" \i}ve" in text.replace('\\"\\i', '\\" \\i')
    assert r"``q'' ``q'' \textasciigrave{}c\textasciigrave{} -{}-out \_ \% \# \& \$" in text


def test_letters_that_pdflatex_lacks_are_kept_for_others() -> None:
    text = to_latex(table_of(1, 1, ["漢"]))
    assert "% has letters that need lualatex or xelatex" in text
    assert r"\ifdefined\Umathchar 漢\else{[U+6F22]}\fi{}" in text


def test_labels_of_several_models_differ(made_up, tmp_path) -> None:
    own = [made_up.cell("rtn", "w4", 5.5)[0], made_up.cell("rtn", "w4", 6.5, model="a/b")[0]]
    build_report(own, tmp_path)
    labels = [re.findall(r"\\label\{(.*?)\}", f.read_text()) for f in tmp_path.rglob("*.tex")]
    assert sorted(labels) == [["tab:accuracy-a_b"], ["tab:accuracy-embedded"]]


@pytest.fixture
def results(tmp_path, sweep):
    for number, record in enumerate(sweep):
        folder = tmp_path / "results" / "cells" / record.cell_key[:12]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{record.suite}-{number}.json").write_text(record.model_dump_json())
    return tmp_path / "results"


def test_captions_and_labels_are_set_from_the_command_line(results, capsys) -> None:
    words = ["--caption", "accuracy=OPT, after \\citet{frantar}", "--label", "accuracy=tab:opt"]
    words += ["--wide", "split", "--text-width", "250"]
    assert cli.main(["report", str(results), *words]) == cli.OK
    text = (results / "reports/all/tables/accuracy.tex").read_text()
    assert "\\caption{OPT, after \\citet{frantar}}\n  \\label{tab:opt}" in text
    assert "sidewaystable" not in (results / "reports/all/tables/cost.tex").read_text()
    assert "\\label{tab:cost}" in (results / "reports/all/tables/cost.tex").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--caption", "acuracy=x"],
            "the report has no table acuracy; it has accuracy, cost, pareto.",
        ),
        (["--label", "accuracy"], "--label accuracy is not NAME=TEXT"),
        (["--text-width", "12"], "--text-width 12: give 200 to 550 points"),
        (["--text-width", "wide"], "invalid float value: 'wide'"),
        (["--wide", "fold"], "invalid choice: 'fold'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(results, words, said, capsys) -> None:
    assert cli.main(["report", str(results), *words]) == cli.IMPOSSIBLE
    assert said in capsys.readouterr().err
    assert not (results / "reports").exists()


@pytest.mark.skipif(
    shutil.which("pdflatex") is None,
    reason="no pdflatex: apt install texlive-latex-base texlive-latex-recommended",
)
def test_a_real_tex_sets_every_table_within_its_page(sweep, tmp_path) -> None:
    tables = [*summary_tables(from_records(sweep))]
    tables += [table_of(n, 5, [SPECIAL, "漢"], f"w{n}", f"Title {SPECIAL}") for n in (2, 4, 6, 12)]
    tables += [table_of(5, 60, ["long " * 400], "long"), table_of(2, 150, name="longer")]
    tables[-1].rows[0][0] = Cell(f"[1] {SPECIAL}")
    files = [to_latex(table) for table in tables]
    files += [to_latex(tables[-2], Style(wide="split", caption="100\\,\\%", label="tab:own"))]
    begin = "\\documentclass{article}\n\\usepackage{array,booktabs,rotating}\n\\begin{document}\n"
    body = "\n\\clearpage\n".join(files)
    (tmp_path / "all.tex").write_text(f"{begin}\\listoftables\n{body}\n\\end{{document}}\n")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    for _ in range(2):  # the second reads the titles that the first wrote
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-3000:]
    (log,) = tmp_path.glob("*.log")
    said = log.read_text(errors="replace").replace("\n", " ")
    listed = said.partition(".lot)")[2]
    assert not re.findall(r"Overfull \\hbox \((?:[5-9]|\d\d+)\.\d+pt", listed)
    assert "Float too large" not in said
    assert "Missing character" not in said
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
