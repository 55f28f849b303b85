"""The answer of `bitsweep recommend` in words: a table of cells, sentences, and plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.recommend.choose import (
    GB,
    QUALITY,
    Candidate,
    Choice,
    Evidence,
    bytes_text,
)
from harness.recommend.limits import CRITERIA, Criterion, Limits, Measured
from harness.records.record import Record
from harness.report.command import command
from harness.report.differences import difference_text, numbers, p_text, rule
from harness.report.names import Footnotes
from harness.report.rows import Row
from harness.report.table import Cell, Column, Note, Table, significant

MOST_COMMANDS = 3


@dataclass(frozen=True)
class Answer:
    """A choice under limits, and how it is said. context: tokens that are served."""

    choice: Choice
    limits: Limits
    context: int
    prefer: str
    records: Sequence[Record]

    def table(self) -> Table:
        """A line a cell: what it takes, its worst figures with intervals, and the verdict."""
        found, kinds = self.choice.candidates, self._criteria()
        costs = [each for each in self._costs() if any(each[1](one) is not None for one in found)]
        columns = [
            Column("method", "method", numeric=False),
            Column("scheme", "scheme", numeric=False),
            Column("verdict", "verdict", numeric=False),
            *(column for column, *_ in costs),
            *(Column(each.short, *self._head(each)) for each in kinds),
        ]
        footnotes, cells = Footnotes(), []
        for index, each in enumerate(found):
            word, reasons = self.verdict(index)
            marks = tuple(footnotes.mark(text) for text in [*reasons, *each.remarks])
            cells.append(
                [
                    Cell(each.row.name),
                    Cell(each.row.scheme_label),
                    Cell(word, marks=marks, best=index == self.choice.recommended),
                    *(_number(value(each), form) for _, value, form in costs),
                    *(_figure(kind, each.figures[kind.name]) for kind in kinds),
                ]
            )
        model = found[0].row.model
        title = f"{model}: {self.question()}"
        return Table("recommend", model, title, columns, cells, self._notes(), footnotes.texts)

    def _costs(self) -> list[tuple[Column, Callable[[Candidate], float | None], str]]:
        """Columns of costs, with their values and how these are written."""
        return [
            (
                Column("bits_per_weight", "bits/", "weight"),
                lambda each: each.row.bits_per_weight,
                "{:.2f}",
            ),
            (
                Column("model_bits_per_weight", "of the", "model"),
                lambda each: None if each.serving is None else each.serving.bits_per_weight,
                "{:.2f}",
            ),
            (
                Column("serving", "serving", f"MB at {self.context}"),
                lambda each: None if each.memory is None else each.memory / 1e6,
                "{:.4g}",
            ),
            (Column("ms", "ms/", "token"), lambda each: each.time, "{:.3g}"),
        ]

    def _criteria(self) -> list[Criterion]:
        """Those that are asked, and the one that orders cells."""
        by = self.choice.ranked_by
        return [each for each in CRITERIA if each is by or each.limit(self.limits) is not None]

    def _head(self, kind: Criterion) -> tuple[str, str]:
        """The head of a criterion's column: its name, and of how many tasks it has the worst."""
        tasks = {one.task for each in self.choice.candidates for one in each.figures[kind.name]}
        return kind.short, f"worst of {len(tasks)}" if len(tasks) > 1 else "[95 %]"

    def _notes(self) -> list[Note]:
        servings = [each.serving for each in self.choice.candidates if each.serving is not None]
        said = [text for text in dict.fromkeys(each.said for each in servings) if text]
        reads = sorted({each.workspace_at for each in servings})
        if servings and not said:
            said = [
                "weights, KV cache of one sequence, and the workspace of reading a prompt in "
                f"pieces of {' or '.join(map(str, reads))} tokens"
            ]
        return [Note(f"Serving memory: {text}.") for text in said]

    def question(self) -> str:
        """The limits in words, and what is preferred."""
        said = []
        if self.limits.max_gb is not None:
            said.append(f"at most {self.limits.max_gb:g} GB at {self.context} tokens")
        for each in CRITERIA:
            limit = each.limit(self.limits)
            if limit is not None:
                least = "least" if each.lowest else "most"
                said.append(f"{each.name} at {least} {each.limit_text(limit)}")
        if self.prefer != QUALITY:
            said.append(f"{self.prefer} before quality")
        return "; ".join(said) or "no limits"

    def verdict(self, index: int) -> tuple[str, list[str]]:
        """What is said of a cell in one word or two, and why."""
        choice, each = self.choice, self.choice.candidates[index]
        if each.reasons:
            word, *_ = each.reasons[0].partition(":")
            return word, list(each.reasons)
        if each.lacking:
            return "not measured", [f"it lacks figures of {', '.join(each.lacking)}"]
        if index == choice.recommended:
            return "recommended", []
        if index == choice.best:
            return "best figures", []
        if choice.as_good(index):
            return "as good", []
        worst = _strongest(choice.evidence.get(index, []))
        if worst is None:
            return "not tested", []
        difference = difference_text(worst.result, worst.unit)
        text = f"{worst.key[1]} {worst.key[2]} {difference}, p {p_text(worst.result.adjusted)}"
        assert choice.best is not None
        return "worse", [f"worse than {choice.candidates[choice.best].name}: {text}"]

    def sentences(self) -> list[str]:
        """The answer, its evidence, and what would measure what is lacking."""
        choice, found = self.choice, self.choice.candidates
        said: list[str] = []
        if choice.recommended is not None:
            use = found[choice.recommended]
            said = [f"Recommended: {self._described(use)}."]
            said += [f"Not surely within the limits: {text}." for text in use.remarks]
            said += [self._evidence(), f"Made by: {repeating(self.records, use.row)}"]
        lacking = [each for each in found if each.lacking and not each.reasons]
        for each in lacking[:MOST_COMMANDS]:
            how = measuring(self.records, each.row, each.lacking)
            said.append(f"To measure {each.name}: {how}")
        if len(lacking) > MOST_COMMANDS:
            said.append(f"{len(lacking) - MOST_COMMANDS} more cells lack figures likewise.")
        return said

    def _described(self, each: Candidate) -> str:
        parts = [each.name]
        if each.memory is not None:
            parts.append(f"{bytes_text(each.memory)} at {self.context} tokens")
        for kind in self._criteria():
            found = each.figures[kind.name]
            worst = kind.worst(found)
            of = f"{worst.task}" + ", the worst" * (len(found) > 1)
            parts.append(f"{kind.name} {_text(kind, worst)} ({of})")
        if each.time is not None:
            parts.append(f"{1e3 / each.time:.4g} tokens/s")
        return ", ".join(parts)

    def _evidence(self) -> str:
        """Why the recommended cell is as good as the best, or what the best has more."""
        choice = self.choice
        assert choice.recommended is not None
        assert choice.best is not None
        use, best = choice.candidates[choice.recommended], choice.candidates[choice.best]
        by = choice.ranked_by.name
        found = choice.evidence.get(choice.recommended, [])
        listed = "; ".join(
            f"{each.key[1]} {each.key[2]} {difference_text(each.result, each.unit)}, "
            f"p {p_text(each.result.adjusted)}"
            for each in found
        )
        if use is best:
            first = f"Of what keeps to the limits it has the best {by}."
            return f"{first} {self._rivals()}".strip()
        if choice.as_good(choice.recommended):
            return (
                f"The evidence does not separate it from {best.name}, which has the best {by}, so "
                f"it is as good {_cheaper(use, best)}: {listed} ({rule(choice.tested)})."
            )
        against = f": {listed}" if listed else ", and no test compares the two"
        return f"{best.name} has the best {by} of what keeps to the limits{against}."

    def _rivals(self) -> str:
        """What is to be said of other cells where the best one is recommended."""
        choice = self.choice
        rivals = [
            choice.candidates[index].name for index in choice.evidence if choice.as_good(index)
        ]
        fitting = sum(each.fits for each in choice.candidates)
        if rivals:
            return f"The evidence does not separate it from {', '.join(rivals)}, which take more."
        if choice.tested:
            return "Tests show every other cell that keeps to them to be worse."
        if fitting < 2:
            return "No other cell keeps to them."
        return (
            "Whether a smaller one is as good was not tested: no two of these cells have values of "
            "the same single windows or documents in their records. Remove their records of "
            "perplexity and tasks and run them again, or use --prefer memory."
        )

    def nothing(self) -> str:
        """Why no cell is recommended, and what would change it."""
        found = self.choice.candidates
        text = "no cell is known to keep to these limits"
        lacking = [each.name for each in found if each.lacking and not each.reasons]
        if lacking:
            return f"{text}, but {', '.join(lacking)} may: run the commands above."
        sized = [(each.memory, each.name) for each in found if each.memory is not None]
        most = None if self.limits.max_gb is None else self.limits.max_gb * GB
        if sized and most is not None and min(sized)[0] > most:
            least, name = min(sized)
            raised = significant(1.01 * least / GB)
            return (
                f"{text}: the smallest, {name}, takes {bytes_text(least)} at {self.context} "
                f"tokens. Raise --max-gb to {raised}, shorten --context, or run fewer bits."
            )
        return f"{text}: loosen one of them, or run other methods and schemes."

    def entries(self) -> dict[str, Any]:
        """Everything for programs."""
        choice = self.choice
        recommended, best = (
            None if index is None else choice.candidates[index].name
            for index in (choice.recommended, choice.best)
        )
        return {
            "model": choice.candidates[0].row.model,
            "limits": asdict(self.limits) | {"context": self.context},
            "prefer": self.prefer,
            "ranked_by": choice.ranked_by.name,
            "recommended": recommended,
            "best": best,
            "comparisons": choice.tested,
            "cells": [self._entry(index) for index in range(len(choice.candidates))],
        }

    def _entry(self, index: int) -> dict[str, Any]:
        each = self.choice.candidates[index]
        word, reasons = self.verdict(index)
        return {
            "cell": each.name,
            "keys": list(each.row.cells),
            "verdict": word,
            "reasons": reasons,
            "remarks": list(each.remarks),
            "fits": each.fits,
            "not_measured": list(each.lacking),
            "bits_per_weight": each.row.bits_per_weight,
            "model_bits_per_weight": None if each.serving is None else each.serving.bits_per_weight,
            "serving_bytes": each.memory,
            "decode_ms": each.time,
            "figures": {
                name: [asdict(one) for one in those] for name, those in each.figures.items()
            },
            "against_best": [
                numbers(one.key, one.unit, one.result)
                for one in self.choice.evidence.get(index, [])
            ],
        }


