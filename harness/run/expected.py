"""What a plan will cost: time from what the store knows, disk for artifacts, and what is shared.

Time is that of the same stage before, in records of this machine: of the same model where there are
some, else of another, scaled by its size with an assumed exponent, as a range. A quantization with
other transforms or grids than any record has is taken from those of its method, as a wide range.
What none is known of is said to be not known.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from harness.cell.cells import ResolvedCell
from harness.cell.plan import CellPlan, PendingPlan
from harness.models.model import StoredModel
from harness.records.environment import gpu, machine
from harness.records.record import FULL_PRECISION, QUANTIZATION
from harness.records.store import file_name
from harness.run.memory import artifact_bytes
from harness.run.screen import duration

MOST_READ = 40  # records of a model and stage, so that a plan stays quick
FEW = 3  # below, the extremes that were seen are no range
MARGIN = 1.25  # of few values
EXPONENTS = (0.9, 1.5)  # assumed: with which power of a model's size the time of a stage grows
RECIPES = (0.5, 3.0)  # assumed: times that other transforms and grids of a method take
MOST_NAMED = 4  # stages or cells of a line


@dataclass(frozen=True)
class Span:
    """Seconds, from and to."""

    low: float
    high: float

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.high + other.high)

    def __str__(self) -> str:
        low, high = duration(self.low), duration(self.high)
        return f"about {low}" if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Seen:
    """A stage that was run before.

    kind        what must be equal for its time to say anything of another: stage, settings, method.
    recipe      what must be equal, too, for its time to be that of another: transforms and grid.
    parameters  of its model; None if the record does not know.
    """

    kind: str
    recipe: str
    model: str
    parameters: float | None
    seconds: float


def expected_lines(
    plans: Sequence[CellPlan | PendingPlan], elsewhere: bool = False, workers: int = 1
) -> list[str]:
    """What the plan shares, and how much time and disk it takes, a fact a line.

    elsewhere  the cells run on machines that are not known: records of every machine with such a
               device count.
    workers    how many run cells at a time.
    """
    todo = _todo(plans)
    if not todo:
        return []
    return [
        *_shared_lines(plans),
        _time_line(todo, elsewhere, workers),
        *_disk_lines([plan for plan, stage in todo if stage == QUANTIZATION]),
    ]


def _todo(plans: Sequence[CellPlan | PendingPlan]) -> list[tuple[CellPlan | PendingPlan, str]]:
    """The stages to run, each once: cells may share one."""
    found: dict[str, tuple[CellPlan | PendingPlan, str]] = {}
    for number, plan in enumerate(plans):
        for stage in plan.todo:
            key = plan.cell.keys.stages[stage] if isinstance(plan, CellPlan) else None
            found.setdefault(key or f"{number} {stage}", (plan, stage))
    return list(found.values())


def _shared_lines(plans: Sequence[CellPlan | PendingPlan]) -> list[str]:
    """Artifacts and other stages that several cells need: made by one, waited for by the others."""
    keys: Counter[tuple[str, str]] = Counter()
    names: dict[tuple[str, str], str] = {}
    open_keys = {p.cell.keys.stages[s] for p in plans if isinstance(p, CellPlan) for s in p.todo}
    for plan in plans:
        if isinstance(plan, CellPlan):
            for stage in plan.stages:
                if plan.cell.keys.stages[stage] not in open_keys:
                    continue
                key = (stage, plan.cell.keys.stages[stage])
                keys[key] += 1
                cell = plan.identity
                names.setdefault(key, f"{cell.model} {cell.method} {cell.scheme}")
    shared = {key: count for key, count in keys.items() if count > 1}
    if not shared:
        return []
    said = [
        f"{'the artifact' if key[0] == QUANTIZATION else key[0]} of {names[key]} by {count} cells"
        for key, count in [*shared.items()][:MOST_NAMED]
    ]
    more = f", and {len(shared) - MOST_NAMED} more" * (len(shared) > MOST_NAMED)
    return [f"shared, so made once and waited for by the others: {', '.join(said)}{more}"]


def _time_line(
    todo: Sequence[tuple[CellPlan | PendingPlan, str]], elsewhere: bool, workers: int
) -> str:
    known = _Known(todo, elsewhere)
    total, unknown = Span(0.0, 0.0), Counter[str]()
    scaled = others = 0
    for plan, stage in todo:
        span, model, recipe = known.span(plan, stage)
        if span is None:
            unknown[stage] += 1
        else:
            scaled, others = scaled + (not model), others + (not recipe)
            total += span
    count = len(todo) - unknown.total()
    where = "machines with such a device" if elsewhere else "this machine"
    lacking = ", ".join(f"{n} {stage}" for stage, n in unknown.most_common())
    if not count:
        return f"time: not known, because no record of {where} has such stages ({lacking})"
    each = Span(total.low / workers, total.high / workers)
    said = f"time: {each} for {count} stage{'s' * (count > 1)}"
    said += f" by {workers} workers" if workers > 1 else ", one after the other"
    said += f", from {known.records} records of {where}"
    if scaled:
        low, high = EXPONENTS
        said += f" ({scaled} of other models, taken to grow with size^{low} to size^{high})"
    if others:
        low, high = RECIPES
        said += f" ({others} by other transforms or grids, taken to need {low:g} to {high:g} times)"
    return said + f"; not known for {lacking}" * bool(lacking)


class _Known:
    """What the records of the plans' results folders know of their stages."""

    def __init__(self, todo: Sequence[tuple[CellPlan | PendingPlan, str]], elsewhere: bool) -> None:
        self._seen: dict[str, list[Seen]] = {}
        self.records = 0
        self._elsewhere = elsewhere
        stages = {(plan.cell.choices.results, stage) for plan, stage in todo}
        models = {(plan.cell.choices.results, plan.identity.model, stage) for plan, stage in todo}
        paths: dict[Path, None] = {}
        for results, model, stage in sorted(models, key=str):
            name = escape(file_name(f"{model}-"))
            paths |= dict.fromkeys(_some(results.glob(f"cells/{name}*/{stage}-*.json")))
        for results, stage in sorted(stages, key=str):
            paths |= dict.fromkeys(_some(results.glob(f"cells/*/{stage}-*.json")))
        device = todo[0][0].cell.choices.runtime.device
        here = _plain([machine(), gpu(device)])
        for path in paths:
            self._read(path, device, here)

    def span(self, plan: CellPlan | PendingPlan, stage: str) -> tuple[Span | None, bool, bool]:
        """Seconds of a stage to run; whether they are of the same model, and of the same recipe.

        The model counts for more than the recipe: their times differ by more.
        """
        seen = self._seen.get(_kind(_asked(plan, stage)), [])
        # The recipe of a model that is not here is not resolved: any is taken for it.
        recipe = None
        if isinstance(plan, CellPlan):
            recipe = _recipe(stage, _plain(plan.cell.keys.semantic))
        alike = [each for each in seen if recipe in (None, each.recipe)]
        for model in (True, False):
            for some in (alike, seen):
                found = self._same_model(plan, some) if model else self._scaled(plan, some)
                if found is not None and some is alike:
                    return found, model, True
                if found is not None:
                    low, high = RECIPES
                    return Span(low * found.low, high * found.high), model, False
        return None, False, False

    def _same_model(self, plan: CellPlan | PendingPlan, seen: Sequence[Seen]) -> Span | None:
        """Seconds by stages of the same model."""
        same = [each.seconds for each in seen if each.model == plan.identity.model]
        if not same:
            return None
        margin = 1.0 if len(same) >= FEW else MARGIN
        return Span(min(same) / margin, max(same) * margin)

    def _scaled(self, plan: CellPlan | PendingPlan, seen: Sequence[Seen]) -> Span | None:
        """Seconds by stages of models whose size is known, for the size of this one."""
        size = plan.cell.model.config.parameters
        spans = [
            _scaled(each.seconds, size / each.parameters)
            for each in seen
            if size and each.parameters
        ]
        if not spans:
            return None
        return Span(min(each.low for each in spans), max(each.high for each in spans))

    def _read(self, path: Path, device: str, here: Any) -> None:
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            made = said["environment"]
            kind = "cuda" if made["gpu"] else "cpu"
            alike = kind == device.partition(":")[0]
            if not self._elsewhere:
                alike = [made["machine"], made["gpu"]] == here
            if said["status"] == "ok" and alike:
                config = said["config"]
                facts = {
                    "stage": said["suite"],
                    "method": said["cell"]["method"],
                    "settings": config["suite"][said["suite"]],
                    "calib": config["calib"],
                }
                found = Seen(
                    _kind(facts),
                    _recipe(said["suite"], config),
                    said["cell"]["model"],
                    config["parameters"],
                    said["seconds"],
                )
                self._seen.setdefault(found.kind, []).append(found)
                self.records += 1
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not a record of this version: the report says so


