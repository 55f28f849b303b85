"""Records as a frame: nothing lost, nothing depends on the order of the records."""

import random

from harness.report.frame import COLUMNS, from_records


def test_one_row_a_metric_and_one_a_failure(sweep) -> None:
    frame = from_records(sweep)
    figures = frame[frame.metric.notna()]
    assert list(frame.columns) == list(COLUMNS)
    assert len(figures) == sum(len(record.metrics) for record in sweep)
    failed = frame[frame.status == "failed"]
    assert sorted(failed.suite) == ["quantization", "zeroshot"]
    assert failed.error.str.contains("SingularHessianError: model.decoder.layers.3.fc2").any()
    assert failed.value.isna().all()


def test_values_are_those_of_the_records(sweep) -> None:
    frame = from_records(sweep)
    row = frame[(frame.method == "gptq") & (frame.scheme == "w3") & (frame.metric == "perplexity")]
    assert row[["value", "bits", "bits_per_weight", "n"]].iloc[0].tolist() == [5.93, 3, 3.07, 20480]
    assert row.calibration.item() == "embedded"
    decode = frame[(frame.metric == "decode_ms") & (frame.method == "none")]
    assert decode[["p10", "p90"]].iloc[0].tolist() == [3.1 * 0.96, 3.1 * 1.2]
    assert decode.bits_per_weight.item() == 32  # full precision: of the type of its weights


def test_order_of_the_records_does_not_matter(sweep) -> None:
    shuffled = list(sweep)
    random.Random(1).shuffle(shuffled)
    assert from_records(shuffled).equals(from_records(sweep))


def test_no_records_make_an_empty_frame() -> None:
    frame = from_records([])
    assert list(frame.columns) == list(COLUMNS)
    assert frame.empty


def test_names_are_those_that_the_cell_bears(made_up) -> None:
    record = made_up.record("gptq", metrics=[made_up.perplexity(5.0)], options="act-order")
    frame = from_records([record.model_copy(update={"config": {}})])
    assert frame[["method", "label", "options"]].iloc[0].tolist() == ["gptq", "GPTQ", "act-order"]


def test_fallbacks_of_layers_are_kept(sweep) -> None:
    record = next(r for r in sweep if r.suite == "quantization" and r.layers)
    layer = record.layers[0].model_copy(update={"fallback": "RTN, singular Hessian"})
    frame = from_records([record.model_copy(update={"layers": [layer, *record.layers[1:]]})])
    assert frame.fallbacks.tolist() == ["model.decoder.layers.0.fc1: RTN, singular Hessian"]


def test_layers_that_a_transform_left_are_counted_with_the_reason(sweep) -> None:
    record = next(r for r in sweep if r.suite == "quantization" and r.layers)
    layer = record.layers[0]
    whole, deaf = "equalize into norm", "equalize not applied: act, which makes it, has no weights"
    said = [[whole, "turn into norm"]] * 5 + [[deaf, "turn into norm"]] * 2 + [[]]
    said += [["equalize not applied: it finds nothing to change", "turn into norm"]]
    layers = [layer.model_copy(update={"transforms": notes}) for notes in said]
    frame = from_records([record.model_copy(update={"layers": layers})])
    assert set(frame.transforms) == {
        "equalize: applied to 5 of 8 layers; not to 2, because act, which makes it, has no "
        "weights; not to 1, because it finds nothing to change"
    }
    assert set(from_records(sweep).transforms) == {""}
