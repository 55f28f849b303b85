"""The fused step: one layer against float64 from the packed bytes, and what it refuses."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

from cuda_ext import packed
from cuda_ext.step import Place, Step
from tests.oracles.packed_layers import Layer

HIDDEN, HEADS, SHARED, WIDTH, FEED, VOCABULARY, POSITIONS = 64, 4, 2, 16, 88, 41, 24
ENDS = {
    Place.QUERY: (HIDDEN, HEADS * WIDTH),
    Place.KEY: (HIDDEN, SHARED * WIDTH),
    Place.VALUE: (HIDDEN, SHARED * WIDTH),
    Place.OUTPUT: (HEADS * WIDTH, HIDDEN),
    Place.GATE: (HIDDEN, FEED),
    Place.UP: (HIDDEN, FEED),
    Place.DOWN: (FEED, HIDDEN),
    Place.HEAD: (HIDDEN, VOCABULARY),
}
BITS = {Place.QUERY: 2, Place.KEY: 3, Place.VALUE: 4, Place.OUTPUT: 8, Place.GATE: 4, Place.UP: 3}


@dataclass
class Parts:
    """A decoder of one layer: tensors of the step and the float64 weights that they stand for."""

    step: Step
    weight: dict[Place, torch.Tensor]
    embedding: torch.Tensor
    norms: list[torch.Tensor]
    angles: torch.Tensor
    keys: torch.Tensor


def make(head_type: torch.dtype = torch.float32, most_tokens: int = 8) -> Parts:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    embedding, norms = draw(VOCABULARY, HIDDEN), [1 + draw(HIDDEN) / 4 for _ in range(3)]
    angles = torch.outer(torch.arange(POSITIONS).float(), draw(WIDTH // 2)).repeat(1, 2)
    step = Step(
        embedding,
        norms[2],
        angles.cos(),
        angles.sin(),
        heads=HEADS,
        kv_heads=SHARED,
        feed=FEED,
        epsilon=1e-5,
        scale=WIDTH**-0.5,
        most_tokens=most_tokens,
    )
    keys, values = torch.zeros(2, 1, SHARED, POSITIONS, WIDTH)
    step.add_layer(norms[0], norms[1], keys, values)
    weight = {}
    for place, (inputs, outputs) in ENDS.items():
        if place in BITS:
            layer = Layer(BITS[place], inputs, outputs, 32, "cpu")
            step.set_packed(
                0,
                place,
                layer.packed,
                bits=layer.bits,
                in_features=inputs,
                out_features=outputs,
                group_size=32,
            )
            weight[place] = layer.weight.double()
        else:
            dense = (draw(outputs, inputs) / math.sqrt(inputs)).to(
                head_type if place == Place.HEAD else torch.float32
            )
            step.set_dense(0, place, dense)
            weight[place] = dense.double()
    return Parts(step, weight, embedding, norms, angles, keys)


def expected(parts: Parts, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [1, vocabulary] of the last token, all in float64."""
    count = tokens.shape[1]

    def norm(x: torch.Tensor, which: int) -> torch.Tensor:
        factor = (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
        return x * factor * parts.norms[which].double()

    def heads(x: torch.Tensor, place: Place) -> torch.Tensor:
        return (x @ parts.weight[place].t()).view(count, -1, WIDTH).transpose(0, 1)

    def turn(x: torch.Tensor) -> torch.Tensor:
        angles = parts.angles[:count].double()
        halves = torch.cat([-x[..., WIDTH // 2 :], x[..., : WIDTH // 2]], -1)
        return x * angles.cos() + halves * angles.sin()

    x = parts.embedding.double()[tokens[0]]
    y = norm(x, 0)
    query, key = turn(heads(y, Place.QUERY)), turn(heads(y, Place.KEY))
    key, value = (part.repeat_interleave(2, 0) for part in (key, heads(y, Place.VALUE)))
    scores = query @ key.transpose(1, 2) * WIDTH**-0.5
    scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -math.inf)
    mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(count, -1)
    x = x + mixed @ parts.weight[Place.OUTPUT].t()
    y = norm(x, 1)
    gated = functional.silu(y @ parts.weight[Place.GATE].t()) * (y @ parts.weight[Place.UP].t())
    x = x + gated @ parts.weight[Place.DOWN].t()
    return norm(x, 2)[-1:] @ parts.weight[Place.HEAD].t()


TOKENS = torch.tensor([[3, 40, 0, 7, 7, 12, 9]])


@pytest.mark.parametrize("isa", packed.ISAS)
@pytest.mark.parametrize("head_type", [torch.float32, torch.bfloat16])
def test_a_layer_against_float64_from_the_packed_bytes(isa, head_type, monkeypatch) -> None:
    monkeypatch.setenv("BITSWEEP_CPU_ISA", isa)
    parts = make(head_type)
    logits = torch.full((1, VOCABULARY), math.nan)
    try:
        parts.step.run(TOKENS, 0, logits)
    except RuntimeError as error:
        pytest.skip(str(error))
    wanted = expected(parts, TOKENS)
    assert (logits - wanted).abs().max() < 1e-5 * wanted.abs().max()
    # In parts of several tokens the same bits; one by one within rounding where one row
    # is multiplied by sums of whole numbers. The keys of a first part are in the cache either way.
    for cuts in ([1] * TOKENS.shape[1], [4, 3]):
        again = make(head_type)
        found, at = torch.full_like(logits, math.nan), 0
        for count in cuts:
            again.step.run(TOKENS[:, at : at + count].contiguous(), at, found)
            at += count
        if isa != "portable" and 1 in cuts:
            assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
            torch.testing.assert_close(again.keys, parts.keys, rtol=0, atol=1e-4)
        else:
            assert torch.equal(found, logits)
            assert torch.equal(again.keys, parts.keys)


def test_what_does_not_fit_is_named() -> None:
    parts, logits = make(), torch.zeros(1, VOCABULARY)
    run = parts.step.run
    with pytest.raises(RuntimeError, match="step_run: token 41 is none of the vocabulary of 41"):
        run(torch.tensor([[41]]), 0, logits)
    with pytest.raises(RuntimeError, match="step_run: position=20 and 7 tokens go past the 24"):
        run(TOKENS, 20, logits)
    with pytest.raises(RuntimeError, match="step_run: 9 tokens; pass 1 to 8"):
        run(torch.zeros(1, 9).long(), 0, logits)
    with pytest.raises(RuntimeError, match="step_run: tokens is int32; expected int64"):
        run(TOKENS.int(), 0, logits)
    with pytest.raises(RuntimeError, match=r"step_run: logits is \[1, 40\]"):
        run(TOKENS, 0, logits[:, :40].clone())
    with pytest.raises(RuntimeError, match="the matrix of gate takes 88 inputs to 64 outputs"):
        parts.step.set_dense(0, Place.GATE, torch.zeros(HIDDEN, FEED))
    with pytest.raises(RuntimeError, match="step_dense: layer=1 of 1"):
        parts.step.set_dense(1, Place.GATE, torch.zeros(FEED, HIDDEN))
    with pytest.raises(RuntimeError, match="step_layer: keys is"):
        parts.step.add_layer(*parts.norms[:2], parts.keys[:, :1], parts.keys)
    norms = parts.norms[:2]
    parts.step.add_layer(*norms, parts.keys, parts.keys)
    with pytest.raises(RuntimeError, match="the matrix of query of layer 1 is missing"):
        run(TOKENS, 0, logits)


def test_a_step_that_is_gone_is_closed() -> None:
    parts = make()
    number = parts.step._number
    del parts
    with pytest.raises(RuntimeError, match=f"step_run: step={number} is none that is open"):
        torch.ops.bitsweep.step_run(
            number, TOKENS, 0, torch.zeros(1, VOCABULARY), torch.zeros(3, dtype=torch.float64)
        )
