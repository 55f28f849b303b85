"""Work spread over several devices: deterministic, really elsewhere, and the same result."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.calibrate import collect, layers
from quant.calibrate.devices import DeviceWorkers, assign, visible_devices
from quant.calibrate.stream import QuantizationResult, Workplace, quantize_model
from quant.config import QuantizationConfig
from quant.errors import NonFiniteError
from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.solvers import gptq
from tests.quant.architectures import CONFIGS, random_windows, tiny_model

CPU = torch.device("cpu")
PLAN = QuantizationConfig(gptq.SOLVER, Scheme(4, group_size=16), batch_tokens=50)


def spread_over(
    count: int, name: str = "llama", plan: QuantizationConfig = PLAN
) -> QuantizationResult:
    windows = random_windows(5)
    return quantize_model(tiny_model(name), windows, plan, None, Workplace((CPU,) * count))


def same(one: QuantizationResult, other: QuantizationResult) -> None:
    assert list(one.weights) == list(other.weights)
    for name, weight in one.weights.items():
        assert torch.equal(weight.codes, other.weights[name].codes), name
        assert torch.equal(weight.scale, other.weights[name].scale), name
    for left, right in zip(one.layers, other.layers, strict=True):
        assert (left.name, left.loss, left.damping) == (right.name, right.loss, right.damping)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_devices_give_the_result_of_one(name: str) -> None:
    same(spread_over(1, name), spread_over(2, name))


@pytest.mark.parametrize("count", [3, 7])
def test_more_devices_than_work_change_nothing(count: int) -> None:
    same(spread_over(1), spread_over(count))


def test_true_sequential_order_is_kept() -> None:
    plan = QuantizationConfig(
        gptq.SOLVER, Scheme(3, group_size=16), gptq.Options(true_sequential=True)
    )
    same(spread_over(1, plan=plan), spread_over(2, plan=plan))


def test_hessians_and_solves_run_in_the_thread_of_their_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where: dict[str, set[int]] = {}

    def note(what: str, layer: str) -> None:
        where.setdefault(f"{what} {layer.split('.')[-1]}", set()).add(threading.get_ident())

    update, group = Hessian.update, layers.BlockSolver.group
    monkeypatch.setattr(
        Hessian, "update", lambda self, *x: note("update", self.layer) or update(self, *x)
    )
    monkeypatch.setattr(
        layers.BlockSolver,
        "group",
        lambda self, names, *rest: note("solve", names[0]) or group(self, names, *rest),
    )
    spread_over(2)
    assert all(len(threads) == 1 for threads in where.values()), "a group stays on its device"
    here = threading.get_ident()
    away = {what for what, threads in where.items() if threads != {here}}
    assert away, "nothing ran on the second device"
    assert len(away) < len(where), "nothing ran on the first device"
    for name in {what.split()[1] for what in where}:
        assert where[f"update {name}"] == where[f"solve {name}"]


def test_inputs_that_a_block_changes_afterwards_were_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow worker still sees what entered the layer, not what became of the tensor."""
    release = threading.Event()
    update, seen = Hessian.update, []

    def slow(self: Hessian, inputs: torch.Tensor, *rest: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            release.wait(10)
            seen.append(inputs.clone())
        update(self, inputs, *rest)

    monkeypatch.setattr(Hessian, "update", slow)
    block = torch.nn.ModuleDict({"a": torch.nn.Linear(8, 8), "b": torch.nn.Linear(8, 8)})
    batch = collect.Batch((0,), torch.zeros(1, 4, dtype=torch.int64))
    with DeviceWorkers([CPU, CPU]) as workers, torch.no_grad():
        collector = collect.Collector(block, "block", [("a",), ("b",)], False, workers)
        collector.begin(batch)
        x = torch.ones(1, 4, 8)
        for name in "ab":
            block[name](x)
        x.zero_()
        release.set()
        workers.settle()
        collector.close()
    assert [hessian.matrix().sum().item() for hessian in collector.hessians.values()] == [512, 512]
    assert len(seen) == 1


def test_the_first_error_of_another_device_is_raised_and_nothing_is_left_running() -> None:
    model, windows = tiny_model("llama"), random_windows(5)
    windows[2][4] = 2
    model.model.embed_tokens.weight.data[:, 0] = 0
    model.model.embed_tokens.weight.data[2, 0] = 30
    model.model.layers[0].post_attention_layernorm.weight.data[0] = 3e38
    model.model.layers[0].self_attn.o_proj.weight.data[0] = 0
    before = threading.active_count()
    fast = replace(PLAN, arithmetic="fast")  # in float64 the norm holds what it makes
    with pytest.raises(NonFiniteError, match=r"mlp\.gate_proj holds .* in calibration window 2 "):
        quantize_model(model, windows, fast, None, Workplace((CPU, CPU, CPU, CPU)))
    assert threading.active_count() == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_tasks_of_a_lane_run_in_order_and_errors_come_back() -> None:
    order: list[int] = []
    with DeviceWorkers([CPU, CPU]) as workers:
        for number in range(50):
            workers.send(1, lambda number=number: order.append(number))
        workers.settle()
        assert order == list(range(50))
        workers.send(1, lambda: 1 / 0)
        workers.send(1, lambda: order.append(50))
        with pytest.raises(ZeroDivisionError):
            workers.settle()
        workers.settle()
        with pytest.raises(ZeroDivisionError):
            workers.run(0, lambda: 1 / 0)
    assert not torch.is_inference_mode_enabled()


@given(st.lists(st.integers(0, 100), max_size=9), st.integers(1, 4))
def test_work_is_shared_out_evenly(costs: Sequence[int], workers: int) -> None:
    chosen = assign([float(cost) for cost in costs], workers)
    assert all(0 <= worker < workers for worker in chosen)
    load = [
        sum(c for c, worker in zip(costs, chosen, strict=True) if worker == i)
        for i in range(workers)
    ]
    # Graham's bound for longest processing time first.
    assert max(load) <= sum(costs) / workers + max(costs, default=0) * (1 - 1 / workers) + 1e-9
    assert chosen == assign([float(cost) for cost in costs], workers)


def test_which_devices_are_visible() -> None:
    assert visible_devices("cpu") == (CPU,)
    assert visible_devices("cuda:1") == (torch.device("cuda:1"),)
