"""One model over two real GPUs: the figures of one, and memory where it was planned."""

import pytest
import torch

from quant.blocks import find_blocks
from quant.decode.caches import DYNAMIC
from quant.decode.choose import make_decoder
from quant.measure.architectures import architecture_config
from quant.measure.dummy import build_dummy, packed_sizes
from quant.scheme import Scheme
from quant.spread.connect import connect, put, spread_of
from quant.spread.place import Over, parts_of
from quant.spread.split import Room, held_by
from tests.quant.architectures import tiny_model

COUNT = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(COUNT < 2, reason=f"needs two NVIDIA GPUs, and {COUNT} can be seen"),
]
OVER = Over((Room("cuda:0"), Room("cuda:1")))
PROMPT, TOKENS = torch.arange(3, 12)[None], 8


def alike() -> bool:
    return torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1)


def answer(model, prompt: torch.Tensor) -> tuple[list[int], torch.Tensor, str]:
    decoder = make_decoder(model, prompt, TOKENS)
    decoder.prefill(prompt)
    tokens, logits = [int(decoder.token)], [decoder.logits.clone()]
    for _ in range(TOKENS):
        decoder.step()
        tokens.append(int(decoder.token))
        logits.append(decoder.logits.clone())
    return tokens, torch.cat(logits), decoder.mode


@pytest.mark.parametrize("name", ["llama", "opt", "bloom", "gemma2", "falcon"])
def test_logits_are_those_of_one_gpu(name: str) -> None:
    whole = tiny_model(name).cuda()
    with torch.inference_mode():
        expected = whole(input_ids=PROMPT.cuda(), use_cache=False).logits
    model = tiny_model(name)
    spread = OVER.spread(model)
    tied = spread.head is None
    for path, module in model.named_modules():
        if not any(True for _ in module.children()):
            put(module, torch.device(spread.of(path)))
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    connect(model, spread)
    with torch.inference_mode():
        found = model(input_ids=PROMPT.cuda(), use_cache=False).logits
    assert found.device == torch.device("cuda:0")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if alike():
        assert torch.equal(found, expected)
    tokens, _, mode = answer(model, PROMPT.cuda())
    assert mode == DYNAMIC
    assert tokens == answer(whole, PROMPT.cuda())[0]


@pytest.mark.parametrize("scheme", [None, Scheme(4, 128)], ids=["full", "w4g128"])
def test_random_weights_lie_where_they_were_planned(scheme: Scheme | None) -> None:
    config = architecture_config("opt-1.3b")
    torch.cuda.empty_cache()
    before = [torch.cuda.memory_allocated(index) for index in range(2)]
    model = build_dummy(config, scheme, dtype=torch.float16, over=OVER, seed=1)
    taken = [torch.cuda.memory_allocated(index) - n for index, n in enumerate(before)]
    with torch.device("meta"):
        shape = type(model)(config).to(torch.float16)
    kernel = (
        "torch"
        if scheme is None
        else next(each.kernel for each in model.modules() if hasattr(each, "kernel"))
    )
    planned = held_by(parts_of(shape, packed_sizes(shape, scheme, kernel)), spread_of(model).counts)
    for found, size in zip(taken, planned, strict=True):
        assert found == pytest.approx(size, rel=0.05)
    lie = [next(iter(block.buffers()), next(block.parameters(), None)) for block in
           find_blocks(model).modules]  # fmt: skip
    assert {str(each.device) for each in lie if each is not None} == {"cuda:0", "cuda:1"}
    one = build_dummy(config, scheme, dtype=torch.float16, device="cuda:0", seed=1)
    with torch.inference_mode():
        expected = one(input_ids=PROMPT.cuda(), use_cache=False).logits
        found = model(input_ids=PROMPT.cuda(), use_cache=False).logits
    if alike():
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
