"""Cells over several devices, from configuration to record."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.cell.cells import ResolvedCell
from harness.cell.devices import Devices
from harness.config.compose import compose_cells
from harness.config.schema import CellConfig
from harness.records.record import Record
from harness.run.events import Event, Failed
from harness.run.stage import run_cell
from tests.harness.cells import cell_of
from tests.quant.spread.several import names, several

Make = Callable[..., CellConfig]
SAID = "privateuseone:0: embeddings, head, block 0; privateuseone:1: block 1"
LOOP = "the harness's own, no serving engine"


def over_two(cell: ResolvedCell, results: Path) -> ResolvedCell:
    """The cell on two devices of a kind that runtime.device cannot name, with results elsewhere."""
    choices = replace(cell.choices, results=results)
    return replace(cell, choices=choices, devices=Devices(names(2), 2, 2))


def without_latency(cell: ResolvedCell) -> ResolvedCell:
    """Its baseline would be read by threads of transformers, which know of no such devices."""
    stages = {name: key for name, key in cell.keys.stages.items() if name != "latency"}
    choices = replace(cell.choices, suites=cell.choices.suites[:1])
    return replace(cell, choices=choices, keys=replace(cell.keys, stages=stages))


def run(cell: ResolvedCell) -> None:
    events: list[Event] = []
    run_cell(cell, events.append)
    assert [each.message for each in events if isinstance(each, Failed)] == []


def found(cell: ResolvedCell, stage: str) -> Record:
    record = cell.find(stage)
    assert record is not None
    return record


def test_an_artifact_has_the_perplexity_of_one_device(tiny_cell: Make, tmp_path: Path) -> None:
    one = without_latency(cell_of(tiny_cell("scheme=w4", "runtime.kernel=reference")))
    run(one)
    two = over_two(one, tmp_path / "two")
    with several(), torch.inference_mode():
        run(two)
    alone, spread = found(one, "perplexity"), found(two, "perplexity")
    assert (spread.key, spread.metrics) == (alone.key, alone.metrics)
    assert spread.environment["devices"] == SAID
    assert spread.environment["loop"] == LOOP
    assert "devices" not in alone.environment
    assert "devices" not in alone.config["runtime"]


def test_random_weights_are_timed_over_two_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    file = tmp_path / "tiny.json"
    shape = {"hidden_size": 64, "ffn_dim": 96, "word_embed_proj_dim": 64, "vocab_size": 96}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    file.write_text(json.dumps({"model_type": "opt", **shape, **heads}))
    (composed,) = compose_cells(
        [
            "model=dummy", f"model.architecture={file}", "model.name=tiny", "model.dtype=float32",
            "method=random", "scheme=w4", "suite=[latency,throughput]", "tracker=none",
            "suite.latency.prompt_tokens=4", "suite.latency.decode_tokens=2",
            "suite.latency.warmup=0", "suite.latency.repeats=1", "suite.throughput.batches=[2]",
            "suite.throughput.requests=[2]", "suite.throughput.prompt_tokens=4",
            "suite.throughput.decode_tokens=2", "suite.throughput.repeats=1",
            "suite.throughput.rounds=1", "runtime.kernel=reference",
            f"paths.results={tmp_path}/one",
        ]
    )  # fmt: skip
    cell = over_two(cell_of(composed.config), tmp_path / "two")
    with several(), torch.inference_mode():
        run(cell)
    latency, throughput = found(cell, "latency"), found(cell, "throughput")
    assert latency.environment["devices"] == throughput.environment["devices"] == SAID
    figures = {each.name: each for each in latency.metrics}
    assert figures["decode_ms"].notes["devices"] == "2"
    assert "over 2 devices" in figures["decode_ms"].notes["decode mode"]
    assert figures["decode_speedup"].notes["baseline devices"] == "2"
    assert {each.notes["devices"] for each in throughput.metrics} == {"2"}
    assert waited == [*names(2)] * (len(waited) // 2), "every clock waits for both"
    assert len(waited) > 2 * 2 * 3  # before and after every step of both models
