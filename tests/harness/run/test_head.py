"""A quantized head from the command line to the table."""

from pathlib import Path

import pytest
from safetensors import safe_open

from harness import cli
from harness.records.record import Record
from harness.records.store import load_records

WIDTH = 32


def by_scheme(results: Path, suite: str) -> dict[str, Record]:
    found = [record for record in load_records(results) if record.suite == suite]
    return {record.cell.scheme: record for record in found}


def test_a_sweep_with_a_head_reaches_the_table(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, headed = "w4", "w4_head_w8g32"
    overrides = [*tiny_overrides, "method=gptq", f"scheme={plain},{headed}"]
    assert cli.main(["run", "-m", *overrides]) == cli.OK
    shown = capsys.readouterr().out
    assert f"{headed}¹" in shown
    assert "¹ head: w8g32, rounded to nearest; counted in bits/weight" in shown
    made = by_scheme(tmp_path / "results", "quantization")
    assert "head" not in made[plain].config["scheme"]
    assert made[plain].cell.head is None
    said = made[headed].config["scheme"]["head"]
    assert (said["bits"], said["method"]) == (8, "rtn")
    *layers, head = made[headed].layers
    assert (head.name, head.method, head.block, head.scheme) == ("lm_head", "rtn", 2, "w8g32")
    assert [each.name for each in layers] == [each.name for each in made[plain].layers]
    outputs = head.outputs
    weights = sum(each.outputs * each.inputs for each in layers)
    bits = made[plain].cell.bits_per_weight * weights + (8 + 24 / WIDTH) * outputs * WIDTH
    assert made[headed].cell.bits_per_weight == pytest.approx(bits / (weights + outputs * WIDTH))
    assert made[headed].cell.coverage == made[plain].cell.coverage
    # A tied embedding stays, and the packed head is read besides what is read without it.
    timed = by_scheme(tmp_path / "results", "latency")
    figures = {
        scheme: {metric.name: metric for metric in record.metrics}
        for scheme, record in timed.items()
    }
    # Kernels read rows in tiles of eight and units of 64 bytes; 3 bytes are scale and zero-point.
    stored = -(-outputs // 8) * 8 * (64 + 3)
    more = figures[headed]["weight_bytes"].value - figures[plain]["weight_bytes"].value
    assert more == stored
    read = {name: int(each["bytes_per_token"].notes["weights"]) for name, each in figures.items()}
    assert read[headed] == read[plain] - outputs * WIDTH * 4 + stored
    assert (
        figures[headed]["baseline_weight_bytes"].value
        == figures[plain]["baseline_weight_bytes"].value
    )
    artifacts = {path.name: path for path in (tmp_path / "results" / "artifacts").iterdir()}
    (folder,) = (path for name, path in artifacts.items() if headed in name)
    names = [
        name
        for file in folder.glob("*.safetensors")
        for name in safe_open(file, "pt").keys()  # noqa: SIM118
    ]
    assert {name for name in names if name.startswith("lm_head.")} == {
        f"lm_head.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")
    }
    assert cli.main(["inspect", str(folder)]) == cli.OK
    assert "w4_head_w8g32" in capsys.readouterr().out
    # As a model from elsewhere: its name and its figures are those of the files.
    loaded = [each for each in tiny_overrides if not each.startswith(("model.", "method"))]
    loaded += [f"model.path={folder}", "model.name=loaded", "method=none", "scheme=w16"]
    loaded += ["suite=[perplexity_documents]"]
    for stream in ("never", "always"):
        place = [f"runtime.stream={stream}", f"paths.results={tmp_path / stream}"]
        timing = tuple(each for each in loaded if not each.startswith("suite.latency"))
        assert cli.main(["run", *timing, *place]) == cli.OK
        (record,) = load_records(tmp_path / stream)
        assert (record.cell.scheme, record.cell.head) == (headed, "w8g32, as stored")
        assert record.cell.bits_per_weight == pytest.approx(made[headed].cell.bits_per_weight)


def test_embeddings_that_serve_the_head_reach_the_table_and_are_counted_once(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scheme = "w4_head_w8g32_emb_w8g32"
    overrides = [*tiny_overrides, "method=rtn"]
    assert cli.main(["run", *overrides, f"scheme={scheme}"]) == cli.OK
    shown = capsys.readouterr().out
    said = "w8g32, rounded to nearest"
    assert f"¹ head: {said}; embeddings: {said}; counted in bits/weight" in shown
    made = by_scheme(tmp_path / "results", "quantization")[scheme]
    assert (made.cell.head, made.cell.embeddings) == (said, said)
    assert made.config["scheme"]["embeddings"] == made.config["scheme"]["head"]
    *layers, table = made.layers
    assert (table.name.rpartition(".")[2], table.method, table.scheme) == (
        "embed_tokens", "rtn", "w8g32",
    )  # fmt: skip
    assert all("layers." in each.name for each in layers)
    counted = [(each.outputs * each.inputs, each.bits_per_weight) for each in made.layers]
    bits = sum(count * each for count, each in counted) / sum(count for count, _ in counted)
    assert made.cell.bits_per_weight == pytest.approx(bits)
    timed = by_scheme(tmp_path / "results", "latency")[scheme]
    figures = {metric.name: metric for metric in timed.metrics}
    assert (
        figures["embedding_bytes"]
        .notes["counted"]
        .endswith("the output and the token embeddings quantized, in weight_bytes")
    )
    (folder,) = (tmp_path / "results" / "artifacts").iterdir()
    loaded = [each for each in tiny_overrides if not each.startswith(("model.", "suite.latency"))]
    loaded += [f"model.path={folder}", "model.name=loaded", "method=none", "scheme=w16"]
    for stream in ("never", "always"):
        place = [f"runtime.stream={stream}", f"paths.results={tmp_path / stream}"]
        assert cli.main(["run", *loaded, "suite=[perplexity_documents]", *place]) == cli.OK
        (record,) = load_records(tmp_path / stream)
        assert (record.cell.scheme, record.cell.embeddings) == (scheme, "w8g32, as stored")
        assert record.cell.bits_per_weight == pytest.approx(made.cell.bits_per_weight)
    capsys.readouterr()
    assert cli.main(["plan", *overrides, "scheme=w4_emb_w8g32"]) == cli.IMPOSSIBLE
    assert "as in scheme=w4g64_head_w8g32_emb_w8g32, and one packed" in capsys.readouterr().err
