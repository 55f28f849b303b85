"""Blocks are removed whose absence changes the end of the model least, held against brute force."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import quant
from quant.blocks import find_blocks
from quant.calibrate.sink import InMemorySink
from quant.calibrate.stream import quantize_blocks, quantize_model
from quant.checkpoint.make import files_hash, quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.config import QuantizationConfig
from quant.errors import ModelStructureError, QuantizationError
from quant.pruning.budget import Options as AnyOptions
from quant.pruning.cut import PRUNED, Cut
from quant.pruning.source import PrunedSource, pruned
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.transforms import block_removal, hadamard
from quant.transforms.base import Transform
from quant.transforms.block_removal import Options
from tests.quant.architectures import CONFIGS, random_windows, tiny_model, uneven_model

W8 = Scheme(8, group_size=16, scale_dtype="float32")
WINDOWS = random_windows(3, seed=7)


def without(model: PreTrainedModel, removed: set[int]) -> PreTrainedModel:
    """A copy of a model in float64 whose removed blocks return their input."""
    model = copy.deepcopy(model).double()
    for index, block in enumerate(find_blocks(model).modules):
        if index in removed:
            block.register_forward_hook(
                lambda _, args, kwargs, output: (
                    (first(args, kwargs), *output[1:])
                    if isinstance(output, tuple)
                    else first(args, kwargs)
                ),
                with_kwargs=True,
            )
    return model


def first(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def run(model: PreTrainedModel, window: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states after the last block, and the logits."""
    seen: list[Tensor] = []
    last = find_blocks(model).modules[-1]
    handle = last.register_forward_hook(
        lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        logits = model(window[None], use_cache=False).logits
    handle.remove()
    return seen[0][0], logits[0]


def brute_force(model: PreTrainedModel, removed: set[int], windows: list[Tensor]) -> list[float]:
    """1 - the mean cosine of the last hidden states, token by token, for every block."""
    found = []
    whole = without(model, set())
    for index in range(len(find_blocks(model))):
        less, cosines = without(model, removed | {index}), []
        for window in windows:
            for a, b in zip(run(whole, window)[0], run(less, window)[0], strict=True):
                cosines.append(float(a @ b) / (float(a @ a) * float(b @ b)) ** 0.5)
        found.append(1 - sum(cosines) / len(cosines))
    return found


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def removing(cut: Cut) -> Transform:
    """A transform that removes what it is told."""
    return Transform("removal", "removal", prune=lambda *_: cut, options=AnyOptions)


def cut_model(folder: Path, cut: Cut) -> PrunedSource:
    config = QuantizationConfig(rtn.SOLVER, W8)
    with CheckpointSource(folder, torch.float32) as source:
        return pruned(source, removing(cut), AnyOptions(), WINDOWS, config)


@pytest.mark.parametrize(
    ("name", "blocks"), [*((name, (1,)) for name in CONFIGS), ("opt", (0, 2)), ("qwen2", (0,))]
)
def test_every_family_without_blocks_is_the_masked_model(
    name: str, blocks: tuple[int, ...], tmp_path: Path
) -> None:
    model = tiny_model(name)
    saved(model, tmp_path)
    with CheckpointSource(tmp_path, torch.float32) as source:
        config = QuantizationConfig(rtn.SOLVER, W8)
        left = pruned(source, removing(Cut(blocks)), AnyOptions(), WINDOWS, config)
        for index in range(len(left.blocks)):
            left.attach(index, left.fetch(index))
        whole = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        found = sum(p.numel() for p in left.model.parameters() if p.dim() > 1)
        assert left.removed == whole - found
        window = random_windows(1, seed=9)[0]
        logits = run(left.model, window)[1]
    expected = run(without(model, set(blocks)), window)[1]
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def scores(model: PreTrainedModel, folder: Path, removed: list[int]) -> dict[int, float]:
    """Influences as a run finds them."""
    found: dict[int, float] = {}

    def prune(running, options):
        found.update(block_removal.influences(running, removed))
        return Cut((0,))

    spying = Transform("removal", "removal", prune=prune, options=AnyOptions)
    config = QuantizationConfig(rtn.SOLVER, W8, arithmetic="portable")
    with CheckpointSource(saved(model, folder), torch.float32) as source:
        pruned(source, spying, AnyOptions(windows=2), WINDOWS, config)
    return found


@pytest.mark.parametrize("removed", [[], [1]])
@pytest.mark.parametrize("name", ["llama", "opt", "qwen2"])
def test_macro_influence_is_that_of_running_the_model_without_the_block(
    name: str, removed: list[int], tmp_path: Path
) -> None:
    model = uneven_model(name)
    found = scores(model, tmp_path, removed)
    expected = brute_force(model, set(removed), WINDOWS[:2])
    assert found.keys() == {0, 1, 2} - set(removed)
    for index, value in found.items():
        # transformers computes norms and softmax in float32, whatever the model's type.
        assert value == pytest.approx(expected[index], rel=1e-6)


def quantized(model: PreTrainedModel, folder: Path, bits: float, solver=rtn, **more) -> dict:
    """Config.json of the artifact of a model within a budget, and how many bits a weight it has."""
    source_folder = saved(model, folder / "model")
    pruning = (block_removal.TRANSFORM, Options(bits=bits, **more))
    config = QuantizationConfig(solver.SOLVER, W8, transforms=(pruning,))
    with CheckpointSource(source_folder, torch.float32) as source:
        result = quantize_to(
            folder / "out", source, WINDOWS, config, model_hash=files_hash(source_folder), method={}
        )
    stored = sum(each.bits_per_weight * each.inputs * each.outputs for each in result.layers)
    written = json.loads((folder / "out" / "config.json").read_text())
    return {**written, "said": result.removed, "bits": result.coverage.bits_per_weight(stored)}


@pytest.mark.parametrize("iterative", [True, False])
def test_a_budget_removes_the_blocks_of_least_influence(iterative: bool, tmp_path: Path) -> None:
    model = uneven_model("llama")
    whole = W8.bits_per_weight(32)  # about; rows of 48 have as much overhead a weight
    influence = brute_force(model, set(), WINDOWS)
    first_one = min(range(3), key=influence.__getitem__)
    if iterative:
        again = brute_force(model, {first_one}, WINDOWS)
        second = min({0, 1, 2} - {first_one}, key=again.__getitem__)
    else:
        second = sorted(range(3), key=influence.__getitem__)[1]
    found = quantized(model, tmp_path, bits=0.4 * whole, iterative=iterative)
    removed = sorted((first_one, second))
    assert found["said"] == f"blocks {removed[0]}, {removed[1]}"
    assert found["num_hidden_layers"] == 1
    assert found["bits"] == pytest.approx(whole / 3)
    assert found[PRUNED] == {"removed_weights": 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)}
    loaded = quant.load(tmp_path / "out")
    window = random_windows(1, seed=9)[0]
    expected = run(without(model, set(removed)), window)[1]
    assert (run(loaded, window)[1] - expected).norm() < 0.05 * expected.norm()