def measuring(records: Sequence[Record], row: Row, suites: Sequence[str]) -> str:
    """The command that runs suites on the cell of a row, as they were run on other cells."""
    ran = {each.suite: each for each in records if each.suite in suites and each.status == "ok"}
    return command(_of_cell(records, row), {name: ran.get(name) for name in suites})


def repeating(records: Sequence[Record], row: Row) -> str:
    """The command that makes the cell of a row."""
    return command(_of_cell(records, row))


def _of_cell(records: Sequence[Record], row: Row) -> list[Record]:
    return [each for each in records if each.cell_key == row.cells[0]]


def _cheaper(use: Candidate, best: Candidate) -> str:
    """What the first takes instead of the second, where they differ."""
    bits = (use.row.bits_per_weight, best.row.bits_per_weight)
    pairs = []
    if use.memory is not None and best.memory is not None:
        pairs.append((bytes_text(use.memory), bytes_text(best.memory)))
    elif bits[0] is not None and bits[1] is not None:
        pairs.append((f"{bits[0]:.2f} bits a weight", f"{bits[1]:.2f}"))
    if use.time is not None and best.time is not None:
        pairs.append((f"{use.time:.3g} ms a token", f"{best.time:.3g}"))
    said = [f"{mine} instead of {other}" for mine, other in pairs if mine != other]
    return f"with {' and '.join(said)}" if said else "at the same cost"


def _strongest(found: Sequence[Evidence]) -> Evidence | None:
    """The significant comparison to its disadvantage with the smallest p."""
    worse = [each for each in found if each.worse and each.result.significant]
    return min(worse, key=lambda each: each.result.p or 0.0, default=None)


def _text(kind: Criterion, found: Measured) -> str:
    if found.low is None or found.high is None or found.low == found.high:
        return kind.text(found.value)
    return f"{kind.text(found.value)} [{kind.text(found.low)}, {kind.text(found.high)}]"


def _figure(kind: Criterion, found: Sequence[Measured]) -> Cell:
    return Cell(_text(kind, kind.worst(found))) if found else Cell()


def _number(value: float | None, form: str) -> Cell:
    return Cell() if value is None else Cell(form.format(value))
