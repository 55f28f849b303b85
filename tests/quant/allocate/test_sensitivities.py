"""What candidates cost layers, against float64 models changed by hand; choosing schemes."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.allocate import run as allocating
from quant.allocate.divergence import measure_divergences, some_tokens
from quant.allocate.loss import measure_losses
from quant.allocate.run import best, choose
from quant.allocation import Allocation, budget_of, stored_bits
from quant.calibrate.source import LoadedModel
from quant.calibrate.stream import quantize_model
from quant.checkpoint.source import CheckpointSource
from quant.config import QuantizationConfig
from quant.errors import QuantizationError, SchemeError
from quant.levels import nf4
from quant.scheme import Scheme
from quant.solvers import gptq, qronos, rtn
from quant.transforms import equalize, hadamard
from tests.oracles import textbook_gptq
from tests.quant.architectures import random_windows, tiny_model

TWO, THREE, FOUR = Scheme(2, 16), Scheme(3, 16), Scheme(4, 8)
CANDIDATES = (TWO, THREE, FOUR)
WINDOWS = random_windows(3)
RELATIVE = 1e-6  # norms of the float64 model compute in float32
LAYERS = ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj")


def asked(
    sensitivity: str = "loss", bits: float = 4.0, tokens: int = 40, **options: object
) -> QuantizationConfig:
    allocation = Allocation(bits, CANDIDATES, sensitivity, tokens=tokens)
    given = {"solver": gptq.SOLVER, "kernel": "reference", "arithmetic": "portable", **options}
    return QuantizationConfig(scheme=allocation, **given)


def inputs_of(model: PreTrainedModel, layer: str) -> Tensor:
    """Inputs [tokens, in] of a layer for all windows."""
    seen: list[Tensor] = []
    hook = lambda _, args: seen.append(args[0].flatten(0, -2))  # noqa: E731
    handle = model.get_submodule(layer).register_forward_pre_hook(hook)
    with torch.no_grad():
        for window in WINDOWS:
            model(window[None])
    handle.remove()
    return torch.cat(seen)


def rounded(weight: Tensor, scheme: Scheme) -> Tensor:
    """Weight [out, in] to the nearest levels of the paper's grids, number by number."""
    found, size = weight.clone(), scheme.group_size or weight.shape[1]
    for row, first in ((r, c) for r in range(len(weight)) for c in range(0, weight.shape[1], size)):
        group = weight[row, first : first + size]
        levels = textbook_gptq.find_levels(
            group.numpy(), scheme.bits, scheme.symmetric, False, False, "float16"
        )
        codes = [textbook_gptq.code_of(float(each), levels) for each in group]
        found[row, first : first + size] = torch.from_numpy(levels.values[codes])
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_losses_are_output_errors_in_the_full_precision_model(layer: str) -> None:
    plain = tiny_model("llama").double()
    inputs = inputs_of(plain, layer)
    hessian = 2 / len(WINDOWS) * inputs.T @ inputs
    weight = plain.get_submodule(layer).weight.detach()
    found = measure_losses(LoadedModel(tiny_model("llama")), WINDOWS, asked())
    for scheme in CANDIDATES:
        values = textbook_gptq.solve(
            weight.numpy(), hessian.numpy(), scheme.bits, group_size=scheme.group_size
        ).values
        outputs = inputs @ (weight - torch.from_numpy(values)).T
        expected = 2 / len(WINDOWS) * float((outputs**2).sum())
        assert found[layer][scheme.name] == pytest.approx(expected, rel=RELATIVE)


def test_losses_of_rounding_need_the_inputs_too() -> None:
    layer = LAYERS[1]
    plain = tiny_model("llama").double()
    inputs, weight = inputs_of(plain, layer), plain.get_submodule(layer).weight.detach()
    found = measure_losses(LoadedModel(tiny_model("llama")), WINDOWS, asked(solver=rtn.SOLVER))
    outputs = inputs @ (weight - rounded(weight, THREE)).T
    expected = 2 / len(WINDOWS) * float((outputs**2).sum())
    assert found[layer][THREE.name] == pytest.approx(expected, rel=RELATIVE)


def test_relative_losses_are_shares_of_the_outputs() -> None:
    layer = LAYERS[0]
    plain = tiny_model("llama").double()
    outputs = inputs_of(plain, layer) @ plain.get_submodule(layer).weight.detach().T
    whole = 2 / len(WINDOWS) * float((outputs**2).sum())
    losses = measure_losses(LoadedModel(tiny_model("llama")), WINDOWS, asked())[layer]
    shares = measure_losses(LoadedModel(tiny_model("llama")), WINDOWS, asked("relative"))[layer]
    for name, loss in losses.items():
        assert shares[name] == pytest.approx(loss / whole, rel=RELATIVE)


