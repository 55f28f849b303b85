"""Coverage: what share of the blocks' matrices is in quantized layers, counted by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DbrxConfig, MambaConfig, PhimoeConfig, RwkvConfig

import quant
from quant.blocks import find_blocks, kept_layers, linear_layers
from quant.calibrate.source import LoadedModel
from quant.calibrate.stream import quantize_model
from quant.calibrate.survey import NEVER_CALLED, survey
from quant.checkpoint.make import quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.config import QuantizationConfig
from quant.coverage import coverage_of, is_matrix
from quant.errors import ModelStructureError
from quant.rules import Rules
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from tests.quant.architectures import CONFIGS, random_windows, tiny_model

W4 = Scheme(bits=4)


def dbrx() -> nn.Module:
    """Two blocks whose experts are 2-D parameters of no linear layer."""
    torch.manual_seed(0)
    config = DbrxConfig(
        vocab_size=96, d_model=32, n_heads=4, n_layers=2, max_seq_len=64,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def mamba() -> nn.Module:
    """Two blocks whose dt_proj never runs: its weight is read."""
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=96, hidden_size=128, state_size=4, num_hidden_layers=2, time_step_rank=4,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_matrix_of_a_dense_model_is_in_a_layer(name: str) -> None:
    found = survey(LoadedModel(tiny_model(name)))
    assert found.share == 1
    assert found.outside() == []
    assert found.bits_per_weight(5.0 * found.quantized) == 5.0


def test_experts_that_are_no_layers_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    dbrx().save_pretrained(tmp_path / "model")
    config = QuantizationConfig(rtn.SOLVER, W4)
    with (
        CheckpointSource(tmp_path / "model", torch.float32) as source,
        pytest.raises(
            ModelStructureError,
            match=r"only 20\.. % .*\.\*\.ffn\.experts\.mlp\.\w\w \(26 %\).*method\.partial=true",
        ),
    ):
        quantize_to(tmp_path / "w4", source, [], config, model_hash="m", method={"name": "rtn"})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_part_of_a_model_is_quantized_where_that_is_allowed_and_counted_whole() -> None:
    model = dbrx()
    config = QuantizationConfig(rtn.SOLVER, W4, rules=Rules(partial=True))
    result = quantize_model(model, [], config)
    # Wqkv [64, 32], out_proj [32, 32] and the router [4, 32]; three times [4 * 32, 32] beside them.
    layers, experts = 2 * (64 + 32 + 4) * 32, 2 * 3 * 4 * 32 * 32
    assert result.coverage.quantized == layers
    assert result.coverage.total == layers + experts
    names = {line.split()[0] for line in result.coverage.outside()}
    assert names == {f"transformer.blocks.*.ffn.experts.mlp.{each}" for each in ("w1", "v1", "w2")}
    stored = sum(each.bits_per_weight * each.outputs * each.inputs for each in result.layers)
    expected = (stored + 32 * experts) / (layers + experts)
    assert result.coverage.bits_per_weight(stored) == pytest.approx(expected)


@pytest.mark.parametrize("solver", [rtn.SOLVER, gptq.SOLVER], ids=["rtn", "gptq"])
def test_a_layer_that_is_never_called_stays_and_the_artifact_runs(
    solver: gptq.Solver, tmp_path: Path
) -> None:
    model = mamba()
    model.save_pretrained(tmp_path / "model")
    config = QuantizationConfig(solver, Scheme(bits=8))
    windows = random_windows(3, 24)
    with CheckpointSource(tmp_path / "model", torch.float32) as source:
        result = quantize_to(
            tmp_path / "w8", source, windows, config, model_hash="m", method={"name": solver.name}
        )
    assert not any("dt_proj" in layer.name for layer in result.layers)
    # in_proj 512 x 128, x_proj 12 x 256, out_proj 128 x 256; dt_proj, A_log and conv1d 256 x 4.
    share = 100 * 256 * 4 / (512 * 128 + 12 * 256 + 128 * 256 + 3 * 256 * 4)
    line = f"backbone.layers.*.mixer.dt_proj.weight ({share:.2g} %, {NEVER_CALLED})"
    assert line in result.coverage.outside()  # never called, and read
    loaded = quant.load(tmp_path / "w8")
    assert type(loaded.backbone.layers[0].mixer.dt_proj) is nn.Linear
    with torch.no_grad():
        full, found = model(windows[0][None]).logits, loaded(windows[0][None]).logits
        assert (found - full).norm() < 0.02 * full.norm()
        for name, weight in quant.load_weights(tmp_path / "w8").items():
            model.get_submodule(name).weight.copy_(weight.dequantize())
        torch.testing.assert_close(found, model(windows[0][None]).logits, atol=1e-4, rtol=1e-4)
    after = coverage_of(find_blocks(loaded))
    assert (after.quantized, after.total) == (result.coverage.quantized, result.coverage.total)


def test_a_router_that_returns_its_choice_stays() -> None:
    config = PhimoeConfig(
        vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    source = LoadedModel(AutoModelForCausalLM.from_config(config).eval())
    survey(source, Rules(partial=True))
    (router,) = kept_layers(source.blocks.modules[0])
    assert router.endswith("router")
    assert router not in linear_layers(source.blocks.modules[0])


def rwkv(**changes: int) -> nn.Module:
    config = RwkvConfig(
        vocab_size=96, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2,
        intermediate_size=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, **changes,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def test_layers_whose_weights_are_read_beside_them_stay() -> None:
    """RWKV divides two weights of every block when it is evaluated: a packed layer has none."""
    with pytest.raises(
        ModelStructureError, match=r"attention\.output\.weight \(11 %, the model reads its weight\)"
    ):
        survey(LoadedModel(rwkv()))
    assert survey(LoadedModel(rwkv(rescale_every=0))).share == 1


def test_vectors_are_no_matrices_whatever_their_dimensions() -> None:
    assert not is_matrix(torch.ones(1, 1, 64))  # RWKV's time_mix_key
    assert not is_matrix(torch.ones(64, 1, 1))
    assert is_matrix(torch.ones(64, 1, 4))
    model = rwkv(rescale_every=0)
    assert any(value.shape == (1, 1, 32) for value in model.rwkv.blocks.parameters())
    assert survey(LoadedModel(model)).outside() == []
