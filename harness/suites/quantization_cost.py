"""The cost of a quantization: seconds and peak memory of its stages, size and error of the result.

Measures nothing itself. Converts the figures that quant.calibrate.stream took during the
quantization to metrics of the record "quantization".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.records.busyness import with_note
from harness.records.record import QUANTIZATION, Metric
from harness.report.columns import COST, FigureColumn, Place, SuiteTable
from harness.report.published import beside_published
from harness.report.rows import Figure
from harness.report.table import Cell, significant

if TYPE_CHECKING:
    from quant.calibrate.stream import LayerResult, QuantizationResult
    from quant.solvers.outside import Made

STAGE = QUANTIZATION
TOTAL = "total"


def _seconds(figure: Figure) -> Cell:
    return Cell(significant(figure.value), figure.value)


PUBLISHED = Place("published_runtime", "Quantization time of {model} beside published", 49)
# Bits per weight if an ideal coder of single codes stored the codes, and all else stayed as it is.
ENTROPY = FigureColumn(
    "entropy_bits",
    "entropy",
    "bits/weight",
    task="mean of weights",
    absent=lambda _row, _key: "",
    cost="entropy bits",
    optional=True,
    quantity="bits per weight with codes at their entropy",
)
# The quantization is not a suite, but has a table as suites do.
TABLE = SuiteTable(
    columns=(
        FigureColumn("seconds", "quant.", "s", _seconds, name="quantization_s", task=TOTAL),
        ENTROPY,
    ),
    joins=COST,
    rank=10,
    every_column=True,
    tables=(beside_published(PUBLISHED, STAGE, ("seconds",)),),
)


def metrics(
    result: QuantizationResult, artifact_bytes: int, other: dict[str, float], busy: str = ""
) -> list[Metric]:
    """The metrics of one quantization.

    artifact_bytes  size of the written checkpoint.
    other           seconds of stages outside quant.calibrate.stream (loading, calibration text).
    busy            what others took of the machine meanwhile (harness.records.busyness); a note of
                    all seconds.

    "seconds" of the stages add up to the total; for writing, they count the time that the run
    waited. "background_seconds" is the time of the writer thread and is not part of the total.
    """
    seconds = {**other, **{stage.name: stage.seconds for stage in result.stages}}
    found = [_once("seconds", name, value, "s") for name, value in seconds.items()]
    found.append(_once("seconds", TOTAL, sum(seconds.values()), "s"))
    found += [
        _once("background_seconds", stage.name, stage.background, "s")
        for stage in result.stages
        if stage.background
    ]
    found = with_note(found, busy)
    for stage in result.stages:
        if stage.peak_bytes is not None:
            peak = _once("peak_memory", stage.name, stage.peak_bytes, "bytes")
            found.append(peak.model_copy(update={"notes": {"memory": stage.memory}}))
    if result.host_peak_bytes is not None:
        peak = _once("peak_memory", "host", result.host_peak_bytes, "bytes")
        note = "resident set of the process, sampled, Python and libraries included"
        found.append(peak.model_copy(update={"notes": {"memory": note}}))
    found.append(_once("artifact_size", TOTAL, artifact_bytes, "bytes"))
    return [
        *found,
        *_self_check(result.layers),
        *_layer_means(result.layers, result.coverage.removed),
    ]


def of_program(
    made: Made, artifact_bytes: int, other: dict[str, float], busy: str = ""
) -> list[Metric]:
    """The metrics of a quantization by another program, which times itself.

    made   what is known of it: "seconds" of the total are its own, without its imports and loading.
    other  seconds of the stages around it, the whole run of the program among them.
    busy   what others took of the machine meanwhile, of which the program is none.
    """
    found = [_once("seconds", name, value, "s") for name, value in other.items()]
    found.append(_once("seconds", TOTAL, made.seconds, "s"))
    found = with_note(found, busy)
    if made.peak_bytes is not None:
        peak = _once("peak_memory", "host", made.peak_bytes, "bytes")
        note = "resident set of the program's process, Python and libraries included"
        found.append(peak.model_copy(update={"notes": {"memory": note}}))
    found.append(_once("artifact_size", TOTAL, artifact_bytes, "bytes"))
    return found


def bits_per_weight(result: QuantizationResult) -> float:
    """Stored bits per weight of the blocks' matrices, scales and zero-points included.

    Matrices that stay in full precision count with the bits of their type; quantized head and
    embeddings count too, once if they are one matrix.
    """
    bits = sum(layer.bits_per_weight * layer.outputs * layer.inputs for layer in result.layers)
    outside = [(each.outputs * each.inputs, each.bits_per_weight) for each in result.outside]
    return result.coverage.bits_per_weight(
        bits,
        sum(weights for weights, _ in outside),
        sum(each * weights for weights, each in outside),
    )


def _layer_means(layers: list[LayerResult], removed: int) -> list[Metric]:
    found = [_mean("weight_error", [layer.weight_error for layer in layers], "ratio")]
    losses = [layer.loss for layer in layers if layer.loss is not None]
    if losses:
        found.append(_mean("solver_loss", losses, "squared error"))
    return found + _entropy(layers, removed)


def _entropy(layers: list[LayerResult], removed: int) -> list[Metric]:
    """The mean over the weights of stored bits, less what the codes have above their entropy.

    removed  weights that pruning removed, which count with no bits.
    """
    bits, weights = 0.0, float(removed)
    for layer in layers:
        if layer.entropy is None or layer.code_bits is None:
            return []
        count = layer.outputs * layer.inputs
        bits += count * (layer.bits_per_weight - layer.code_bits + layer.entropy)
        weights += count
    return [
        Metric(
            name="entropy_bits",
            task="mean of weights",
            value=bits / weights,
            unit="bits",
            n=len(layers),
            n_unit="layers",
        )
    ]


def _self_check(layers: list[LayerResult]) -> list[Metric]:
    """The largest difference from the solver's oracle; a run that finds a larger one fails."""
    gaps = {each.name: each.oracle_gap for each in layers if each.oracle_gap is not None}
    if not gaps:
        return []
    metric = Metric(
        name="oracle_gap", task="pieces of layers", value=max(gaps.values(), key=abs),
        unit="ratio", n=len(gaps), n_unit="layers", notes={"layers": ", ".join(gaps)},
    )  # fmt: skip
    return [metric]


def _mean(name: str, values: list[float], unit: str) -> Metric:
    mean = sum(values) / len(values)
    return Metric(
        name=name, task="mean of layers", value=mean, unit=unit, n=len(values), n_unit="layers"
    )


def _once(name: str, task: str, value: float, unit: str) -> Metric:
    return Metric(name=name, task=task, value=value, unit=unit, n=1, n_unit="runs")