def test_a_solver_that_corrects_inputs_is_measured_without_any_error_before() -> None:
    found = measure_losses(LoadedModel(tiny_model("llama")), WINDOWS, asked(solver=qronos.SOLVER))
    assert all(costs[TWO.name] > costs[THREE.name] > 0 for costs in found.values())


def test_divergences_are_those_of_models_with_one_rounded_layer() -> None:
    windows = some_tokens(WINDOWS, 40)
    found: dict[str, dict[str, float]] = {}
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_divergences(LoadedModel(model), windows, asked("kld"), found, lambda: None)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert len(found) == 21
    plain = tiny_model("llama").double()
    with torch.no_grad():
        full = [plain(window[None]).logits[0].softmax(-1) for window in windows]
        for layer in LAYERS:
            for scheme in (TWO, FOUR):
                other = tiny_model("llama").double()
                weight = other.get_submodule(layer).weight
                weight.copy_(rounded(weight.detach(), scheme).float())
                total = 0.0
                for window, p in zip(windows, full, strict=True):
                    q = other(window[None]).logits[0].softmax(-1)
                    total += float((p * (p / q).log()).sum())
                expected = total / sum(map(len, windows))
                assert found[layer][scheme.name] == pytest.approx(expected, rel=1e-6)


def test_some_tokens_are_the_first() -> None:
    windows = [torch.arange(5), torch.arange(7), torch.arange(9)]
    assert [len(each) for each in some_tokens(windows, 9)] == [5, 4]
    assert [len(each) for each in some_tokens(windows, 6)] == [5]
    assert [len(each) for each in some_tokens(windows, 99)] == [5, 7, 9]


@pytest.mark.parametrize("sensitivity", ["loss", "kld"])
def test_the_model_keeps_to_the_budget(sensitivity: str) -> None:
    model = tiny_model("llama")
    config = asked(sensitivity, bits=4.4, tokens=8)
    chosen = choose(LoadedModel(model), WINDOWS, config)
    result = quantize_model(model, WINDOWS, replace(config, scheme=chosen.scheme))
    weights = sum(each.outputs * each.inputs for each in result.layers)
    bits = sum(each.outputs * each.inputs * each.bits_per_weight for each in result.layers)
    smallest = min(each.outputs * each.inputs for each in result.layers)
    assert 4.4 * weights - smallest < bits <= 4.4 * weights
    assert len({each.scheme for each in result.layers}) > 1
    costs = [chosen.sensitivities[each.name][each.scheme] for each in result.layers]
    assert chosen.predicted == pytest.approx(sum(costs))


def test_the_choice_is_the_best_of_all() -> None:
    shapes = {"a": (8, 16), "b": (4, 32), "c": (8, 16)}
    costs = {
        "a": {"w2g16": 4.0, "w3g16": 1.0, "w4g8": 0.5},
        "b": {"w2g16": 9.0, "w3g16": 2.0, "w4g8": 0.1},
        "c": {"w2g16": 0.3, "w3g16": 0.2, "w4g8": 0.1},
    }
    allocation = Allocation(4.65, CANDIDATES, head=Scheme(8))
    found = best(allocation, shapes, costs)
    named = {name: found.scheme.of(name).name for name in shapes}
    assert named == {"a": "w3g16", "b": "w4g8", "c": "w2g16"}
    assert found.predicted == pytest.approx(1.4)
    assert found.scheme.head == Scheme(8)
    spent = sum(stored_bits(found.scheme.of(name), *shape) for name, shape in shapes.items())
    assert spent <= allocation.budget(384)


def test_costs_that_differ_in_the_last_digits_give_one_choice() -> None:
    """Sums of another machine: without rounding the other layer would get the bits."""
    shapes = {"a": (8, 16), "b": (8, 16)}
    costs = {name: {"w2g16": 4.0, "w3g16": 1.0, "w4g8": 0.0} for name in shapes}
    allocation = Allocation(3.9, CANDIDATES)
    expected = best(allocation, shapes, costs).scheme
    for name in shapes:
        nearly = {**costs, name: {**costs[name], "w2g16": 4.0 * (1 + 1e-13)}}
        assert best(allocation, shapes, nearly).scheme == expected


