"""Outputs that are remembered between the passes of a block: the same bits, fewer products."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.blocks import find_blocks, linear_layers
from quant.calibrate import memo as memos
from quant.calibrate import reference, stages
from quant.calibrate.capture import Call
from quant.calibrate.memo import Memo
from quant.calibrate.stream import quantize_model
from quant.calibrate.structure import BlockStructure
from quant.calibrate.windows import Batch
from quant.config import QuantizationConfig
from quant.scheme import Scheme
from quant.solvers import gptq, qronos
from quant.solvers.base import Solver
from quant.transforms import awq
from tests.quant.architectures import random_windows, tiny_model

COARSE = Scheme(2, 16)


def count(layer: nn.Module, name: str, passes: Counter[str]) -> None:
    """Count the calls of forward itself: a hook would count outputs that are remembered, too."""
    compute = layer.forward

    def forward(x: Tensor) -> Tensor:
        passes[name] += 1
        return compute(x)

    layer.__dict__["forward"] = forward


def quantized(
    model: nn.Module, solver: Solver, options: Any, *transforms: Any
) -> tuple[dict[str, Tensor], Counter[str]]:
    """Codes by layer, and how often every layer of the last block was multiplied."""
    model, passes = copy.deepcopy(model), Counter[str]()
    last = find_blocks(model).modules[-1]
    for name, layer in linear_layers(last).items():
        count(layer, name, passes)
    config = QuantizationConfig(solver, COARSE, options, transforms=transforms, batch_tokens=24)
    result = quantize_model(model, random_windows(3), config)
    return {name: weight.codes for name, weight in result.weights.items()}, passes


@pytest.mark.parametrize("name", ["opt", "bloom", "falcon", "llama"])
def test_no_bit_depends_on_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(name)
    codes, passes = quantized(model, qronos.SOLVER, qronos.Options())
    counts = [sum(passes.values())]
    for most in (6_000, 0) if name == "llama" else (0,):  # outputs of some batches, of none
        monkeypatch.setattr(memos, "MEMO_BYTES", most)
        other, passes = quantized(model, qronos.SOLVER, qronos.Options())
        counts.append(sum(passes.values()))
        assert all(torch.equal(codes[layer], other[layer]) for layer in codes)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1], counts


def test_no_bit_depends_on_it_where_a_transform_changes_norms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, options = tiny_model("llama"), gptq.Options(true_sequential=True)
    codes, _ = quantized(model, gptq.SOLVER, options, (awq.TRANSFORM, None))
    monkeypatch.setattr(memos, "MEMO_BYTES", 0)
    other, _ = quantized(model, gptq.SOLVER, options, (awq.TRANSFORM, None))
    assert all(torch.equal(codes[layer], other[layer]) for layer in codes)


def test_attention_and_the_original_of_a_block_run_once_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: Counter[str] = Counter()
    attention = functional.scaled_dot_product_attention
    batches, seen = 3, []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        passes["attention"] += 1
        return attention(*args, **kwargs)

    class Watched(reference.ReferenceBlock):
        def _pass(self, *args: Any) -> Any:
            passes["original"] += 1
            return super()._pass(*args)

    class Memos(Memo):
        def _attention(self, run: Any, compute: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(compute)
            return super()._attention(run, counted, *args, **kwargs)

    monkeypatch.setattr(reference, "ReferenceBlock", Watched)
    monkeypatch.setattr(stages, "Memo", Memos)
    model = tiny_model("llama")
    config = QuantizationConfig(qronos.SOLVER, COARSE, qronos.Options(), batch_tokens=24)
    quantize_model(model, random_windows(batches), config)
    blocks = len(find_blocks(model).modules)
    assert passes["original"] == blocks * batches
    assert attention in seen
    assert passes["attention"] == blocks * batches


@pytest.mark.parametrize("most", [0, 6_000])
def test_no_bit_depends_on_how_many_inputs_of_the_original_wait(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("opt")
    codes, _ = quantized(model, qronos.SOLVER, qronos.Options())
    monkeypatch.setattr(reference, "MEMO_BYTES", most)
    other, _ = quantized(model, qronos.SOLVER, qronos.Options())
    assert all(torch.equal(codes[layer], other[layer]) for layer in codes)


class InPlace(nn.Module):
    """A block that changes in place what its first layer has read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        y = self.first(x)
        x.mul_(2)
        return self.second(x + y)


def test_inputs_that_the_original_changes_in_place_are_copied() -> None:
    block, x = InPlace(), torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    structure = BlockStructure(0, None, None, (("first",), ("second",)), single_pass=True)
    original = reference.ReferenceBlock(block, "b", structure, [Call((None,), {})], [x], True)
    batch = Batch((0,), torch.zeros(1, 3, dtype=torch.int64))
    with torch.no_grad():
        expected = block(x)
        first = original.inputs(0, batch, [("first",)])
        original.finish([("first",)])
        second = original.inputs(0, batch, [("second",)])
        inner = block.first(x + 1)
    assert torch.equal(first["first",][0], x + 1)
    assert torch.equal(second["second",][0], (x + 1) * 2 + inner)
    assert torch.equal(original.hidden[0], expected)


class Block(nn.Module):
    """Two parts, the first of two layers; `changes` is done in place behind or before a part."""

    def __init__(self, changes: str) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.second = nn.Linear(4, 4)
        self.changes, self.passes = changes, Counter[str]()
        if changes == "input":
            self.first.register_forward_pre_hook(lambda _, args: args[0].add_(1))
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                count(module, name, self.passes)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(x.clone() if self.changes == "input" else x)
        if self.changes == "output":
            inner.mul_(2)
        return self.second(inner)


def memo_of(block: Block) -> Memo:
    groups = tuple((name,) for name in linear_layers(block))
    return Memo(block, BlockStructure(0, None, None, groups, single_pass=True))


def run(memo: Memo, block: Block, x: Tensor, last: bool = False) -> Tensor:
    with torch.no_grad(), memo.during(0, last):
        return block(x)


@pytest.mark.parametrize(("changes", "computed"), [("", 1), ("output", 3), ("input", 1)])
def test_a_part_is_computed_once_unless_its_output_is_changed(changes: str, computed: int) -> None:
    block, x = Block(changes), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = block(x)
    block.passes.clear()
    memo = memo_of(block)
    memo.finish(["first.0", "first.1"])
    for last in (False, False, True):
        assert torch.equal(run(memo, block, x, last), expected)
    assert block.passes == {"first.0": computed, "first.1": computed, "second": 3}
    assert "forward" not in block.first.__dict__


def test_a_larger_part_takes_the_place_of_what_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    output = 3 * 4 * 4  # bytes of one output
    monkeypatch.setattr(memos, "MEMO_BYTES", output)
    block, x = Block(""), torch.ones(3, 4)
    memo = memo_of(block)
    memo.finish(["first.0"])
    run(memo, block, x)
    memo.finish(["first.1"])
    for _ in range(2):
        run(memo, block, x)
    assert block.passes == {"first.0": 1, "first.1": 2, "second": 3}
    memo.finish(["second"])
    run(memo, block, x)
    assert memo._left == 0  # no room for another
    run(memo, block, x, last=True)
    assert memo._left == output
    assert block.passes == {"first.0": 1, "first.1": 2, "second": 5}
