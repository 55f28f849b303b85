"""The operations that a perplexity needs against those that torch counts."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.perplexity import operations
from tests.quant.architectures import tiny_model


def test_operations_are_those_that_torch_counts() -> None:
    """torch counts the masked half of eager attention too, and the logits of the last position."""
    model, tokens = tiny_model("opt", attn_implementation="eager"), 24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randint(3, 90, (1, tokens)))
    masked = 4 * 3 * 32 * (tokens * tokens - tokens * (tokens + 1) // 2)
    last = 2 * 32 * 96
    assert operations(model, [tokens]) == counter.get_total_flops() - masked - last
    assert operations(model, [tokens, 3]) == operations(model, [tokens]) + operations(model, [3])
