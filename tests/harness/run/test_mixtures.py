"""A cell of a mixture of experts, from its folder to the table."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from harness.config.schema import CellConfig
from harness.embedded import MODEL_DIR
from harness.report import build_report
from harness.run.events import Event, Failed
from harness.run.stage import run_cell
from tests.harness.cells import cell_of, plan_of

Make = Callable[..., CellConfig]


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """Two blocks of eight experts with the embedded tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path / "mixture"
    config = Qwen3MoeConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, folder / name)
    return folder


def failures(config: CellConfig) -> list[Failed]:
    events: list[Event] = []
    run_cell(cell_of(config), events.append)
    return [event for event in events if isinstance(event, Failed)]


def test_a_mixture_runs_from_plan_to_table(mixture: Path, tiny_cell: Make, tmp_path: Path) -> None:
    # 128 tokens to 2 of 8 experts: 32 each on average, some get fewer.
    given = (f"model.path={mixture}", "method=gptq", "scheme=w4g32")
    (failed,) = failures(tiny_cell(*given, latency=False))
    assert failed.stage == "quantization"
    assert (
        "too few calibration tokens were routed to experts (model.layers.0.mlp." in failed.message
    )

    config = tiny_cell(*given, "method.few_tokens=rtn")
    assert failures(config) == []
    plan = plan_of(config)
    assert plan.todo == []
    made = plan.cell.find("quantization")
    assert made is not None
    assert made.config["method"]["few_tokens"] == "rtn"
    assert len(made.layers) == 2 * (4 + 3 * 8)
    few = {layer.name: layer for layer in made.layers if layer.fallback}
    assert few
    assert all(layer.tokens < 32 and layer.method == "rtn" for layer in few.values())
    assert all(layer.tokens >= 32 for layer in made.layers if layer.name not in few)
    # The routers [8, 32] stay; q, o [32, 32], k, v [16, 32] and 24 of [32, 32] do not.
    quantized, routers = 3 * 1024 + 24 * 1024, 8 * 32
    assert made.cell.coverage == pytest.approx(quantized / (quantized + routers))
    (line,) = made.cell.outside
    assert line.startswith("model.layers.*.mlp.gate.weight (")
    records = [record for stage in plan.cell.keys.stages if (record := plan.cell.find(stage))]
    build_report(records, tmp_path / "report")
    text = (tmp_path / "report" / "summary.md").read_text()
    name = next(iter(few))
    said = rf"fallback in {name}( and \d+ more layers)?: {few[name].tokens} calibration tokens"
    assert re.search(said, text)
    assert "99.1 % of the weights of the blocks' matrices are quantized" in text