def _asked(plan: CellPlan | PendingPlan, stage: str) -> dict[str, Any]:
    """The facts of a stage to run as records have them."""
    choices, settings = plan.cell.choices, {}
    calib: Any = None
    if stage != QUANTIZATION:
        each = next(each for each in choices.suites if each.suite.name == stage)
        settings = each.suite.semantics(each.config)
    elif isinstance(plan, CellPlan):
        calib = plan.cell.keys.semantic["calib"]
    return {
        "stage": stage,
        "method": plan.identity.method,
        "settings": _plain(settings),
        "calib": _plain(calib),
    }


def _kind(facts: Mapping[str, Any]) -> str:
    """One text for all stages whose times compare: a suite's do not depend on calibration."""
    chosen = dict(facts)
    if chosen["calib"]:
        chosen["calib"] = {k: v for k, v in chosen["calib"].items() if k != "seed"}
    if chosen["stage"] != QUANTIZATION:
        chosen["calib"] = None
        chosen["method"] = chosen["method"] == FULL_PRECISION
    return json.dumps(chosen, sort_keys=True, default=str)


def _recipe(stage: str, config: Mapping[str, Any]) -> str:
    """What a quantization's time depends on beside its method: transforms, grid, arithmetic."""
    if stage != QUANTIZATION:
        return ""
    scheme = config.get("scheme", {})
    names = [each["name"] for each in config.get("transform") or ()]
    arithmetic = config.get("method", {}).get("arithmetic")
    return json.dumps([names, scheme.get("grid"), scheme.get("auto"), arithmetic], sort_keys=True)


