"""The page of an audit: one HTML file with its style, its picture and its sorting inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

from harness.auditing.findings import Layer, claim_of, contradicting, ratio, verdicts
from harness.records.record import Record
from quant.audit.verdict import (
    AS_GOOD,
    NO_GRID,
    NOT_QUANTIZED,
    NOT_THIS_BASE,
    OTHER_DATA,
    ROUNDED,
    WORSE_THAN_ROUNDING,
    WORSE_THAN_SOLVER,
)

# A class of the page's style for each verdict: good, fair, poor, wrong, none.
STYLE = {
    AS_GOOD: "good",
    OTHER_DATA: "fair",
    WORSE_THAN_SOLVER: "fair",
    ROUNDED: "poor",
    WORSE_THAN_ROUNDING: "wrong",
    NOT_THIS_BASE: "wrong",
    NOT_QUANTIZED: "none",
    NO_GRID: "none",
}
WIDTH, HEIGHT, EDGE = 900, 260, 46


def page(record: Record, layers: Sequence[Layer]) -> str:
    """The HTML of an audit, self-contained; the same record gives the same bytes."""
    import jinja2

    text = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    said = claim_of(record)
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(text).render(
        model=record.cell.model,
        scheme=said.get("types", record.cell.scheme),
        claim=said,
        against=len(contradicting(layers, said["claim"])),
        verdicts=[(name, count, STYLE.get(name, "none")) for name, count in verdicts(layers)],
        layers=[_row(layer) for layer in layers],
        picture=_picture(layers),
        text=record.inputs.get("audit source", ""),
        base=record.config["suite"]["audit"]["base"] or record.cell.model,
        made=record.started_at,
        machine=record.environment["machine"]["cpu"],
        instructions=record.environment["computing"]["torch"],
        width=WIDTH,
        height=HEIGHT,
    )


def _row(layer: Layer) -> dict[str, Any]:
    def number(value: float | None, digits: int = 3) -> tuple[str, float]:
        return ("–", -1.0) if value is None else (f"{value:.{digits}g}", value)

    def percent(name: str) -> tuple[str, float]:
        value = layer.get(name)
        return ("–", -1.0) if value is None else (f"{100 * value:.1f}", value)

    return {
        "name": layer["name"],
        "scheme": layer["scheme"] or "–",
        "verdict": layer["verdict"],
        "style": STYLE.get(layer["verdict"], "none"),
        "why": layer["why"],
        "order": layer.get("order") or "–",
        "scaled": layer.get("scaled") or "–",
        "numbers": [
            number(None if layer.get("error") is None else 100 * layer["error"]),
            percent("gain"),
            number(ratio(layer, "rounding")),
            number(ratio(layer, "solver")),
            percent("rounded"),
            percent("agreement"),
            percent("followed"),
            percent("clipped"),
            number(layer.get("scale_spread")),
            number(layer.get("condition")),
            number(layer.get("rank"), 6),
        ],
    }


def _picture(layers: Sequence[Layer]) -> dict[str, Any] | None:
    """Dots of error over that of the solver, layer by layer, on a logarithmic axis."""
    found = [(at, layer, ratio(layer, "solver")) for at, layer in enumerate(layers)]
    known = [(at, layer, value) for at, layer, value in found if value]
    if not known:
        return None
    top = max(1.25, *(value for _, _, value in known))
    low = min(0.9, *(value for _, _, value in known))
    span = math.log(top / low)

    def height(value: float) -> float:
        return round(HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * math.log(value / low) / span, 1)

    step = (WIDTH - 2 * EDGE) / max(1, len(layers) - 1)
    ticks = [t for t in (0.5, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 30, 100, 1000) if low <= t <= top]
    return {
        "dots": [
            {
                "x": round(EDGE + at * step, 1),
                "y": height(value),
                "style": STYLE.get(layer["verdict"], "none"),
                "said": f"{layer['name']}: {value:.3g} times the solver's error",
            }
            for at, layer, value in known
        ],
        "ticks": [{"y": height(tick), "text": f"{tick:g}"} for tick in _apart(ticks, height)],
    }


def _apart(ticks: list[float], height: Any) -> list[float]:
    """Ticks whose labels do not touch; 1 always stays."""
    kept: list[float] = []
    for tick in sorted(ticks, key=lambda t: t != 1):
        if all(abs(height(tick) - height(other)) >= 16 for other in kept):
            kept.append(tick)
    return sorted(kept)
