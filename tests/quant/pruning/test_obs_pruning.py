"""OBS pruning: costs and weights are those of least squares, units go where they cost least."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import quant
from quant.audit.checkpoint import AuditedCheckpoint
from quant.blocks import find_blocks
from quant.checkpoint.make import quantize_to
from quant.checkpoint.skeleton import build_skeleton
from quant.checkpoint.source import ArtifactSource, CheckpointSource
from quant.config import QuantizationConfig
from quant.errors import ArtifactError, QuantizationError
from quant.experts import unfuse
from quant.pruning import structured
from quant.pruning.allocate import Ladder, allocate
from quant.pruning.cut import PRUNED
from quant.pruning.source import PrunedSource, pruned
from quant.pruning.structured import Part, cut_of
from quant.pruning.units import Columns, Heads, find_columns, find_heads, of_all
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.transforms import obs_pruning
from quant.transforms.base import Transform
from quant.transforms.obs_pruning import Options, cost, damped, gram, ladder, without
from tests.quant.architectures import random_windows, tiny_model, uneven_model
from tests.quant.mixtures import tiny_mixture
from tests.quant.pruning.test_block_removal import run, saved
from tests.quant.pruning.test_block_removal import without as without_blocks

W8 = Scheme(8, group_size=16, scale_dtype="float32")
WINDOWS = random_windows(3, seed=7)
WIDE = {"intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def least_squares(weight: Tensor, x: Tensor, kept: list[int]) -> tuple[Tensor, float]:
    """The best weights [out, kept] for inputs x [tokens, in], and the error that they leave."""
    wanted = x @ weight.T
    solved = torch.linalg.lstsq(x[:, kept], wanted).solution
    return solved.T, float((wanted - x[:, kept] @ solved).square().sum())


@pytest.mark.parametrize("removed", [[0], [2, 5], [0, 1, 3, 6]])
def test_the_cost_and_the_weights_are_those_of_least_squares(removed: list[int]) -> None:
    mixing = random(8, 8, seed=2)
    x, weight = random(50, 8) @ mixing, random(5, 8, seed=1)
    inverse = torch.linalg.inv(gram([x[None, :20], x[None, 20:]]))
    kept = [j for j in range(8) if j not in removed]
    best, error = least_squares(weight, x, kept)
    assert cost(weight, inverse, removed) == pytest.approx(error, rel=1e-9)
    changed, left = without(weight, inverse, removed)
    torch.testing.assert_close(changed[:, kept], best, rtol=1e-9, atol=1e-9)
    assert not changed[:, removed].any()
    torch.testing.assert_close(left[kept][:, kept], torch.linalg.inv(x[:, kept].T @ x[:, kept]))


def test_steps_one_after_the_other_cost_what_they_cost_together() -> None:
    x, weight = random(60, 8) @ random(8, 8, seed=2), random(5, 8, seed=1)
    inverse = torch.linalg.inv(x.T @ x)
    total = cost(weight, inverse, [1, 4])
    after, left = without(weight, inverse, [1, 4])
    total += cost(after, left, [0, 6])
    assert total == pytest.approx(least_squares(weight, x, [2, 3, 5, 7])[1], rel=1e-9)


def heads(groups: int = 4) -> Part:
    unit = Heads("q_proj", "k_proj", "v_proj", "o_proj", groups, size=2, features=3, hidden=16)
    return Part(0, "layers.0", unit)


def test_groups_of_heads_go_in_the_order_of_brute_force() -> None:
    x, weight = random(90, 24) @ random(24, 24, seed=2), random(16, 24, seed=1)
    found = ladder(heads(), weight, x.T @ x, W8)
    left, gone = [0, 1, 2, 3], []
    for step, score in zip(found.steps, found.scores[1:], strict=True):
        trials = {}
        for group in left:
            inputs = [j for g in (*gone, group) for j in range(6 * g, 6 * g + 6)]
            trials[group] = least_squares(weight, x, [j for j in range(24) if j not in inputs])[1]
        best = min(trials, key=trials.__getitem__)
        assert list(step) == [best]
        assert score == pytest.approx(trials[best], rel=1e-9)
        left.remove(best)
        gone.append(best)
    assert len(found.steps) == 3  # one group stays


def test_columns_go_in_steps_that_leave_groups_whole() -> None:
    x, weight = random(300, 100) * random(100, seed=3).exp(), random(16, 100, seed=1)
    part = Part(0, "layers.0", Columns(("gate", "up"), "down", 100, 16))
    found = ladder(part, weight, x.T @ x, W8)
    alone = [least_squares(weight, x, [j for j in range(100) if j != k])[1] for k in range(100)]
    assert sorted(found.steps[0]) == sorted(sorted(range(100), key=alone.__getitem__)[:32])
    assert [len(step) for step in found.steps] == [32, 32, 32]
    for count in (1, 2, 3):
        gone = found.removed(count)
        error = least_squares(weight, x, [j for j in range(100) if j not in gone])[1]
        assert found.scores[count] == pytest.approx(error, rel=1e-9)


def test_an_allocation_is_the_best_of_all_that_fit() -> None:
    for seed in range(20):
        numbers = random(2, 3, 4, seed=seed).square().cumsum(2)
        kinds = [
            [Ladder([[0]] * 3, [0.0, *numbers[kind, block, :3].tolist()]) for block in range(3)]
            for kind in range(2)
        ]
        saved_bits, excess = [5.0, 3.0], 20.0

        def fits(counts, saved_bits=saved_bits, excess=excess):
            return sum(s * sum(c) for s, c in zip(saved_bits, counts, strict=True)) >= excess

        def total(counts, kinds=kinds):
            return sum(
                ladder.scores[count]
                for ladders, taken in zip(kinds, counts, strict=True)
                for ladder, count in zip(ladders, taken, strict=True)
            )

        every = [
            (flat[:3], flat[3:])
            for flat in itertools.product(range(4), repeat=6)
            if fits((flat[:3], flat[3:]))
        ]
        best = min(map(total, every))
        found = allocate(kinds, saved_bits, excess, fits)
        assert fits(found)
        assert total(found) == pytest.approx(best)
        alone = allocate(kinds[:1], saved_bits[:1], 20.0, lambda counts: sum(counts[0]) >= 4)
        assert sum(alone[0]) == 4


def test_a_budget_that_nothing_meets_is_an_error() -> None:
    with pytest.raises(QuantizationError, match="no choice of parts meets the budget"):
        allocate([[Ladder([[0]], [0.0, 1.0])]], [5.0], 6.0, lambda _: True)


def removing(heads_of: dict[int, list[int]], columns_of: dict[int, list[int]]) -> Transform:
    """A transform that removes these units, by block."""

    def prune(running, options):
        kinds = structured.parts_of(running, options)
        gone = dict(zip(options.kinds, kinds, strict=True))
        return cut_of(
            [
                *((gone["heads"][block], units) for block, units in heads_of.items()),
                *((gone["columns"][block], units) for block, units in columns_of.items()),
            ]
        )

    return Transform("removal", "removal", prune=prune, options=structured.Options)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi"])
def test_every_family_without_heads_and_columns_is_the_masked_model(
    name: str, tmp_path: Path
) -> None:
    folder = saved(tiny_model(name, intermediate_size=48), tmp_path)
    transform = removing({0: [1], 2: [0]}, {0: [3, 4, 40], 1: list(range(32))})
    config = QuantizationConfig(rtn.SOLVER, W8)
    with CheckpointSource(folder, torch.float32) as source:
        left = pruned(source, transform, structured.Options(), WINDOWS, config)
    assert isinstance(left, PrunedSource)
    block = find_blocks(left.model).modules[0]
    heads, columns = find_heads(block), find_columns(block)
    assert isinstance(heads, Heads)
    assert isinstance(columns, Columns)
    whole = find_heads(find_blocks(tiny_model(name)).modules[0])
    assert heads.groups == whole.groups - 1
    assert columns.width == 45


@pytest.mark.parametrize("name", ["opt", "gpt-neox", "bloom", "falcon"])
def test_families_without_heads_to_remove_lose_columns(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    assert isinstance(of_all(find_heads, find_blocks(model).modules), str)
    only = structured.Options(heads=False)
    transform = Transform(
        "removal",
        "removal",
        prune=lambda running, _: cut_of([(structured.parts_of(running, only)[0][1], [0, 5, 7])]),
        options=structured.Options,
    )
    config = QuantizationConfig(rtn.SOLVER, W8)
    with CheckpointSource(saved(model, tmp_path), torch.float32) as source:
        left = pruned(source, transform, only, WINDOWS, config)
    found = find_columns(find_blocks(left.model).modules[1])
    assert isinstance(found, Columns)
    assert found.width == find_columns(find_blocks(model).modules[1]).width - 3


def test_what_is_unknown_is_named() -> None:
    mixture = tiny_mixture("qwen3-moe")
    unfuse(mixture)
    assert "more than one FFN" in str(find_columns(find_blocks(mixture).modules[0]))
    fused = find_heads(find_blocks(tiny_model("gpt-neox")).modules[0])
    assert "no projections of queries, keys, values and outputs of their own" in str(fused)
    assert "none that are known" in str(find_columns(nn.Sequential(nn.Linear(4, 4))))
    uneven = [nn.Sequential(), find_blocks(tiny_model("llama")).modules[0]]
    assert of_all(find_heads, uneven) == "its blocks differ"


def quantized(folder: Path, tmp_path: Path, options: Options):
    config = QuantizationConfig(
        gptq.SOLVER, W8, transforms=((obs_pruning.TRANSFORM, options),), arithmetic="portable"
    )
    with CheckpointSource(folder, torch.float32) as source:
        return quantize_to(tmp_path / "out", source, WINDOWS, config, model_hash="", method={})


def test_an_artifact_of_uneven_blocks_is_within_its_budget_and_runs(tmp_path: Path) -> None:
    folder = saved(tiny_model("llama", **WIDE), tmp_path / "model")
    whole = W8.bits_per_weight(32)
    result = quantized(folder, tmp_path, Options(bits=0.7 * whole))
    stored = sum(each.bits_per_weight * each.inputs * each.outputs for each in result.layers)
    bits = result.coverage.bits_per_weight(stored)
    assert 0.6 * whole < bits <= 0.7 * whole
    assert "FFN columns" in str(result.removed)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config[PRUNED]["removed_weights"] == result.coverage.removed
    loaded = quant.load(tmp_path / "out")
    with torch.no_grad():
        logits = loaded(WINDOWS[0][None]).logits
    with ArtifactSource(tmp_path / "out") as packed:
        for index in range(3):
            packed.attach(index, packed.fetch(index))
        with torch.no_grad():
            again = packed.model(WINDOWS[0][None]).logits
        torch.testing.assert_close(again, logits)
    with torch.no_grad():  # with a cache, token by token
        grown, cache = [], None
        for token in WINDOWS[0]:
            out = loaded(token[None, None], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            grown.append(out.logits[0, 0])
    torch.testing.assert_close(torch.stack(grown), logits[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("damaged", ["x", {"layers": {"model.none": [1, 2]}}, {"layers": [[1]]}])
def test_a_damaged_entry_is_refused(damaged: object, tmp_path: Path) -> None:
    config = tiny_model("llama").config
    setattr(config, PRUNED, damaged)
    config.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=f"{PRUNED} does not say the shapes of layers of Llama"):
        build_skeleton(tmp_path, None, {})


def test_exports_and_audits_of_uneven_blocks_are_refused(tmp_path: Path) -> None:
    folder = saved(tiny_model("llama", **WIDE), tmp_path / "model")
    quantized(folder, tmp_path, Options(bits=0.7 * W8.bits_per_weight(32)))
    with pytest.raises(ArtifactError, match="layers that are smaller than config"):
        quant.export(tmp_path / "out", tmp_path / "other", "gptq-v2")
    with pytest.raises(ArtifactError, match="parts of the model were removed before it was quant"):
        AuditedCheckpoint(tmp_path / "out", tiny_model("llama", **WIDE))


def reader_errors(folder: Path, compensate: bool) -> dict[str, tuple[float, float]]:
    """Of every down projection that was cut: its error, and that of least squares."""
    options = Options(bits=9, heads=False, windows=3, compensate=compensate, damping=1e-9)
    found: dict[str, tuple[float, float]] = {}

    def prune(running, options):
        cut, hidden = obs_pruning.prune(running, options), running.start()
        for index in range(3):
            name = f"model.layers.{index}.mlp.down_proj"
            hidden, inputs = running.watched(index, hidden, [name])
            if name in cut.inputs:
                x = torch.cat([each[0] for each in inputs[name]]).double()
                whole = running.source.model.get_submodule(name).weight.double()
                kept, new = cut.inputs[name], cut.weights.get(name, whole).double()
                error = float((x @ whole.T - x[:, kept] @ new[:, kept].T).square().sum())
                found[name] = error, least_squares(whole, x, kept.tolist())[1]
        return cut

    spying = Transform("removal", "removal", prune=prune, options=Options)
    config = QuantizationConfig(rtn.SOLVER, W8, arithmetic="portable")
    with CheckpointSource(folder, torch.float32) as source:
        pruned(source, spying, options, WINDOWS, config)
    return found


def test_weights_that_stay_make_up_for_those_that_go(tmp_path: Path) -> None:
    folder = saved(uneven_model("llama"), tmp_path / "model")
    with_them, without_them = (reader_errors(folder, each) for each in (True, False))
    assert with_them.keys() == without_them.keys()
    assert len(with_them) == 2
    for name, (error, best) in with_them.items():
        assert error == pytest.approx(best, rel=1e-4)
        assert without_them[name][0] > 1.5 * error


@pytest.mark.parametrize("compensate", [True, False])
def test_scores_are_the_loss_of_the_end_at_the_middle_of_a_ladder(
    compensate: bool, tmp_path: Path
) -> None:
    model = tiny_model("llama", **WIDE)
    found, cases = {}, {"mlp.down_proj": (0, 1), "self_attn.o_proj": (1, 2)}

    def prune(running, options):
        before, hidden = {}, running.start()
        for block in range(3):
            before[block], readers = hidden, [f"model.layers.{block}.{name}" for name in cases]
            hidden, seen = running.watched(block, hidden, readers)
            for name, (kind, _) in cases.items():
                part = structured.parts_of(running, options)[kind][block]
                weight = running.source.model.get_submodule(part.reader).weight.double()
                hessian = damped(gram(seen[part.reader]), 0.01)
                steps = ladder(part, weight, hessian, W8)
                trial = obs_pruning.Trial(running, part, before[block], running.end())
                scores = obs_pruning.scaled(steps, trial, weight, hessian, compensate).scores
                changed, inputs = weight, part.inputs(steps.removed(cases[name][1]))
                if compensate:
                    changed, _ = without(weight, torch.linalg.inv(hessian), inputs)
                found[block, name] = steps, scores, changed.float(), inputs
        return cut_of([])

    spying = Transform("removal", "removal", prune=prune, options=Options)
    config = QuantizationConfig(rtn.SOLVER, W8, arithmetic="portable")
    with CheckpointSource(saved(model, tmp_path), torch.float32) as source:
        pruned(source, spying, Options(windows=2), WINDOWS, config)
    for (block, name), (steps, scores, changed, inputs) in found.items():
        less, middle = without_blocks(model, set()), cases[name][1]
        layer = less.get_submodule(f"model.layers.{block}.{name}")
        layer.weight.data.copy_(changed)
        layer.weight.data[:, inputs] = 0
        cosines = []
        for window in WINDOWS[:2]:
            whole = run(without_blocks(model, set()), window)[0]
            for a, b in zip(whole, run(less, window)[0], strict=True):
                cosines.append(float(a @ b / (a.norm() * b.norm())))
        end = 1 - sum(cosines) / len(cosines)
        assert scores[middle] == pytest.approx(end, rel=1e-4)
        ratio = scores[middle] / steps.scores[middle]
        assert scores[1] == pytest.approx(ratio * steps.scores[1])


def test_damping_is_a_share_of_the_mean() -> None:
    hessian = torch.diag(torch.tensor([1.0, 3.0]).double())
    torch.testing.assert_close(damped(hessian, 0.5), torch.diag(torch.tensor([2.0, 4.0]).double()))
    assert hessian[0, 0] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(), ["3.25 bits"]),
        (Options(heads=False, damping=0.1), ["3.25 bits", "columns only", "damp 0.1"]),
        (Options(columns=False, compensate=False), ["3.25 bits", "heads only", "not compensated"]),
    ],
)
def test_tables_say_the_options(options: Options, said: list[str]) -> None:
    assert obs_pruning.TRANSFORM.describe(options) == said


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"leave nothing to remove"):
        Options(columns=False, heads=False)
    with pytest.raises(ValueError, match=r"^damping=0"):
        Options(damping=0)