def _scaled(seconds: float, ratio: float) -> Span:
    """Seconds for a model that is `ratio` times as large."""
    both = [seconds * ratio**power for power in EXPONENTS]
    return Span(min(both), max(both))


def _disk_lines(plans: Sequence[CellPlan | PendingPlan]) -> list[str]:
    """Bytes of the artifacts to be made, beside what is free."""
    total = count = 0
    for plan in plans:
        cell = plan.cell
        if (
            not isinstance(cell, ResolvedCell)
            or not isinstance(cell.model, StoredModel)
            or cell.choices.scheme is None
        ):
            continue
        total += artifact_bytes(cell)
        count += 1
    if not count:
        return []
    from quant.memory.plan import size

    results = plans[0].cell.choices.results
    place = next(path for path in (results, *results.parents) if path.exists())
    free = shutil.disk_usage(place).free
    said = f"disk: about {size(total)} for {count} artifact{'s' * (count > 1)}, {size(free)} free"
    if total > free:
        said += ": too little; make room, or choose another disk with paths.results=FOLDER"
    return [said]


def _some(paths: Iterable[Path]) -> Iterator[Path]:
    """Some of many, spread over all of them."""
    every = sorted(paths)
    yield from every[:: max(1, -(-len(every) // MOST_READ))]


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value, default=str))
