"""Memory of measuring what candidates of scheme=auto cost a block's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from quant.allocation import KLD, Allocation, AskedScheme


def choice_items(
    scheme: AskedScheme,
    layers: Sequence[tuple[int, int]],
    hidden: int,
    logits: Callable[[int], int],
    number: int,
) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Yield name, bytes and phases of what is in memory while candidates are measured.

    layers (outputs, inputs) of a block, hidden features. logits(tokens) are the bytes of a model's
    logits in float32; number those of a value.
    """
    if not isinstance(scheme, Allocation):
        return
    if scheme.sensitivity != KLD:
        widest = max(inputs for _, inputs in layers)
        yield "the Hessian beside its factor", number * widest**2, ("factor", "solve")
        return
    # One for each layer and candidate, and those of full precision at the block and at the end.
    models = len(layers) * len(scheme.every) + 2
    numbers = models * scheme.tokens * hidden + 2 * logits(scheme.tokens) // 4
    yield "models with one layer rounded", numbers * number, ("check",)
