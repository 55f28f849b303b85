"""Blocks computed in float64 whatever dtype their parameters have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quant.calibrate.capture import capture, observe, run_block
from quant.calibrate.source import as_source
from quant.calibrate.wide import WideCalls, narrowed, wide_buffers, widened
from tests.quant.architectures import CONFIGS, random_windows, tiny_model


@pytest.mark.parametrize("name", ["opt", "gpt2", "bloom", "gpt-neox"])
def test_blocks_compute_what_the_model_in_float64_does(name: str) -> None:
    """The model cast to float64 is the oracle; two kinds compute positions in float32 even so."""
    model = tiny_model(name)
    windows = torch.stack(random_windows(2))
    source = as_source(model)
    model_structure = observe(source, windows[0])
    with torch.no_grad(), wide_buffers(model), WideCalls():
        captured = capture(model, model_structure, [windows])
        hidden = captured.hidden[0]
        for index, structure in enumerate(model_structure.structures):
            call = captured.calls[index][0]
            hidden = run_block(model_structure.blocks.modules[index], structure, call, hidden)
    assert hidden.dtype == torch.float64
    oracle = tiny_model(name).double()
    seen: list[torch.Tensor] = []
    last = observe(as_source(oracle), windows[0])
    after = lambda _m, _a, out: seen.append(last.structures[-1].hidden_of(out))  # noqa: E731
    last.blocks.modules[-1].register_forward_hook(after)
    with torch.no_grad():
        oracle(windows)
    bound = 1e-6 if name in ("gpt-neox", "bloom") else 1e-13  # angles and alibi of the oracle
    torch.testing.assert_close(hidden, seen[0], rtol=bound, atol=bound)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_float32_is_left_in_any_architecture(name: str, monkeypatch: Any) -> None:
    """Every result of a call of torch while blocks run is float64, but for parameters' views."""
    model = tiny_model(name)
    narrow: list[str] = []
    plain = WideCalls.__torch_function__

    def watched(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = plain(self, func, types, args, kwargs)
        mine = {p.untyped_storage().data_ptr() for p in model.parameters()}
        for each in result if isinstance(result, tuple | list) else [result]:
            if not isinstance(each, torch.Tensor) or each.is_meta or each.dtype == torch.float64:
                continue
            if each.is_floating_point() and each.untyped_storage().data_ptr() not in mine:
                narrow.append(func.__name__)
        return result

    monkeypatch.setattr(WideCalls, "__torch_function__", watched)
    windows = torch.stack(random_windows(2))
    model_structure = observe(as_source(model), windows[0])
    with torch.no_grad(), wide_buffers(model), WideCalls():
        captured = capture(model, model_structure, [windows])
        call = captured.calls[0][0]
        run_block(
            model_structure.blocks.modules[0],
            model_structure.structures[0],
            call,
            captured.hidden[0],
        )
    assert narrow == []
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_rotary_frequencies_are_computed_again_and_put_back() -> None:
    model = tiny_model("qwen3")
    rotary = model.model.rotary_emb
    before = rotary.inv_freq
    dim, base = model.config.head_dim, model.config.rope_parameters["rope_theta"]
    exact = torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)
    with wide_buffers(model):
        torch.testing.assert_close(rotary.inv_freq, exact, rtol=1e-15, atol=0)
    assert rotary.inv_freq is before
    rotary._buffers["inv_freq"] = before * 2  # what somebody set stays, to float32's last bit
    with wide_buffers(model):
        assert torch.equal(rotary.inv_freq, (before * 2).double())


def test_only_floating_point_changes_its_width() -> None:
    given = {"a": [torch.ones(2), torch.ones(2, dtype=torch.int64)], "b": None, "c": (1.5, True)}
    wide = widened(given)
    assert [each.dtype for each in wide["a"]] == [torch.float64, torch.int64]
    assert (wide["b"], wide["c"]) == (None, (1.5, True))
    assert narrowed(wide, torch.bfloat16)["a"][0].dtype == torch.bfloat16
