"""GPTQ by the compiled kernels against the plain per-column PyTorch loop, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from cuda_ext import packed
from cuda_ext.attention import causal_attention
from quant.hessian import Factor, Hessian
from quant.memory.heaps import keep_freed_memory
from quant.scheme import Scheme
from quant.solvers import columns as column_loop
from quant.solvers import gptq
from quant.solvers.base import Layer, Solution
from quant.weight import QuantizedWeight

WIDTH = 2048
WINDOWS = 32  # of 512 tokens, as in the quickstart
PLAIN, FUSED = Layer(kernel="reference"), Layer(kernel="cpu")
OPTIONS = gptq.Options()
SCHEMES = (Scheme(4), Scheme(4, 128))


Pair = tuple[Callable[[], object], Callable[[], object]]


def in_turn(pair: Pair, runs: int) -> tuple[list[float], list[float]]:
    """Seconds of `runs` calls of each, one after the other, after one that is not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in pair:
        run()
    for _ in range(runs):
        for run, found in zip(pair, seconds, strict=True):
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
    return seconds


def show(what: str, seconds: tuple[list[float], list[float]], goal: float | None) -> None:
    """One line: medians and minima of both, and both ratios."""
    (plain, fused), (fast_plain, fast_fused) = (
        [1e3 * pick(part) for part in seconds] for pick in (statistics.median, min)
    )
    aim = "" if goal is None else f"  goal {goal:g}x"
    print(
        f"{what:<44} plain {plain:8.1f} [{fast_plain:.1f}]  fused {fused:8.1f} [{fast_fused:.1f}] "
        f"ms  {plain / fused:5.2f}x [{fast_plain / fast_fused:.2f}x]{aim}",
        flush=True,
    )


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [2048, 2048] and the Hessian of 8192 correlated tokens."""
    torch.manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH) / WIDTH**0.5
    hessian = Hessian(WIDTH)
    for _ in range(4):
        hessian.update(torch.randn(1, 2048, WIDTH) @ mixing)
    return torch.randn(WIDTH, WIDTH) * 0.02, hessian.matrix()


def solve(runs: int = 5) -> None:
    """One layer of 2048 x 2048 at 4 bits: medians [minima] of the plain loop and of the kernels."""
    keep_freed_memory()  # as in a quantization
    weight, hessian = problem()
    inner_loop(weight, hessian, runs)
    for scheme in SCHEMES:
        plain_factor, fused_factor = (_factor(hessian, each) for each in (PLAIN, FUSED))
        assert plain_factor.upper is not None  # the reference makes its inverse once
        plain = partial(_column_loop, weight, scheme, plain_factor, PLAIN)
        fused = partial(_column_loop, weight, scheme, fused_factor, FUSED)
        show(f"{scheme.name}: layer, factor given", in_turn((plain, fused), runs), None)
        plain = partial(_solve, weight, hessian, scheme, PLAIN)
        fused = partial(_solve, weight, hessian, scheme, FUSED)
        show(f"{scheme.name}: whole solve", in_turn((plain, fused), runs), 3)
        compare(plain(), fused())
    factors: Pair = (partial(_inverse, hessian), partial(_factor, hessian, FUSED))
    show("factorization", in_turn(factors, runs), None)


def inner_loop(weight: torch.Tensor, hessian: torch.Tensor, runs: int) -> None:
    """The inner loop alone: 16 blocks of 128 columns quantized, errors propagated inside them."""
    factor = _factor(hessian, PLAIN)
    columns = weight.T.contiguous()
    blocks = [(start, start + 128) for start in range(0, WIDTH, 128)]
    inverses = [factor.inverse(*block) for block in blocks]
    for scheme in SCHEMES:
        count = scheme.groups(WIDTH)
        groups = gptq._plan_groups(weight, None, factor, count, scheme, _static(scheme), "")
        grids = [column_loop._grids(groups, *block) for block in blocks]

        def run(
            loop: column_loop.Columns, scheme: Scheme = scheme, grids: list[Any] = grids
        ) -> None:
            for block, upper, (grid, index) in zip(blocks, inverses, grids, strict=True):
                loop(columns[block[0] : block[1]].clone(), upper, grid, index, scheme)

        loops = partial(run, column_loop.plain_columns), partial(run, column_loop.fused_columns)
        show(f"{scheme.name}: column loop, grids given", in_turn(loops, runs), 8)


def embedded(runs: int = 2) -> None:
    """The embedded model from calibration windows to quantized weights, loading included."""
    from harness.config.compose import compose_cells
    from harness.data import protocols
    from harness.models.model import Place, StoredModel, find_model
    from quant.calibrate.stream import quantize_model
    from quant.config import QuantizationConfig

    config = compose_cells([], False, None)[0].config
    stored, place = find_model(config.model), Place("cpu", "auto")
    assert isinstance(stored, StoredModel)
    tokenizer, model = stored.tokenizer(), stored.load(place)
    context = protocols.context_length(model.config, config.model.context)
    windows = protocols.calibration_windows(config.calib, tokenizer, context, None).windows
    windows = windows[:WINDOWS]

    def run(kernel: str) -> object:
        how = QuantizationConfig(gptq.SOLVER, Scheme(4, 128), kernel=kernel)
        return quantize_model(stored.load(place), windows, how)

    both = partial(run, "reference"), partial(run, "cpu")
    show(f"embedded model, w4g128, {len(windows)} windows", in_turn(both, runs), 2)


# [batch, heads, tokens, width]: the embedded model's calibration, GPT-2's and OPT-350M's heads at
# 2048 tokens, Llama's.
ATTENTION = ((8, 4, 512, 64), (1, 12, 2048, 64), (1, 8, 2048, 128))


def attention(runs: int = 20) -> None:
    """Causal attention in float32: by torch (plain) and by bitsweep::causal_attention (fused)."""
    print(f"instruction set {packed.cpu_isa()}")
    for batch, heads, tokens, width in ATTENTION:
        # Heads of a token side by side, as models pass them.
        query, key, value = torch.randn(3, batch, tokens, heads, width).transpose(2, 3)
        both = (
            partial(scaled_dot_product_attention, query, key, value, is_causal=True),
            partial(causal_attention, query, key, value, width**-0.5),
        )
        show(f"batch {batch}, heads {heads}, {tokens} x {width}", in_turn(both, runs), 2.5)


def compare(plain: Solution, fused: Solution) -> None:
    """How far the two results are from each other."""
    assert isinstance(plain.weight, QuantizedWeight)
    assert isinstance(fused.weight, QuantizedWeight)
    same = (plain.weight.codes == fused.weight.codes).float().mean()
    assert plain.loss is not None
    assert fused.loss is not None
    print(f"    codes equal {float(same):.4%}, loss {fused.loss / plain.loss - 1:+.4%}")


def _inverse(hessian: torch.Tensor) -> torch.Tensor:
    return _factor(hessian, PLAIN).upper


def _factor(hessian: torch.Tensor, layer: Layer) -> Factor:
    return gptq.prepare(hessian, OPTIONS, layer)


def _column_loop(weight: torch.Tensor, scheme: Scheme, factor: Factor, layer: Layer) -> Solution:
    return gptq.solve(weight, scheme, factor, OPTIONS, layer)


def _solve(weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme, layer: Layer) -> Solution:
    return _column_loop(weight, scheme, _factor(hessian, layer), layer)


def _static(scheme: Scheme) -> gptq.Options:
    return gptq.Options(static_groups=scheme.group_size is not None)
