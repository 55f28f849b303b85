"""No figure is written under a name that did not make it."""

import dataclasses
from collections.abc import Callable

import pytest

from harness.config.schema import CellConfig
from harness.errors import StoreError
from harness.records.record import LayerReport
from harness.run.recording import StageResult, Timing, make_record
from harness.run.subject import Subject
from quant.calibrate.stream import LayerResult
from tests.harness.cells import cell_of

TIMING = Timing("2026-01-01T00:00:00+00:00", 1.0, 1)


def layer(method: str, scheme: str) -> LayerReport:
    return LayerReport(
        name="fc1", block=0, method=method, scheme=scheme, outputs=4, inputs=4,
        bits_per_weight=4.5, loss=None, weight_error=0.1, damping=None, dead_columns=0, tokens=0,
        seconds=0.0,
    )  # fmt: skip


def test_a_record_has_a_place_for_all_that_is_known_of_a_layer() -> None:
    known = {field.name for field in dataclasses.fields(LayerResult)}
    assert set(LayerReport.model_fields) == {*known, "sensitivities"}  # found before it is solved


@pytest.mark.parametrize(
    ("method", "scheme", "said"),
    [("gptq", "w4", "have method gptq"), ("rtn", "w3", "have scheme w3")],
)
def test_layers_of_another_method_or_scheme_are_refused(
    tiny_cell: Callable[..., CellConfig], method: str, scheme: str, said: str
) -> None:
    cell = cell_of(tiny_cell("method=rtn", "scheme=w4"))
    good = StageResult(layers=[layer("rtn", "w4")])
    assert make_record(cell, "quantization", good, TIMING).cell.method == "rtn"
    mixed = StageResult(layers=[layer("rtn", "w4"), layer(method, scheme)])
    with pytest.raises(StoreError, match=rf"{said}, but the cell has (rtn|w4): a record"):
        make_record(cell, "quantization", mixed, TIMING)


def test_the_head_has_a_method_and_a_scheme_of_its_own(
    tiny_cell: Callable[..., CellConfig],
) -> None:
    cell = cell_of(tiny_cell("method=gptq", "scheme=w4_head_w8"))
    head = layer("rtn", "w8").model_copy(update={"name": "lm_head"})
    record = make_record(
        cell, "quantization", StageResult(layers=[layer("gptq", "w4"), head]), TIMING
    )
    assert (record.cell.scheme, record.cell.head) == ("w4_head_w8", "w8, rounded to nearest")
    assert [each.scheme for each in record.layers] == ["w4", "w8"]
    other = head.model_copy(update={"scheme": "w4"})
    with pytest.raises(StoreError, match="have head w4, but the cell has w8"):
        make_record(cell, "quantization", StageResult(layers=[other]), TIMING)


def test_full_precision_is_not_measured_for_a_quantized_cell(
    tiny_cell: Callable[..., CellConfig],
) -> None:
    """Whatever went wrong before: a cell with a method and no packed weights has no model."""
    subject = Subject(cell_of(tiny_cell("method=rtn", "scheme=w4")))
    subject.packed = None
    with pytest.raises(StoreError, match="full-precision model must not be measured"):
        subject.model()
