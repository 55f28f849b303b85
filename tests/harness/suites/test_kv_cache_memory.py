"""What the suite of key-value caches holds is planned, bounds what is measured, and is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.cell.cells import ResolvedCell
from harness.cell.parts import Measuring
from harness.cell.resolve import resolve
from harness.config.schema import CellConfig
from harness.run import memory
from harness.run.memory import suite_memory
from harness.suites import kv_cache
from harness.suites.base import Facts
from harness.suites.kv_cache import Config
from quant.calibrate.cost import _resident_bytes
from quant.memory.heaps import keep_freed_memory, trim_heap
from quant.memory.limits import Limits
from quant.memory.plan import IN_HOST, MemoryPlanError, plan_suite
from quant.memory.shapes import ModelShape, model_shape
from tests.harness.suites.suite_context import Ascii, suite_context
from tests.quant.killing import CONTEXT
from tests.quant.resident import _high_water_bytes, forget_peak

Make = Callable[..., CellConfig]
WINDOW = 1024
SHAPE = {"model_type": "llama", "hidden_size": 512, "num_attention_heads": 8,
         "num_key_value_heads": 8, "max_position_embeddings": WINDOW}  # fmt: skip
SCHEMES = ["staircase"]  # of all that hold most


@dataclass(frozen=True)
class Measured:
    """Peak bytes above the model: of one window, and of three."""

    shape: ModelShape
    one: int
    three: int


def settings(text: str, windows: int) -> Config:
    return Config(["text"], {"text": text}, [WINDOW], tokens=windows * WINDOW, schemes=SCHEMES)


def planned(shape: ModelShape, config: Config, device: str = "cpu") -> dict[str, int]:
    facts = Facts("suite.kv_cache", "tiny", SHAPE, device=device)
    return {item.name: item.bytes for item in kv_cache.memory(config, facts, shape)}


def _measure(results: Connection, text: str) -> None:
    torch.set_num_threads(1)
    if not keep_freed_memory():
        results.send(None)
        return
    config = LlamaConfig(vocab_size=256, intermediate_size=768, num_hidden_layers=2, **SHAPE)
    model = LlamaForCausalLM(config).eval()
    context = suite_context(model, Ascii())

    def peak(windows: int) -> int:
        trim_heap()
        before = _resident_bytes()
        forget_peak()
        kv_cache.run(context, settings(text, windows))
        return _high_water_bytes() - before

    peak(1)  # libraries take memory once
    results.send(Measured(model_shape(model), peak(1), peak(3)))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Measured, str]:
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text("A cat sat on a mat, and a dog came by. " * 90)
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_measure, args=(there, str(file)))
    process.start()
    there.close()
    found = here.recv()
    process.join(60)
    if found is None:
        pytest.skip("memory of this C library stays with the process")
    return found, str(file)


def test_the_plan_bounds_what_is_measured(measured: tuple[Measured, str]) -> None:
    found, text = measured
    facts = Facts("suite.kv_cache", "tiny", SHAPE)
    items = kv_cache.memory(settings(text, 1), facts, found.shape)
    bound = plan_suite(items, Limits(), "").needed(IN_HOST)
    # Small allocations are none of the plan's business.
    assert found.one < bound + 12_000_000
    assert found.one > bound / 4, "a bound this loose would refuse what fits"


def test_windows_are_measured_one_after_the_other(measured: tuple[Measured, str]) -> None:
    found, text = measured
    more = planned(found.shape, settings(text, 3)), planned(found.shape, settings(text, 1))
    figures = "figures of all windows"
    assert more[0][figures] == 3 * more[1][figures] == 3 * 4 * 8 * 2 * WINDOW
    assert {**more[0], figures: 0} == {**more[1], figures: 0}
    assert found.three < 1.25 * found.one


def test_long_windows_of_a_large_model_are_the_sum_of_their_parts() -> None:
    """Llama 3 8B in bfloat16 at 8192 tokens, eight heads of keys for 32 of queries."""
    shape = ModelShape(
        layers=((4096, 4096), (14336, 4096), (4096, 14336)), blocks=32, block_bytes=436 * 10**6,
        outside_bytes=2 * 10**9, hidden=4096, vocabulary=128256, itemsize=2,
    )  # fmt: skip
    told = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
            "num_key_value_heads": 8, "max_position_embeddings": 8192}  # fmt: skip
    facts = Facts("suite.kv_cache", "llama", told, device="cuda:0")
    items = kv_cache.memory(Config(schemes=["kivi"], tokens=16384), facts, shape)
    found = {item.name: item for item in items}
    numbers = 2 * 8 * 128 * 8192
    assert found["keys and values of a layer, in 16 bits"].bytes == 2 * numbers
    assert found["the copies that a cache makes of them"].bytes == 9 * 4 * numbers
    assert found["attention of some queries"].bytes == 8 * 4 * 16 * 32 * 8192
    assert found["what is compared, of two caches"].bytes == 2 * 8192 * 4096 * 2
    assert found["logits of the check of attention"].bytes == 256 * 128256 * (2 * 2 + 4 * 8)
    assert found["figures of all windows"].bytes == 4 * 8 * 2 * 16384
    assert {each.where for name, each in found.items() if name != "figures of all windows"} == {
        "device"
    }


def tiny(tiny_cell: Make) -> ResolvedCell:
    asked = [
        "suite=[perplexity_documents,kv_cache]",
        "suite.kv_cache.schemes=[per_token]",
        "suite.kv_cache.bits=[9]",
    ]
    found = resolve(
        tiny_cell(
            *asked,
            "suite.kv_cache.protocols=[embedded-joined]",
            "model.protocols=[documents]",
            latency=False,
        )
    )
    assert isinstance(found, ResolvedCell)
    return found


def test_the_model_is_counted_unless_it_is_in_memory(tiny_cell: Make) -> None:
    cell = tiny(tiny_cell)
    suite = cell.measuring("kv_cache")
    plan, beside = suite_memory(cell, suite), suite_memory(cell, suite, loaded=True)
    assert plan is not None
    assert beside is not None
    names = [item.name for item in plan.items]
    assert names[:2] == ["weights of the model", "the largest layer, dequantized"]
    assert [item.name for item in beside.items] == names[2:]


def test_what_does_not_fit_is_refused_with_figures(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.run.planned import show_plan

    cell = tiny(tiny_cell)
    show_plan([cell])
    assert re.search(r"memory of .*suite kv_cache", capsys.readouterr().out)
    monkeypatch.setattr("quant.memory.limits.free_memory", lambda *_: Limits(host=100_000))
    message = r"of host memory and 95\.0 kB may be taken \(.*\): measure shorter windows or leave"
    with pytest.raises(MemoryPlanError, match=message):
        memory.suite_memory(cell, cell.measuring("kv_cache"))
    show_plan([cell])
    assert "suite kv_cache: this needs" in capsys.readouterr().out.replace("\n", " ")


def test_a_suite_that_does_not_fit_fails_with_the_figures(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.run.events import Event, Failed
    from harness.run.stage import run_cell

    cell, events = tiny(tiny_cell), list[Event]()

    def small(_: ResolvedCell, measuring: Measuring, loaded: bool) -> None:
        if measuring.suite.memory is not None:
            raise MemoryPlanError("this needs 9 GB")

    monkeypatch.setattr("harness.run.stage.suite_memory", small)
    run_cell(cell, events.append)
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.stage == "kv_cache"
    assert "this needs 9 GB" in failed.message