@pytest.mark.parametrize("bits", [2.9, 6.6])
def test_budgets_beyond_the_candidates_are_refused(bits: float) -> None:
    with pytest.raises(SchemeError, match=r"go from w2g16 with 3\.\d+ to w4g8 with 6\.5 bits"):
        choose(LoadedModel(tiny_model("llama")), WINDOWS, asked(bits=bits))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": (TWO,)}, r"candidates=\['w2g16'\] leaves no choice"),
        ({"candidates": (TWO, THREE, TWO)}, "leaves no choice"),
        ({"candidates": (TWO, Scheme(4, 8, levels=nf4.LEVELS))}, "has nf4 levels, and the other"),
        ({"candidates": (TWO, Scheme(3, head=THREE))}, "which is not the scheme of one layer"),
        (
            {"sensitivity": "hope"},
            "sensitivity='hope' is unknown; choose one of relative, loss",
        ),
        ({"tokens": 1}, "tokens=1 is no window"),
        ({"bits": math.inf}, "bits=inf is no number"),
        (
            {"sensitivity": "kld", "candidates": (TWO, Scheme(3, grid="hessian"))},
            "use relative, or",
        ),
    ],
)
def test_what_is_no_allocation(change: dict[str, object], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        Allocation(**{"bits": 3.0, "candidates": CANDIDATES, **change})


def test_names() -> None:
    allocation = Allocation(3.25, CANDIDATES, "kld", head=Scheme(8, 32))
    assert allocation.name == "auto3.25_kld_head_w8g32"
    assert budget_of(allocation.name) == 3.25
    assert budget_of(Allocation(3, CANDIDATES).name) == 3
    assert Allocation(3, CANDIDATES, "loss").name == "auto3_loss"
    assert budget_of("w3g64") is None


def test_transforms_are_measured_in_their_coordinates() -> None:
    """A rotation changes what rounding costs; the layers that the transform sees are other ones."""
    plain = measure_losses(LoadedModel(tiny_model("llama")), WINDOWS, asked())
    rotated = asked(transforms=((hadamard.TRANSFORM, None),))
    other = measure_losses(LoadedModel(tiny_model("llama")), WINDOWS, rotated)
    assert plain.keys() == other.keys()
    assert any(plain[name] != other[name] for name in plain)
    with pytest.raises(QuantizationError, match="transform equalize changes them: use sensitivity"):
        choose(
            LoadedModel(tiny_model("llama")),
            WINDOWS,
            asked("kld", transforms=((equalize.TRANSFORM, None),)),
        )


def folder_of(tmp_path: Path) -> Callable[[], CheckpointSource]:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    return lambda: CheckpointSource(tmp_path / "model", torch.float32)


def test_measured_costs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, kept = folder_of(tmp_path), tmp_path / "costs.json"
    with opened() as source:
        first = choose(source, WINDOWS, asked(), kept=kept)
    with opened() as source:  # streamed from disk as in memory
        assert first == choose(LoadedModel(tiny_model("llama")), WINDOWS, asked())
    calls: list[int] = []
    measure = allocating.measure_losses
    counted = lambda *args: (calls.append(1), measure(*args))[1]  # noqa: E731
    monkeypatch.setattr(allocating, "measure_losses", counted)
    with opened() as source:
        assert choose(source, WINDOWS, asked(), kept=kept) == first
    assert not calls
    kept.write_text("{")
    with opened() as source:
        assert choose(source, WINDOWS, asked(), kept=kept) == first
        other = choose(source, WINDOWS[:2], asked(), kept=kept)
    assert len(calls) == 2
    assert other.sensitivities != first.sensitivities


def test_a_killed_measurement_of_divergences_goes_on(tmp_path: Path) -> None:
    opened, kept = folder_of(tmp_path), tmp_path / "costs.json"
    steps: list[str] = []

    def progress(done: int, total: int, name: str) -> None:
        assert total == 21
        steps.append(name)
        if done == 10:
            raise KeyboardInterrupt

    with opened() as source, pytest.raises(KeyboardInterrupt):
        choose(source, WINDOWS, asked("kld", tokens=8), kept=kept, progress=progress)
    before = kept.read_text()
    assert "model.layers.1.mlp.down_proj" in before
    assert "model.layers.2" not in before
    with opened() as source:
        again = choose(source, WINDOWS, asked("kld", tokens=8), kept=kept)
    whole = choose(LoadedModel(tiny_model("llama")), WINDOWS, asked("kld", tokens=8))
    assert again == whole
