"""OPTIN: scores are those of running the whole model with a mask, and the least of them go."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import quant
from quant.checkpoint.make import quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.config import QuantizationConfig
from quant.pruning import structured
from quant.pruning.cut import Cut
from quant.pruning.source import pruned
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.transforms import optin
from quant.transforms.base import Transform
from quant.transforms.optin import Options, relation_change
from tests.quant.architectures import random_windows, tiny_model, uneven_model
from tests.quant.pruning.test_block_removal import saved

W8 = Scheme(8, group_size=16, scale_dtype="float32")
WINDOWS = random_windows(2, length=10, seed=7)
WIDE = {"intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}


def features(model: PreTrainedModel, window: Tensor, zeroed: dict[str, list[int]]) -> list[Tensor]:
    """The hidden states [tokens, hidden] after every block, with some inputs of layers at zero."""
    model, seen = copy.deepcopy(model).double(), []

    def mask(columns):
        def before(_, args):
            x = args[0].clone()
            for column in columns:
                x[..., column] = 0
            return (x,)

        return before

    for name, columns in zeroed.items():
        model.get_submodule(name).register_forward_pre_hook(mask(columns))
    for block in model.model.layers:
        block.register_forward_hook(
            lambda _, __, out: seen.append((out[0] if isinstance(out, tuple) else out)[0])
        )
    with torch.no_grad():
        model(window[None], use_cache=False)
    return seen


def brute_force(model: PreTrainedModel, layer: str, columns: list[int], block: int) -> float:
    """The score from its equation, pair of tokens by pair of tokens."""
    total = 0.0
    for window in WINDOWS:
        whole, less = features(model, window, {}), features(model, window, {layer: columns})
        for later in range(block + 1, 3) if block < 2 else [2]:
            a, b = whole[later], less[later]
            for t in range(len(window)):
                for u in range(len(window)):
                    before = float(a[t] @ a[u] / (a[t].norm() * a[u].norm()))
                    after = float(b[t] @ b[u] / (b[t].norm() * b[u].norm()))
                    total += (before - after) ** 2 / len(window) ** 2
    return total / len(WINDOWS)


def spied(model: PreTrainedModel, folder: Path, look) -> None:
    """Call look(running) on a model that is ready to be pruned."""

    def prune(running, options):
        look(running)
        return Cut((0,))

    spying = Transform("spying", "spying", prune=prune, options=Options)
    config = QuantizationConfig(rtn.SOLVER, W8, arithmetic="portable")
    with CheckpointSource(saved(model, folder), torch.float32) as source:
        pruned(source, spying, Options(windows=2), WINDOWS, config)


def test_scores_are_those_of_masking_the_whole_model(tmp_path: Path) -> None:
    model, found = uneven_model("llama"), {}

    def look(running):
        whole = [running.start()]
        for index in range(3):
            whole.append(running.through(index, whole[-1]))
        columns, heads = structured.parts_of(running, Options())
        for block in range(3):
            found["down", block] = optin.trajectory(running, columns[block], [3, 40], whole)
            found["head", block] = optin.trajectory(running, heads[block], [1], whole)

    spied(model, tmp_path, look)
    for block in range(3):
        name = f"model.layers.{block}."
        mlp = brute_force(model, f"{name}mlp.down_proj", [3, 40], block)
        # Two heads of 8 share the second key-value head.
        heads = brute_force(model, f"{name}self_attn.o_proj", list(range(16, 32)), block)
        assert found["down", block] == pytest.approx(mlp, rel=1e-4)
        assert found["head", block] == pytest.approx(heads, rel=1e-4)


def test_columns_are_masked_in_the_order_of_what_they_add(tmp_path: Path) -> None:
    model = tiny_model("llama", **WIDE)
    steps: list[list[int]] = []

    def look(running):
        part = structured.parts_of(running, Options())[0][0]
        _, seen = running.watched(0, running.start(), [part.reader])
        steps.extend(optin.candidates(running, part, seen[part.reader], W8))
        weight = model.model.layers[0].mlp.down_proj.weight
        x = torch.cat([each[0] for each in seen[part.reader]])
        added = [float((x[:, [j]] @ weight[:, [j]].T).square().sum()) for j in range(96)]
        assert [j for step in steps for j in step] == sorted(range(96), key=added.__getitem__)

    spied(model, tmp_path, look)
    assert [len(step) for step in steps] == [32, 32, 32]


def test_the_change_of_relations_does_not_see_rotations_and_sizes() -> None:
    x = torch.randn(1, 6, 4, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert relation_change([x], [3 * x @ rotation]) == pytest.approx(0, abs=1e-20)
    assert relation_change([x], [x + torch.randn_like(x)]) > 1e-3


def test_an_artifact_is_within_its_budget_and_loads(tmp_path: Path) -> None:
    folder = saved(tiny_model("llama", **WIDE), tmp_path / "model")
    budget = 0.8 * W8.bits_per_weight(32)
    transforms = ((optin.TRANSFORM, Options(bits=budget)),)
    config = QuantizationConfig(rtn.SOLVER, W8, transforms=transforms)
    with CheckpointSource(folder, torch.float32) as source:
        result = quantize_to(tmp_path / "out", source, WINDOWS, config, model_hash="", method={})
    stored = sum(each.bits_per_weight * each.inputs * each.outputs for each in result.layers)
    assert 0.7 * budget < result.coverage.bits_per_weight(stored) <= budget
    with torch.no_grad():
        assert quant.load(tmp_path / "out")(WINDOWS[0][None]).logits.isfinite().all()


def test_tables_say_the_options() -> None:
    assert optin.TRANSFORM.describe(Options()) == ["3.25 bits"]
    assert optin.TRANSFORM.describe(Options(windows=4)) == ["3.25 bits", "4 windows"]