def test_gptq_and_other_transforms_run_on_what_stays(tmp_path: Path) -> None:
    folder = saved(uneven_model("llama"), tmp_path / "model")
    transforms = ((block_removal.TRANSFORM, Options(bits=8)), (hadamard.TRANSFORM, None))
    config = QuantizationConfig(gptq.SOLVER, W8, transforms=transforms)
    with CheckpointSource(folder, torch.float32) as source:
        result = quantize_to(tmp_path / "out", source, WINDOWS, config, model_hash="", method={})
    assert {each.block for each in result.layers} == {0, 1}
    assert all(note.startswith("hadamard kept") for e in result.layers for note in e.transforms)
    assert result.stages[0].name == "prune"
    assert result.removed is not None
    assert re.fullmatch(r"block \d", result.removed)


def test_lists_with_an_entry_a_block_lose_those_of_removed_blocks(tmp_path: Path) -> None:
    left = cut_model(saved(tiny_model("qwen2"), tmp_path), Cut((1,)))
    assert left.model.config.layer_types == ["full_attention", "sliding_attention"]


def test_a_model_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "quant.pruning.source.config_without",
        lambda config, *_: changed(config, rms_norm_eps=0.5, num_hidden_layers=2),
    )
    with pytest.raises(ModelStructureError, match="cannot remove block 1 of LlamaForCausalLM: its"):
        cut_model(saved(tiny_model("llama"), tmp_path), Cut((1,), said="block 1"))


def changed(config, **values):
    config = copy.deepcopy(config)
    setattr(config, PRUNED, {})
    for name, value in values.items():
        setattr(config, name, value)
    return config


def test_a_model_that_cannot_be_built_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "quant.pruning.source.config_without",
        lambda config, *_: changed(config, num_hidden_layers=2, intermediate_size=40),
    )
    said = r"it does not run \(model.layers.0.mlp.gate_proj.weight is \[48, 32\] without what is"
    with pytest.raises(ModelStructureError, match=said):
        cut_model(saved(tiny_model("llama"), tmp_path), Cut((1,), said="block 1"))


def test_a_model_that_is_written_nowhere_is_refused(tmp_path: Path) -> None:
    pruning = (block_removal.TRANSFORM, Options(bits=8))
    config = QuantizationConfig(rtn.SOLVER, W8, transforms=(pruning,))
    message = "block_removal makes another, smaller model"
    with pytest.raises(QuantizationError, match=message):
        quantize_model(tiny_model("llama"), WINDOWS, config)
    with (
        CheckpointSource(saved(tiny_model("llama"), tmp_path), torch.float32) as source,
        pytest.raises(QuantizationError, match=message),
    ):
        quantize_blocks(source, WINDOWS, config, InMemorySink())


def test_it_stands_first() -> None:
    pair = (block_removal.TRANSFORM, None)
    with pytest.raises(QuantizationError, match="block_removal removes parts of the model, before"):
        QuantizationConfig(rtn.SOLVER, W8, transforms=((hadamard.TRANSFORM, None), pair))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(), ["3.25 bits"]),
        (Options(bits=2.5, windows=2, iterative=False), ["2.5 bits", "2 windows", "scored once"]),
    ],
)
def test_tables_say_the_budget(options: Options, said: list[str]) -> None:
    assert block_removal.TRANSFORM.describe(options) == said


@pytest.mark.parametrize("wrong", [{"bits": 0}, {"bits": 16.0}, {"windows": 0}])
def test_impossible_options_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
        Options(**wrong)
