"""Arguments of the verbs that read what runs left behind."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

RESULTS = Path("results")


def add_status(parser: ArgumentParser) -> None:
    parser.description = (
        "Show the sweeps of a results folder: cells done, what runs, since when and for how long\n"
        "still, what failed and why, and which processes were killed. Nothing is written."
    )
    add_results(parser)
    parser.add_argument("--all", action="store_true", help="show sweeps that ended, too")
    add_help(parser)


def add_report(parser: ArgumentParser) -> None:
    parser.description = (
        "Make tables, plots and the page again from records. Of several results folders it is one\n"
        "report of all their rows (docs/reports.md)."
    )
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        metavar="RESULTS",
        help="results folders of earlier runs (results)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="a folder for the report; RESULTS/reports/all is the usual one, and reports/joined in "
        "the first of several",
    )
    parser.add_argument("--title", default="Bitsweep report", help="a heading")
    parser.add_argument(
        "--interchange",
        action="store_true",
        help="write .eval_results of the Hugging Face Hub and records of Every Eval Ever too",
    )
    latex = parser.add_argument_group("tables in LaTeX")
    for option, what in (("caption", "a caption"), ("label", "a label")):
        latex.add_argument(
            f"--{option}",
            action="append",
            default=[],
            metavar="NAME=LATEX",
            help=f"{what} for tables/NAME.tex, in LaTeX; once for every table",
        )
    latex.add_argument(
        "--text-width",
        type=float,
        default=345.0,
        metavar="PT",
        help="a width in points, what \\the\\textwidth prints (345)",
    )
    latex.add_argument(
        "--wide",
        choices=("rotate", "split"),
        default="rotate",
        help="turn a table that is too wide, or split it by columns (rotate)",
    )
    add_config_dir(parser, "a folder of yours laid out like conf/, with suites that were run")
    add_help(parser)


def add_compare(parser: ArgumentParser) -> None:
    parser.description = (
        "Compare two rows on the same windows and documents: the difference B - A, its paired\n"
        "bootstrap interval, the exact McNemar test of accuracies (paired t otherwise), corrected\n"
        "by Holm's method, and the answers lost and gained (docs/reports.md).\n\n"
        "  bitsweep compare rtn/w4 gptq/w4                two rows; none/w16 is full precision\n"
        "  bitsweep compare old/results new/results       every row and its namesake\n"
        "  bitsweep compare old/results:gptq/w4 gptq/w4   a row of another folder"
    )
    row = "a row as METHOD/SCHEME, a results folder, or FOLDER:METHOD/SCHEME"
    parser.add_argument("first", metavar="A", help=row)
    parser.add_argument("second", metavar="B", help="the same")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="RESULTS",
        default=RESULTS,
        help="the results folder of rows that name none (results)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    add_help(parser)


def add_recommend(parser: ArgumentParser) -> None:
    parser.description = (
        "Choose among the cells of a model: which keep to the limits, which has the best figures,\n"
        "and which smaller or faster one no test shows to be worse (docs/reports.md). Nothing is\n"
        "run. Exit status 1: no cell is known to keep to the limits.\n\n"
        "  bitsweep recommend --max-gb 8 --context 8192 --max-kld 0.02\n"
        "  bitsweep recommend my/results --model opt-125m --max-ppl-ratio 1.05 --prefer memory"
    )
    add_results(parser)
    parser.add_argument(
        "--max-gb", type=float, metavar="GB", help="a limit of serving memory, in 10^9 bytes"
    )
    parser.add_argument(
        "--context", type=int, metavar="TOKENS", help="a length of the sequence that is served"
    )
    parser.add_argument(
        "--max-kld", type=float, metavar="NATS", help="a limit of the KL divergence, mean"
    )
    parser.add_argument(
        "--max-ppl-ratio",
        type=float,
        metavar="RATIO",
        help="a limit of perplexity over that of full precision, as 1.05",
    )
    parser.add_argument(
        "--min-accuracy",
        type=float,
        metavar="SHARE",
        help="a share of right answers that every task has to reach, as 0.6",
    )
    parser.add_argument("--model", metavar="MODEL", help="a model, where results have several")
    parser.add_argument(
        "--prefer",
        choices=("quality", "memory", "speed"),
        default="quality",
        help="an order of what keeps to the limits: quality (the smallest that is as good as the "
        "best), memory or speed",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_help(parser)


def add_sync(parser: ArgumentParser) -> None:
    parser.description = (
        "Log every cell of a results folder that no wandb run holds yet, grouped by experiment,\n"
        "and write the report page of each, without running anything (docs/reports.md)."
    )
    add_results(parser)
    parser.add_argument(
        "--online", action="store_true", help="send runs and pages at once (after `wandb login`)"
    )
    parser.add_argument(
        "--project",
        default="bitsweep",
        metavar="NAME",
        help="a project that runs are filed under (bitsweep)",
    )
    parser.add_argument("--entity", metavar="NAME", help="a user or team; that of the login")
    add_config_dir(parser, "a folder of yours laid out like conf/, with suites that were run")
    add_help(parser)


def add_paper(parser: ArgumentParser) -> None:
    parser.description = (
        "Show which tables of the GPTQ paper this results folder has, and for the others command,\n"
        "hardware, memory, disk and hours. docs/paper.md says how they are made."
    )
    add_results(parser)
    add_help(parser)


def add_push(parser: ArgumentParser) -> None:
    parser.description = (
        "Send a quantized model with its card to a hub, as one commit. Its figures on datasets of\n"
        "the hub go with it as .eval_results/bitsweep.yaml. Needs a token (`hf auth login`)."
    )
    parser.add_argument(
        "artifact", type=Path, metavar="ARTIFACT", help="a folder under results/artifacts, or any"
    )
    parser.add_argument(
        "repository", metavar="OWNER/NAME", help="a repository, which is made if there is none"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what the repository holds"
    )
    add_help(parser)


def add_results(parser: ArgumentParser) -> None:
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        metavar="RESULTS",
        default=RESULTS,
        help="the results folder of earlier runs (results)",
    )


def add_help(parser: ArgumentParser) -> None:
    parser.add_argument("-h", "--help", action="help", help="print this text")


def add_config_dir(parser: ArgumentParser, help: str) -> None:
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help=help)
