"""Layers of known origin: rounded, solved on the audit's text or on another, of another base.

python -m tests.quant.audit.synthetic     print the confusion matrix over 450 layers
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quant.audit.grids import rounded, with_codes
from quant.audit.layer import Evidence, audit_layer
from quant.audit.loops import greedy
from quant.audit.moments import moments
from quant.audit.verdict import VERDICTS, judge
from quant.hessian import Factor, factorize
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.base import Layer
from quant.weight import QuantizedWeight

ORIGINS = (
    "rounded",
    "solved on this text",
    "solved, its codes drifted",
    "a weaker solver on this text",
    "solved on other text",
    "another base",
)
TOKENS_PER_INPUT = 4
SHARED = 0.9  # of the directions of a text, with another


@dataclass(frozen=True)
class Made:
    """A base weight [out, in], the Hessian of this text, and what a producer made of both."""

    weight: Tensor
    hessian: Tensor
    tokens: int
    quantized: QuantizedWeight


def make(origin: str, seed: int) -> Made:
    """A random layer: shape, scheme, options of the solver and inputs are drawn by the seed.

    The inputs of a text are correlated: few directions have most of their power, and another text
    shares 0.9 of each of them.
    """
    draw = torch.Generator().manual_seed(seed)

    def pick(values: Sequence[Any]) -> Any:
        return values[int(torch.randint(len(values), (1,), generator=draw))]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    inputs, outputs = pick((64, 96, 128)), pick((48, 96))
    scheme = Scheme(pick((2, 3, 4)), pick((None, 32, 64)), symmetric=pick((False, False, True)))
    directions = pick((inputs // 4, inputs // 2, inputs))
    power = torch.linspace(0, -3, directions).exp()[:, None]
    one, other = normal(directions, inputs) * power, normal(directions, inputs) * power
    size = torch.exp(0.5 * normal(inputs))  # inputs differ in size
    tokens = TOKENS_PER_INPUT * inputs

    def hessian(mixed: Tensor) -> Tensor:
        mixing = torch.cat([mixed, 0.1 * torch.eye(inputs)]) * size
        text = normal(tokens, len(mixing)) @ mixing
        return text.T @ text * 2 / 8

    this, apart = hessian(one), hessian(SHARED * one + (1 - SHARED**2) ** 0.5 * other)
    weight = normal(outputs, inputs) / inputs**0.5 * torch.exp(0.3 * normal(outputs, 1))
    options = gptq.Options(
        act_order=pick((False, True)),
        static_groups=pick((False, True)),
        damping=pick((0.01, 0.01, 0.05, 0.1)),
    )
    if origin == "rounded":
        return Made(weight, this, tokens, rtn.solve(weight, scheme).weight)
    solved = normal(outputs, inputs) / inputs**0.5 if origin == "another base" else weight
    weaker = seed // len(ORIGINS) % 4 if origin == "a weaker solver on this text" else None
    if weaker:
        options = replace(options, damping=(0.5, 1.0, 2.0)[weaker - 1])
    used = apart if origin == "solved on other text" else this
    layer = Layer(tokens=tokens)
    prepared = gptq.prepare(used, options, layer)
    found = gptq.solve(solved, scheme, prepared, options, layer).weight
    if weaker == 0:  # greedy, on the grids of what was solved
        like = factorize(this, options.damping, options.act_order)
        found = stepped(weight, found, greedy(moments(this, tokens), like))
    if origin == "solved, its codes drifted":
        factor = factorize(this, options.damping, options.act_order)
        found = stepped(weight, found, factor, ties=0.01, draw=draw)
    return Made(weight, this, tokens, found)


def stepped(
    weight: Tensor,
    on: QuantizedWeight,
    factor: Factor,
    ties: float = 0.0,
    until: int | None = None,
    draw: torch.Generator | None = None,
) -> QuantizedWeight:
    """A column loop one column at a time, as its coefficients say, on the grids of `on`.

    ties  a code is chosen by chance where the two levels nearest to its target are so nearly as
          near as each other, in steps: as if sums had been rounded otherwise. All later columns of
          the row are corrected for what was chosen. until: in so many columns; None: in all.
    """
    order = range(weight.shape[1]) if factor.order is None else factor.order.tolist()
    root, codes, done = factor.root.double(), on.codes.clone(), []
    apart = torch.zeros(weight.shape, dtype=torch.float64)
    weight = weight.masked_fill(factor.dead, 0)
    for step, at in enumerate(order):
        pull = apart[:, done] @ root[:step, step] / root[step, step]
        target = weight.clone()
        target[:, at] += pull.float()
        found = rounded(target, on)
        codes[:, at] = found.codes[:, at]
        if ties and (until is None or step < until):
            top = on.scheme.max_code
            for other in (found.codes.int() - 1, found.codes.int() + 1):
                beside = with_codes(on, other.clamp(0, top).to(torch.uint8))
                near, far = ((target - each.dequantize())[:, at].abs() for each in (found, beside))
                chance = torch.rand(len(weight), generator=draw) < 0.5
                tie = chance & (far - near <= ties * (far + near)) & (far > near)
                codes[:, at] = torch.where(tie, beside.codes[:, at], codes[:, at])
        apart[:, at] = (weight - with_codes(on, codes).dequantize())[:, at].double()
        done.append(at)
    return with_codes(on, codes)


def evidence(made: Made) -> Evidence:
    """The audit of a layer."""
    inputs = moments(made.hessian, made.tokens)
    return audit_layer(made.weight, made.quantized, inputs, "auto", "layer")[0]


def confusion(layers: int) -> dict[str, Counter[str]]:
    """Verdicts by origin, over `layers` layers in all."""
    found: dict[str, Counter[str]] = {origin: Counter() for origin in ORIGINS}
    for seed in range(layers):
        origin = ORIGINS[seed % len(ORIGINS)]
        found[origin][judge(evidence(make(origin, seed))).name] += 1
    return found


def table(found: dict[str, Counter[str]]) -> str:
    """The confusion matrix in Markdown."""
    names = [name for name in VERDICTS if any(counts[name] for counts in found.values())]
    lines = [f"| origin | {' | '.join(names)} |", f"| :--- |{' ---: |' * len(names)}"]
    for origin, counts in found.items():
        lines.append(f"| {origin} | {' | '.join(str(counts[name]) for name in names)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(confusion(450)))
