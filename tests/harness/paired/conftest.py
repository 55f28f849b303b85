"""Results folders with records that never ran, whose windows and documents are made up."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from harness.records.items import DOCUMENTS, WINDOWS, make_items, values_of, weights_of
from harness.records.record import CellIdentity, Items, Metric, Record

LABELS = {"none": "full prec.", "rtn": "RTN", "gptq": "GPTQ"}
BITS = {"w16": 16, "w4": 4, "w3": 3}


def answers(lost: Sequence[int] = (), count: int = 100, ids: str = "documents") -> Items:
    """All right but the last tenth, and but those lost; of those lost above, gained instead."""
    right = [index < 9 * count // 10 for index in range(count)]
    for index in lost:
        right[index] = not right[index]
    return make_items(DOCUMENTS, ids, right)


def losses(shift: float, noise: float = 0.2, windows: int = 40, ids: str = "windows") -> Items:
    generator = np.random.default_rng(int(1e6 * shift))
    base = np.random.default_rng(0).normal(120.0, 20.0, windows)
    values = base + 50 * shift + generator.normal(0, noise, windows) * (shift > 0)
    return make_items(WINDOWS, ids, values.tolist(), [50] * windows, exponential=True)


def figure(name: str, task: str, items: Items | None, **changes: object) -> Metric:
    """The metric that items make; without them, of a value of its own."""
    value = 0.5
    if items is not None:
        value = float(values_of(items).sum() / weights_of(items).sum())
        value = float(np.exp(value)) if items.exponential else value
    ppl = name == "perplexity"
    fields = {
        "name": name,
        "task": task,
        "value": value,
        "unit": "ppl" if ppl else "fraction",
        "n": 2000 if ppl else 100 if items is None else items.count,
        "n_unit": "tokens" if ppl else "documents",
        "stderr": 0.01,
        "higher_is_better": not ppl,
        "notes": {"token_hash": items.ids} if ppl and items is not None else {},
        "items": items,
    }
    return Metric.model_validate(fields | changes)


def record(
    method: str,
    scheme: str,
    metrics: Sequence[Metric],
    suite: str = "perplexity",
    options: str | None = None,
    seed: int = 0,
    model: str = "m",
    calibration: str | None = None,
) -> Record:
    config = {
        "model": {"name": model, "dtype": "float32"},
        "method": {"name": method, "options": options},
        "scheme": {"bits": BITS[scheme], "group_size": None},
        "calib": {"name": calibration},
        "seed": seed,
        "suite": {suite: {"some": "settings"}},
    }
    cell_key = hashlib.sha256(repr(config).encode()).hexdigest()
    return Record(
        key=hashlib.sha256(f"{cell_key}{suite}".encode()).hexdigest(),
        cell_key=cell_key,
        suite=suite,
        status="ok",
        cell=CellIdentity(
            model=model, method=method, scheme=scheme, calibration=calibration, seed=seed,
            bits_per_weight=float(BITS[scheme]), label=LABELS[method], options=options,
        ),
        config=config,
        inputs={"model": f"fingerprint of {model}"},
        metrics=list(metrics),
        started_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )  # fmt: skip


def both(
    method: str, scheme: str, shift: float, lost: Sequence[int], **more: object
) -> list[Record]:
    """Records of perplexity and of a task."""
    perplexity = figure("perplexity", "embedded", losses(shift))
    accuracy = figure("accuracy", "embedded_choice", answers(lost))
    return [
        record(method, scheme, [perplexity], **more),  # type: ignore[arg-type]
        record(method, scheme, [accuracy], "zeroshot", **more),  # type: ignore[arg-type]
    ]


@pytest.fixture
def results(keep: Callable[..., Path]) -> Path:
    """Full precision, RTN at 4 and 3 bits (the last lost much), and GPTQ with act-order and not."""
    return keep(
        [
            *both("none", "w16", 0.0, ()),
            *both("rtn", "w4", 0.001, (3, 95)),
            *both("rtn", "w3", 0.3, range(20)),
            *both("gptq", "w4", 0.0005, (3,)),
            *both("gptq", "w4", 0.0004, (4,), options="act-order"),
        ]
    )
