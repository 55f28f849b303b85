"""A model over several devices computes, bit for bit, what it computes on one."""

import pytest
import torch

from quant.blocks import find_blocks
from quant.decode.caches import DynamicDecoder
from tests.quant.architectures import CONFIGS, tiny_model
from tests.quant.spread.several import here, several, spread_loaded

TOKENS = 3


def tokens_of(length: int = 7) -> torch.Tensor:
    return torch.randint(3, 96, (1, length), generator=torch.Generator().manual_seed(4))


@torch.inference_mode()
def answer(model, prompt: torch.Tensor, device: str = "cpu") -> tuple[list[int], torch.Tensor]:
    """The greedy tokens with the KV cache, and the logits behind them."""
    decoder = DynamicDecoder(model)
    decoder.prefill(prompt.to(device))
    tokens, logits = [int(decoder.token)], [here(decoder.logits)]
    for _ in range(TOKENS):
        decoder.step()
        tokens.append(int(decoder.token))
        logits.append(here(decoder.logits))
    return tokens, torch.cat(logits)


def model_of(name: str, tied: bool):
    return tiny_model(name, tie_word_embeddings=tied)


@pytest.mark.parametrize(("name", "count"), [*((name, 3) for name in CONFIGS), ("llama", 2)])
def test_logits_and_tokens_are_those_of_one_device(name: str, count: int) -> None:
    tied = name in ("opt", "gpt2", "gemma2", "bloom")
    model, prompt = model_of(name, tied), tokens_of()
    with torch.inference_mode():
        whole = model(input_ids=prompt, use_cache=False).logits
    tokens, logits = answer(model, prompt)
    with several():
        found = spread_loaded(model, count)
        assert (found.head is None) == tied
        with torch.inference_mode():
            made = model(input_ids=prompt.to(found.home), use_cache=False).logits
        assert made.device == torch.device(found.home)
        assert torch.equal(here(made), whole)
        again, values = answer(model, prompt, found.home)
        assert again == tokens
        assert torch.equal(values, logits)
    lie = [next(block.parameters()).device for block in find_blocks(model).modules]
    assert [str(each) for each in lie] == [found.of_block(index) for index in range(len(lie))]
    assert len(set(lie)) == count
