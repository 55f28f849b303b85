"""The whole model of an audit: what its codes cost, and what the solver's would, at equal bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.config.schema import ModelConfig
from harness.models.folders import load_model
from harness.suites import comparing
from harness.suites.comparison import Comparison
from harness.suites.logits import Logits

if TYPE_CHECKING:
    from harness.data.protocols import TokenWindows
    from harness.records.record import Metric
    from harness.suites.base import SuiteContext
    from harness.suites.reading import Texts
    from quant.audit.run import Resolved


@torch.inference_mode()
def compare_whole(
    context: SuiteContext, config: Texts, base: Path, resolved: Resolved
) -> list[Metric]:
    """Compare checkpoint and re-solved model with the base on every protocol of `config`.

    The base runs first; of its windows the hidden states are kept. Then its layers get the solver's
    weights, so that two models are in memory at a time. Of a GGUF file the layers of the model
    itself get them: its embeddings are quantized too, and equal bytes keep them.
    """
    from quant.blocks import set_weight_matrix
    from quant.checkpoint.loader import load
    from quant.experts import unfuse

    texts = {name: comparing.windows_of(context, config, name) for name in config.protocols}
    described = ModelConfig(name=base.name, source="local", dtype=context.dtype)
    model = load_model(base, described, context.device)
    windows = [(name, window) for name, each in texts.items() for window in each.windows]
    full = [Logits(model, window[None].to(context.device)) for _, window in windows]
    if context.packed is None:
        assert context.source is not None
        own = load_model(context.source, described, context.device)
        found = {"checkpoint": _against(full, own, windows, context)}
        for name, (weight, _) in resolved.items():
            set_weight_matrix(own.get_submodule(name), weight.dequantize(), name)
        found["resolved"] = _against(full, own, windows, context)
        return [metric for name, text in texts.items() for metric in _metrics(text, name, found)]
    packed = load(context.packed, context.kernel, context.device, getattr(torch, context.dtype))
    found = {"checkpoint": _against(full, packed, windows, context)}
    del packed
    unfuse(model)
    for name, (weight, coordinates) in resolved.items():
        values = coordinates.unscaled(weight.dequantize())
        set_weight_matrix(model.get_submodule(name), values, name)
    found["resolved"] = _against(full, model, windows, context)
    return [metric for name, text in texts.items() for metric in _metrics(text, name, found)]


def _against(
    full: list[Logits],
    model: object,
    windows: list[tuple[str, torch.Tensor]],
    context: SuiteContext,
) -> dict[str, Comparison]:
    comparisons: dict[str, Comparison] = {}
    for at, ((name, window), first) in enumerate(zip(windows, full, strict=True)):
        second = Logits(model, window[None].to(context.device))
        comparisons.setdefault(name, Comparison()).add(first, second)
        context.progress(at + 1, len(windows), name)
    return comparisons


def _metrics(
    text: TokenWindows, name: str, found: dict[str, dict[str, Comparison]]
) -> Iterator[Metric]:
    protocol = text.protocol
    notes = {
        "protocol": f"{protocol.id} v{protocol.version}: {protocol.summary}",
        "text": text.source,
        "token_hash": text.token_hash,
        "windows": str(len(text.windows)),
        "stderr": "over windows",
    }
    for prefix, of in (("", "checkpoint"), ("resolved_", "resolved")):
        comparison, said = found[of][name], notes | {"of": f"base || {of}"}
        yield next(comparing.figures(protocol.id, f"{prefix}kl_divergence", comparison, said))
        yield comparing.rate(protocol.id, f"{prefix}top1_flip_rate", comparison.flip_rate, said)
