"""Tables of experiments of methods: whom each row is compared with."""

import math
from pathlib import Path
from typing import Any

from harness.records.items import WINDOWS, make_items
from harness.records.record import Record
from harness.report.tables import to_markdown
from tests.harness.report.conftest import make_record, perplexity
from tools import reference
from tools.protocol_tables import ACTIVATIONS, ALLOCATION, EQUAL_BYTES, Protocol, protocol_table
from tools.readme import protocol_part

ROUNDED = {"name": "round_inputs", "version": 1, "bits": 8}


def made(method: str, scheme: str, bits: float, mean: float, **config: Any) -> Record:
    """A record of four windows with a mean loss, and a part of its configuration."""
    losses = [mean - 0.1, mean + 0.1, mean - 0.05, mean + 0.05]
    items = make_items(WINDOWS, "same", [50 * each for each in losses], [50] * 4, exponential=True)
    metric = perplexity(math.exp(mean), task="wikitext2", items=items)
    options = config.pop("options", "fast arithmetic")
    record = make_record(method, scheme, metrics=[metric], options=options)
    cell = record.cell.model_copy(update={"bits_per_weight": bits})
    key = f"{method} {scheme} {config}"
    return record.model_copy(
        update={"cell": cell, "cell_key": key, "key": key, "config": record.config | config}
    )


def lines(protocol: Protocol, records: list[Record]) -> dict[tuple[str, str], str]:
    """The last column by method and scheme, in the order of the table."""
    found = {}
    for line in to_markdown(protocol_table(protocol, records)).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] not in ("method", ":---"):
            found[cells[0], cells[1]] = cells[-1]
    return found


def test_rounded_inputs_are_compared_with_the_same_weights_alone() -> None:
    records = [
        made("none", "w16", 16, 3.0, options=None),
        made("gptq", "w4g128", 4.16, 3.2),
        made("rtn", "w4g128", 4.16, 3.3),
        made("gptq", "w4g128-a8", 4.16, 3.25, transform=[ROUNDED],
             options="fast arithmetic, simulated activations"),
    ]  # fmt: skip
    for record in records:  # the grid of inputs is no part of that of the weights
        record.config["scheme"] = {"bits": 4, "group_size": 128, "symmetric": False}
    found = lines(ACTIVATIONS, records)
    assert found["GPTQ", "w4g128-a8"].startswith("+0.050 [")
    assert found["GPTQ", "w4g128-a8"].endswith("], loses")
    assert found["GPTQ", "w4g128"] == found["RTN", "w4g128"] == "–"
    assert next(iter(found)) == ("full prec.", "float32")


def test_methods_without_codes_are_compared_with_gptq_of_as_many_bytes() -> None:
    records = [
        made("gptq", "w8", 8.38, 3.0),
        made("gptq", "w4g128", 4.31, 3.2),
        made("svd", "budget4.3125", 4.28, 6.0, options=None),
        made("svd", "budget8.375", 8.36, 5.0, options=None),
        made("svd", "budget6", 6.0, 5.5, options=None),
    ]
    found = lines(EQUAL_BYTES, records)
    assert found["svd", "budget4.3125"].startswith("+2.800 [")
    assert found["svd", "budget8.375"].startswith("+2.000 [")
    assert found["svd", "budget6"] == "–", "none of its bytes was measured"
    assert [scheme for _, scheme in found] == [
        "w8", "budget8.375", "budget6", "w4g128", "budget4.3125",
    ]  # fmt: skip


def test_choices_of_bits_are_compared_with_one_scheme() -> None:
    chosen = made("gptq", "auto3.29688", 3.29, 3.1)
    several = chosen.cell.model_copy(update={"mixture": "3 w2g64, 4 w4g64"})
    records = [made("gptq", "w3", 3.3, 3.4), chosen.model_copy(update={"cell": several})]
    found = lines(ALLOCATION, records)
    assert found["GPTQ", "auto3.29688"].startswith("-0.300 [")
    assert found["GPTQ", "w3"] == "–"


def test_figures_are_kept_without_the_layers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tools.kept.REPOSITORY", tmp_path)
    monkeypatch.setattr(reference, "REPOSITORY", tmp_path)
    record = made("gptq", "w4g128", 4.16, 3.2)
    folder = tmp_path / "run/cells/cell"
    folder.mkdir(parents=True)
    for suite in ("perplexity", "quantization"):
        other = record.model_copy(update={"suite": suite})
        (folder / f"{suite}-0.json").write_text(other.model_dump_json())
    store, experiment = reference.KEPT["equal_bytes"]
    assert experiment == "methods/equal_bytes"
    assert store(tmp_path / "run") == []
    kept = tmp_path / "results/reference/methods-equal-bytes/cells/cell"
    assert [file.name for file in kept.iterdir()] == ["perplexity-0.json"]


def test_without_records_the_page_says_so(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tools.kept.REPOSITORY", tmp_path)
    assert protocol_part(ALLOCATION) == "To run: `bitsweep run experiment=methods/allocation`."
