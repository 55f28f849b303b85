"""The fused step: one layer against float64 from the packed bytes, and what it refuses."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch.nn import functional

from cuda_ext import packed
from cuda_ext.step import Activation, Norm, Place, Step
from tests.oracles.packed_layers import Layer

HIDDEN, HEADS, SHARED, WIDTH, FEED, VOCABULARY, POSITIONS = 64, 4, 2, 16, 88, 41, 24
MIXED = HEADS * WIDTH
ENDS = {
    Place.QUERY: (HIDDEN, MIXED),
    Place.KEY: (HIDDEN, SHARED * WIDTH),
    Place.VALUE: (HIDDEN, SHARED * WIDTH),
    Place.OUTPUT: (MIXED, HIDDEN),
    Place.GATE: (HIDDEN, FEED),
    Place.UP: (HIDDEN, FEED),
    Place.DOWN: (FEED, HIDDEN),
    Place.QUERY_KEY_VALUE: (HIDDEN, 3 * MIXED),
    Place.HEAD: (HIDDEN, VOCABULARY),
}
BITS = {
    Place.QUERY: 2,
    Place.KEY: 3,
    Place.VALUE: 4,
    Place.OUTPUT: 8,
    Place.GATE: 4,
    Place.UP: 3,
    Place.QUERY_KEY_VALUE: 3,
}


@dataclass(frozen=True)
class Kind:
    """What a decoder is made of."""

    activation: Activation = Activation.SILU_GATE
    biases: bool = False  # of norms, which are LayerNorms then, and of matrices
    positions: str = "rotated"
    joined: bool = False  # one matrix for query, key and value
    head_norms: bool = False
    embedding_norm: bool = False
    parallel: bool = False
    turned: int = WIDTH  # numbers of a head that are rotated

    @property
    def places(self) -> list[Place]:
        three = {Place.QUERY, Place.KEY, Place.VALUE}
        left_out = three if self.joined else {Place.QUERY_KEY_VALUE}
        left_out |= set() if self.activation == Activation.SILU_GATE else {Place.GATE}
        return [place for place in ENDS if place not in left_out]

    @property
    def shared(self) -> int:
        return HEADS if self.joined else SHARED


KINDS = {
    "llama": Kind(),
    "qwen3": Kind(head_norms=True),
    "opt": Kind(Activation.RELU, biases=True, positions="learned"),
    "bloom": Kind(Activation.GELU_TANH, True, "slopes", joined=True, embedding_norm=True),
    "neox": Kind(Activation.GELU, biases=True, joined=True, parallel=True, turned=4),
    "phi": Kind(Activation.GELU_TANH, biases=True, parallel=True, turned=6),
}
ACTIVATIONS = {
    Activation.RELU: functional.relu,
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: partial(functional.gelu, approximate="tanh"),
}


@dataclass
class Parts:
    """A decoder of one layer: tensors of the step and the float64 weights that they stand for."""

    kind: Kind
    step: Step
    weight: dict[Place, torch.Tensor]
    bias: dict[Place, torch.Tensor]
    embedding: torch.Tensor
    norms: list[Norm]  # before attention, the feed-forward part, the head; of embeddings
    head_norms: list[torch.Tensor]
    angles: torch.Tensor
    learned: torch.Tensor
    slopes: torch.Tensor
    keys: torch.Tensor


def make(
    kind: Kind = KINDS["llama"], head_type: torch.dtype = torch.float32, most_tokens: int = 8
) -> Parts:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    embedding = draw(VOCABULARY, HIDDEN)
    biases = [draw(HIDDEN) / 4 if kind.biases else None for _ in range(4)]
    norms = [Norm(1 + draw(HIDDEN) / 4, bias) for bias in biases]
    step = Step(
        embedding,
        norms[2],
        heads=HEADS,
        kv_heads=kind.shared,
        width=WIDTH,
        positions=POSITIONS,
        feed=FEED,
        activation=kind.activation,
        epsilon=1e-5,
        scale=WIDTH**-0.5,
        most_tokens=most_tokens,
        parallel=kind.parallel,
    )
    angles = torch.outer(torch.arange(POSITIONS).float(), draw(kind.turned // 2)).repeat(1, 2)
    learned, slopes = draw(POSITIONS, HIDDEN), draw(HEADS).abs() / 4
    if kind.positions == "rotated":
        step.set_rotations(angles.cos(), angles.sin())
    elif kind.positions == "learned":
        step.set_learned_positions(learned)
    else:
        step.set_slopes(slopes)
    if kind.embedding_norm:
        step.set_embedding_norm(norms[3])
    keys, values = torch.zeros(2, 1, kind.shared, POSITIONS, WIDTH)
    head_norms = [1 + draw(WIDTH) / 4 for _ in range(2)] if kind.head_norms else []
    named = dict(zip(("query_norm", "key_norm"), head_norms, strict=False))
    step.add_layer(norms[0], norms[1], keys, values, **named)
    weight, bias = {}, {}
    for place in kind.places:
        inputs, outputs = ENDS[place]
        if kind.biases and place != Place.HEAD:
            bias[place] = draw(outputs)
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
                bias=bias.get(place),
            )
            weight[place] = layer.weight.double()
        else:
            dense = (draw(outputs, inputs) / math.sqrt(inputs)).to(
                head_type if place == Place.HEAD else torch.float32
            )
            dense[::7, ::5] *= 2.0**-12  # subnormal numbers of float16 among them
            step.set_dense(0, place, dense, bias.get(place))
            weight[place] = dense.double()
    return Parts(
        kind, step, weight, bias, embedding, norms, head_norms, angles, learned, slopes, keys
    )


def expected(parts: Parts, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [1, vocabulary] of the last token, all in float64."""
    count, kind = tokens.shape[1], parts.kind

    def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()

    def norm(x: torch.Tensor, which: int) -> torch.Tensor:
        of = parts.norms[which]
        if of.bias is None:
            return rms(x, of.weight)
        return functional.layer_norm(x, (HIDDEN,), of.weight.double(), of.bias.double(), 1e-5)

    def times(x: torch.Tensor, place: Place) -> torch.Tensor:
        bias = parts.bias.get(place)
        y = x @ parts.weight[place].t()
        return y if bias is None else y + bias.double()

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(count, -1, WIDTH).transpose(0, 1)

    def turn(x: torch.Tensor) -> torch.Tensor:
        if kind.positions != "rotated":
            return x
        angles, half = parts.angles[:count].double(), kind.turned // 2
        first, rest = x[..., : kind.turned], x[..., kind.turned :]
        halves = torch.cat([-first[..., half:], first[..., :half]], -1)
        return torch.cat([first * angles.cos() + halves * angles.sin(), rest], -1)

    x = parts.embedding.double()[tokens[0]]
    if kind.positions == "learned":
        x = x + parts.learned[:count].double()
    if kind.embedding_norm:
        x = norm(x, 3)
    y = norm(x, 0)
    if kind.joined:
        made = times(y, Place.QUERY_KEY_VALUE).view(count, HEADS, 3, WIDTH)
        query, key, value = (made[:, :, part].transpose(0, 1) for part in range(3))
    else:
        query, key, value = (heads(times(y, p)) for p in (Place.QUERY, Place.KEY, Place.VALUE))
    if kind.head_norms:
        query, key = (rms(x, w) for x, w in zip((query, key), parts.head_norms, strict=True))
    query, key = turn(query), turn(key)
    key, value = (part.repeat_interleave(HEADS // kind.shared, 0) for part in (key, value))
    scores = query @ key.transpose(1, 2) * WIDTH**-0.5
    if kind.positions == "slopes":
        scores = scores + parts.slopes.double()[:, None, None] * torch.arange(count)
    scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -math.inf)
    mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(count, -1)
    attended = x + times(mixed, Place.OUTPUT)
    y = norm(x if kind.parallel else attended, 1)
    if kind.activation == Activation.SILU_GATE:
        fed = functional.silu(times(y, Place.GATE)) * times(y, Place.UP)
    else:
        fed = ACTIVATIONS[kind.activation](times(y, Place.UP))
    x = attended + times(fed, Place.DOWN)
    return times(norm(x, 2)[-1:], Place.HEAD)


TOKENS = torch.tensor([[3, 40, 0, 7, 7, 12, 9]])


@pytest.mark.parametrize("isa", packed.ISAS)
@pytest.mark.parametrize("head_type", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_against_float64_from_the_packed_bytes(kind, head_type, isa, monkeypatch) -> None:
    monkeypatch.setenv("BITSWEEP_CPU_ISA", isa)
    parts = make(KINDS[kind], head_type)
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
        again = make(KINDS[kind], head_type)
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
    with pytest.raises(RuntimeError, match="one matrix for query, key and value has as many heads"):
        parts.step.set_dense(0, Place.QUERY_KEY_VALUE, torch.zeros(3 * MIXED, HIDDEN))
    with pytest.raises(RuntimeError, match=r"step_rotate: cosine is \[24, 17\]; expected \[24, an"):
        parts.step.set_rotations(torch.zeros(24, 17), torch.zeros(24, 17))
    with pytest.raises(RuntimeError, match=r"step_learned: rows is \[23, 64\]"):
        parts.step.set_learned_positions(parts.learned[:23])
    with pytest.raises(RuntimeError, match=r"step_slopes: slopes is \[3\]"):
        parts.step.set_slopes(parts.slopes[:3])
    norms = parts.norms[:2]
    parts.step.add_layer(*norms, parts.keys, parts.keys)
    with pytest.raises(RuntimeError, match="the matrix of query of layer 1 is missing"):
        run(TOKENS, 0, logits)


OF_LAYERS = [
    pytest.param(name, place, id=f"{name}-{place.name}")
    for name, kind in KINDS.items()
    for place in kind.places
    if place != Place.HEAD
]


@pytest.mark.parametrize(("kind", "place"), OF_LAYERS)
def test_a_matrix_that_is_missing_is_named(kind, place) -> None:
    whole = make(KINDS[kind])
    norms, cache = whole.norms[:2], torch.zeros_like(whole.keys)
    whole.step.add_layer(*norms, cache, cache)
    for other in whole.kind.places:
        if other not in (place, Place.HEAD):
            whole.step.set_dense(1, other, torch.zeros(ENDS[other][::-1]))
    names = {Place.QUERY_KEY_VALUE: "query"}
    missing = names.get(place, place.name.lower())
    with pytest.raises(RuntimeError, match=f"the matrix of {missing} of layer 1 is missing"):
        whole.step.run(TOKENS, 0, torch.zeros(1, VOCABULARY))


@pytest.mark.parametrize("kind", KINDS)
def test_the_workspace_is_that_of_the_activations_of_so_many_tokens(kind) -> None:
    whole = make(KINDS[kind])
    step, shared = whole.step, whole.kind.shared * WIDTH
    # Hidden, normed and sum; query and mixed; key and value; up and what it is made to.
    rows = 3 * HIDDEN + 2 * MIXED + 2 * shared + 2 * FEED
    rows += 3 * MIXED * whole.kind.joined + FEED * (whole.kind.activation == Activation.SILU_GATE)
    assert step.workspace_bytes(8) == 8 * step.workspace_bytes(1)
    lanes = step.workspace_bytes(1) // 4 - rows  # inputs in the order of the packed products
    inputs = HIDDEN + MIXED + FEED
    assert inputs <= lanes <= 2 * inputs
    with pytest.raises(RuntimeError, match="step_workspace: 9 tokens; pass 1 to 8"):
        step.workspace_bytes(9)


def test_a_step_that_is_gone_is_closed() -> None:
    parts = make()
    number = parts.step._number
    del parts
    with pytest.raises(RuntimeError, match=f"step_run: step={number} is none that is open"):
        torch.ops.bitsweep.step_run(
            number, TOKENS, 0, torch.zeros(1, VOCABULARY), torch.zeros(3, dtype=torch.float64)
        )
