"""What of a model's blocks is not quantized: refused, or in every record and in a footnote."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DbrxConfig

from harness.config.schema import CellConfig
from harness.embedded import MODEL_DIR
from harness.errors import ConfigError
from harness.report import build_report
from harness.run.events import Event, Failed
from harness.run.planned import show_plan
from harness.run.stage import run_cell
from tests.harness.cells import cell_of, plan_of

Make = Callable[..., CellConfig]
# Wqkv [64, 32], out_proj [32, 32] and the router [4, 32]; three times [4 * 32, 32] beside them.
SHARE = (64 + 32 + 4) / (64 + 32 + 4 + 3 * 4 * 32)


@pytest.fixture
def dbrx(tmp_path: Path) -> Path:
    """Two blocks whose experts are parameters of no linear layer, with the embedded tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path / "dbrx"
    config = DbrxConfig(
        vocab_size=2048, d_model=32, n_heads=4, n_layers=2, max_seq_len=64,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, folder / name)
    return folder


def test_little_coverage_is_refused_in_the_plan_and_in_the_run(
    dbrx: Path, tiny_cell: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_cell(f"model.path={dbrx}", latency=False)
    show_plan([cell_of(config)])
    assert "only 20.7 % of the weights" in capsys.readouterr().out
    events: list[Event] = []
    run_cell(cell_of(config), events.append)
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert "mlp.w1 (26 %)" in failed.message
    assert "method.partial=true" in failed.message
    assert not list(Path(config.paths.results).glob("artifacts/*"))


def test_allowed_coverage_is_in_every_record_in_the_key_and_in_a_footnote(
    dbrx: Path, tiny_cell: Make, tmp_path: Path
) -> None:
    given = (f"model.path={dbrx}", "scheme=w4g32")
    strict = cell_of(tiny_cell(*given, latency=False))
    assert strict.keys.semantic["method"] == {"name": "rtn"}  # what is not given is in no key
    config = tiny_cell(*given, "method.partial=true", latency=False)
    cell = cell_of(config)
    assert cell.keys.semantic["method"] == {"name": "rtn", "partial": True}
    assert cell.keys.cell != strict.keys.cell
    events: list[Event] = []
    run_cell(cell, events.append)
    assert not [event for event in events if isinstance(event, Failed)]
    assert plan_of(config).todo == []
    records = [cell.find(stage) for stage in cell.keys.stages]
    bits = SHARE * (4 + 20 / 32) + (1 - SHARE) * 32  # a float16 scale and 4 bits of zero a group
    for record in records:
        assert record is not None
        assert record.cell.coverage == pytest.approx(SHARE)
        assert len(record.cell.outside) == 3
        assert record.cell.bits_per_weight == pytest.approx(bits)
    build_report([record for record in records if record], tmp_path / "report")
    text = (tmp_path / "report" / "summary.md").read_text()
    assert "20.7 % of the weights of the blocks' matrices are quantized" in text


def test_rules_are_checked(tiny_cell: Make) -> None:
    with pytest.raises(ConfigError, match=r"which RTN does not use: .*method=gptq"):
        cell_of(tiny_cell("method=rtn", "method.few_tokens=rtn"))
    for given, said in (
        ("method.few_tokens=drop", "choose one of refuse, damp, rtn"),
        ("method.min_tokens=0", "use 1 or more"),
        ("method.partial=maybe", "partial"),
    ):
        with pytest.raises(ConfigError, match=said):
            cell_of(tiny_cell("method=gptq", given))
