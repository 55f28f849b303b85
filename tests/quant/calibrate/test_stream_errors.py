"""What quantize_model refuses: before anything changes where it can, always naming the place."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.arithmetic import FAST, PORTABLE
from quant.calibrate import collect
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.errors import (
    CalibrationError,
    ModelStructureError,
    NonFiniteError,
    QuantizationError,
    SingularHessianError,
)
from quant.scheme import Scheme
from quant.solvers import gptq
from tests.quant.architectures import random_windows, tiny_model

W4G16 = Scheme(bits=4, group_size=16)


def gptq_plan(scheme: Scheme = W4G16, **settings: int) -> QuantizationConfig:
    return QuantizationConfig(gptq.SOLVER, scheme, **settings)  # type: ignore[arg-type]


def refused(
    model: PreTrainedModel,
    error: type[Exception],
    message: str,
    windows: list[Tensor] | None = None,
    plan: QuantizationConfig | None = None,
) -> None:
    """The error is raised, and no weight has changed."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        quantize_model(
            model, random_windows(5) if windows is None else windows, plan or gptq_plan()
        )
    after = model.state_dict()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0, equal_nan=True)


def test_what_cannot_work_is_refused_before_anything_changes() -> None:
    model = tiny_model("llama")
    refused(model, CalibrationError, "no calibration window", windows=[])
    short = [*random_windows(2), torch.tensor([3])]
    refused(model, CalibrationError, "window 2 is too short", windows=short)
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = torch.nan
    refused(model, NonFiniteError, r"layers\.2\.mlp\.up_proj: 1 of 1536 weights")


def test_a_batch_of_no_token_is_refused() -> None:
    with pytest.raises(QuantizationError, match="batch_tokens=0"):
        gptq_plan(batch_tokens=0)


def test_a_layer_that_saw_no_token_stays_and_is_named() -> None:
    model = tiny_model("opt")
    model.model.decoder.layers[0].spare = nn.Linear(32, 32)
    before = model.model.decoder.layers[0].spare.weight.clone()
    found = quantize_model(model, random_windows(2), gptq_plan()).coverage
    assert torch.equal(model.model.decoder.layers[0].spare.weight, before)
    (line,) = found.outside()
    assert line.startswith("model.decoder.layers.*.spare.weight (")


def test_non_finite_embeddings_are_found_in_their_window() -> None:
    model = tiny_model("opt")
    windows = random_windows(5)
    windows[3][7] = 2  # an id that random windows do not hold
    model.model.decoder.embed_tokens.weight.data[2] = torch.inf
    message = r"the embeddings\) holds 32 NaN or infinite values in calibration window 3 "
    refused(model, NonFiniteError, message, windows=windows)


@pytest.mark.parametrize("arithmetic", [FAST, PORTABLE])
def test_the_first_layer_with_non_finite_inputs_is_named(arithmetic: str) -> None:
    model = tiny_model("llama")
    windows = random_windows(5)
    windows[2][4] = 2
    # Only the id 2 has a large enough activation to overflow float32 in this norm.
    model.model.embed_tokens.weight.data[:, 0] = 0
    model.model.embed_tokens.weight.data[2, 0] = 30
    model.model.layers[0].post_attention_layernorm.weight.data[0] = 3e38
    model.model.layers[0].self_attn.o_proj.weight.data[0] = 0
    where = (
        r"the input of model\.layers\.0\.mlp\.gate_proj holds \d+ NaN .* in calibration window 2 "
    )
    with pytest.raises(NonFiniteError, match=where + ".*float32 or bfloat16"):
        quantize_model(model, windows, gptq_plan(batch_tokens=50, arithmetic=arithmetic))


def test_a_block_whose_output_overflows_is_named() -> None:
    model = tiny_model("opt")
    model.model.decoder.layers[1].fc2.bias.data[0] = torch.inf
    message = r"the output of model\.decoder\.layers\.1 holds .* in calibration window 0 "
    with pytest.raises(NonFiniteError, match=message):
        quantize_model(model, random_windows(3), gptq_plan())


def test_the_replay_is_checked_before_anything_changes() -> None:
    model = tiny_model("opt")
    block = model.model.decoder.layers[1]
    calls: list[int] = []

    def drift(_: nn.Module, __: object, output: Tensor) -> Tensor:
        calls.append(1)
        return output + len(calls) * torch.arange(output.shape[-1])

    block.register_forward_hook(drift)
    refused(model, ModelStructureError, "differ by up to")


def test_hooks_are_removed_when_a_block_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    model = tiny_model("opt")
    monkeypatch.setattr(collect.Hessian, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(model, random_windows(2), gptq_plan())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_every_error_of_the_calibration_says_what_next() -> None:
    """House rule: what, where, and a next step after a semicolon."""
    model = tiny_model("opt")
    for windows in ([], [torch.tensor([3])], [torch.tensor([3, 999])], [torch.full((99,), 3)]):
        with pytest.raises(CalibrationError) as caught:
            quantize_model(model, windows, gptq_plan())
        assert re.search(r"; (use|cut|tokenize|each)", str(caught.value))


def test_damping_of_a_ladder_is_recorded_for_the_layers_that_needed_it() -> None:
    """Two tokens cannot span 32 inputs: without damping every Hessian is singular."""
    windows = [torch.tensor([3, 5])]
    plain = QuantizationConfig(gptq.SOLVER, W4G16, gptq.Options(damping=0.0))
    with pytest.raises(SingularHessianError, match="2 calibration tokens cannot span"):
        quantize_model(tiny_model("llama"), windows, config=plain)
    allowed = replace(plain, options=gptq.Options(damping=0.0, damping_ladder=(0.02,)))
    result = quantize_model(tiny_model("llama"), windows, config=allowed)
    assert {layer.fallback for layer in result.layers} == {"damping 0.02 instead of 0"}
    enough = quantize_model(tiny_model("llama"), random_windows(8), gptq_plan())
    assert {layer.fallback for layer in enough.layers} == {None}
