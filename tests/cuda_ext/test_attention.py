"""Causal attention on the CPU: every instruction set against softmax(Q K^T) V in float64."""

import ctypes

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils import deterministic

from cuda_ext.attention import WIDTHS, causal_attention

SHAPES = [  # batch, heads, kv heads, tokens, width
    (1, 1, 1, 1, 16),
    (2, 4, 2, 97, 64),
    (1, 2, 1, 600, 80),
    (1, 1, 1, 1500, 128),
    (1, 2, 2, 65, 256),
]


def spread(tensor, layout):
    """The same numbers [batch, heads, tokens, width] elsewhere in memory, NaN between them."""
    batch, heads, tokens, width = tensor.shape
    if layout == "tokens first":  # what transformers passes
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "fused":  # a slice of one product for query, key and value, at an odd address
        wide = torch.full((batch, tokens, heads, 3 * width + 1), float("nan"))
        wide[..., width + 1 : 2 * width + 1] = tensor.transpose(1, 2)
        return wide[..., width + 1 : 2 * width + 1].transpose(1, 2)
    return tensor


LAYOUTS = ("dense", "tokens first", "fused")


def inputs(shape, seed=0, layouts=("dense",) * 3):
    batch, heads, shared, tokens, width = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [(batch, count, tokens, width) for count in (heads, shared, shared)]
    tensors = [torch.randn(*size, generator=generator) for size in sizes]
    return [spread(tensor, layout) for tensor, layout in zip(tensors, layouts, strict=True)]


def textbook(query, key, value, scale):
    """float64, one head after the other, the whole matrix of scores."""
    batch, heads, tokens, _ = query.shape
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    out = torch.empty(query.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            shared = h // (heads // key.shape[1])
            scores = scale * query[b, h].double() @ key[b, shared].double().T
            weights = scores.masked_fill(later, -torch.inf).softmax(-1)
            out[b, h] = weights @ value[b, shared].double()
    return out


def torchs(query, key, value, scale):
    """torch's own float32 result, the yardstick of the error."""
    dense = [t.contiguous() for t in (query, key, value)]
    return functional.scaled_dot_product_attention(
        *dense, is_causal=True, scale=scale, enable_gqa=True
    )


def assert_close(query, key, value, scale, *, strict=False):
    """At most twice torch's error, and a few ulp.

    A handful of scores that torch happens to round well says little, so unless `strict` a quarter
    of an ulp of sum |q_i k_i|, the size at which a score rounds, is allowed besides.
    """
    found = causal_attention(query, key, value, scale)
    expected = textbook(query, key, value, scale)
    ulps = 4.0
    if not strict:
        shared = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        ulps += float((query.abs() @ shared.abs().mT).max()) * scale / 4
    allowed = 2 * float((torchs(query, key, value, scale) - expected).abs().max())
    floor = ulps * torch.finfo(torch.float32).eps * float(value.abs().max())
    assert found.shape == query.shape
    assert float((found - expected).abs().max()) <= allowed + floor
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_at_most_twice_the_error_of_torch(isa, shape):
    for scale in (shape[-1] ** -0.5, 1.0):
        assert_close(*inputs(shape), scale, strict=True)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 130),
    st.sampled_from(WIDTHS),
    st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    st.floats(0.01, 2),
)
@example(1, 1, 1, 64, 16, LAYOUTS, 0.25)
@example(1, 1, 1, 128, 48, LAYOUTS, 0.25)
@example(1, 2, 3, 129, 256, LAYOUTS[::-1], 0.25)
def test_every_shape_and_layout(isa, batch, shared, group, tokens, width, layouts, scale):
    assert_close(*inputs((batch, shared * group, shared, tokens, width), tokens, layouts), scale)


def test_one_head_of_key_for_all_by_a_stride_of_zero(isa):
    query, key, value = inputs((2, 6, 1, 70, 32))
    found = causal_attention(query, key.expand(2, 6, 70, 32), value.expand(2, 6, 70, 32), 0.2)
    assert torch.equal(found, causal_attention(query, key, value, 0.2))


@pytest.mark.parametrize("largest", [1e4, 1e6])
def test_huge_scores(isa, largest):
    query, key, value = inputs((1, 2, 2, 150, 64))
    factor = (largest / float((query @ key.mT).abs().max())) ** 0.5
    assert torch.isfinite(assert_close(query * factor, key * factor, value, 1.0)).all()


def test_scores_that_rise_and_fall_from_tile_to_tile(isa):
    """The sums so far are scaled to nothing, or later tiles weigh nothing."""
    query, key, value = inputs((1, 1, 1, 300, 16))
    slope = torch.linspace(-20, 20, 300)[:, None]
    for steeper in (slope, -slope):  # scores from -320 to 320
        assert_close(torch.ones_like(query), key + steeper, value, 1.0)


def test_equal_scores_give_the_mean_of_what_is_seen(isa):
    _, key, value = inputs((1, 1, 1, 200, 32))
    found = causal_attention(torch.zeros(1, 1, 200, 32), key, value, 1.0)
    mean = value.double().cumsum(2) / torch.arange(1, 201)[:, None]
    assert float((found - mean).abs().max()) < 1e-6


def test_tokens_that_see_themselves_alone_return_their_value_exactly(isa):
    keys = 100 * torch.eye(112)[None, None]
    value = torch.randn(1, 1, 112, 112, generator=torch.Generator().manual_seed(0))
    assert torch.equal(causal_attention(keys, keys, value, 1.0), value)


def test_later_tokens_change_nothing(isa):
    query, key, value = inputs((1, 2, 2, 131, 48))
    whole = causal_attention(query, key, value, 0.3)
    for tokens in (1, 15, 64, 66, 130):
        first = [t[:, :, :tokens] for t in (query, key, value)]
        # Strips and tiles of a shorter sequence are those of the longer one.
        assert torch.equal(causal_attention(*first, 0.3), whole[:, :, :tokens])


def test_the_output_lies_as_the_next_product_reads_it(isa):
    query, key, value = inputs((2, 3, 3, 20, 16))
    found = causal_attention(query, key, value, 1.0)
    assert found.transpose(1, 2).is_contiguous()
    assert causal_attention(query[:0], key[:0], value[:0], 1.0).shape == (0, 3, 20, 16)


def test_what_memory_held_before_does_not_show(isa, monkeypatch):
    arguments = (*inputs((1, 2, 1, 77, 32)), 0.2)
    expected = causal_attention(*arguments)
    libc = ctypes.CDLL(None)
    perturb = -6  # M_PERTURB: memory that is handed out holds the complement of this byte
    monkeypatch.setattr(deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)  # NaN in what torch hands out
    assert libc.mallopt(perturb, 0x80) == 1
    try:
        assert torch.isnan(expected.new_empty(3)).all()
        found = causal_attention(*arguments)
    finally:
        libc.mallopt(perturb, 0)
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found, expected)


def test_a_nan_reaches_the_rows_that_see_it(isa):
    query, key, value = inputs((1, 1, 1, 140, 16))
    clean = causal_attention(query, key, value, 1.0)
    key[0, 0, 70, 3] = float("nan")
    found = causal_attention(query, key, value, 1.0)
    assert found[:, :, 70:].isnan().all()
    assert torch.equal(found[:, :, :70], clean[:, :, :70])


def test_the_same_bits_with_any_number_of_threads_and_every_time(isa):
    before = torch.get_num_threads()
    try:
        for shape in ((2, 3, 1, 130, 32), (1, 1, 1, 300, 64)):
            arguments = (*inputs(shape), 0.2)
            torch.set_num_threads(1)
            expected = causal_attention(*arguments)
            for threads in (1, 2, 3) * 20:
                torch.set_num_threads(threads)
                assert torch.equal(causal_attention(*arguments), expected)
    finally:
        torch.set_num_threads(before)


def test_fake_tensors_and_opcheck(library):
    arguments = (*inputs((1, 4, 2, 9, 16), layouts=LAYOUTS), 0.2)
    torch.library.opcheck(
        torch.ops.bitsweep.causal_attention,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )


def call(**changes):
    query, key, value = inputs((1, 4, 2, 9, 16))
    arguments = {"query": query, "key": key, "value": value, "scale": 1.0, **changes}
    return causal_attention(**arguments)


def zeros(*shape, **settings):
    return torch.zeros(*shape, **settings)


WRONG = [
    ({"query": zeros(1, 4, 9, 16).double()}, "query is float64; expected float32"),
    ({"key": zeros(1, 2, 9, 16).half()}, "key is float16; expected float32"),
    ({"value": zeros(1, 2, 9, 16).bfloat16()}, "value is bfloat16; expected float32"),
    ({"query": zeros(4, 9, 16)}, r"query is \[4, 9, 16\]; expected \[batch, heads, tokens, width"),
    ({"key": zeros(2, 9, 16)}, r"key is \[2, 9, 16\]; expected \[batch, kv_heads, tokens, width"),
    ({"key": zeros(1, 2, 8, 16)}, r"key is \[1, 2, 8, 16\]; expected \[1, 2, 9, 16\]"),
    ({"value": zeros(1, 2, 9, 32)}, r"value is \[1, 2, 9, 32\]; expected \[1, 2, 9, 16\]"),
    ({"value": zeros(1, 4, 9, 16)}, r"value is \[1, 4, 9, 16\]; expected \[1, 2, 9, 16\]"),
    ({"query": zeros(1, 3, 9, 16)}, "query has 3 heads and key 2"),
    ({"query": zeros(1, 4, 16, 9).mT}, "last dimension of query is not dense .stride 9."),
    ({"key": zeros(1, 2, 9, 32)[..., ::2]}, r"dense .stride 2.; pass key.contiguous\(\)"),
    ({"scale": 0.0}, "scale=0; pass a positive, finite number"),
    ({"scale": float("inf")}, "scale=inf"),
    (
        {"value": zeros(1, 2, 9, 16, device="meta")},
        "value is on meta; this operator is for the CPU",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[case[1][:24] for case in WRONG])
def test_wrong_arguments_are_named(library, changes, message):
    with pytest.raises(RuntimeError, match=f"causal_attention: .*{message}"):
        call(**changes)
    call()


@pytest.mark.parametrize(("tokens", "width"), [(0, 16), (9, 8), (9, 24), (9, 272), (9, 0)])
def test_sizes_that_do_not_fit_are_named(library, tokens, width):
    named = "query has no token" if tokens == 0 else f"width={width} of a head; pass a multiple of"
    with pytest.raises(RuntimeError, match=f"causal_attention: {named}"):
        causal_attention(*[zeros(1, 2, tokens, width)] * 3, 1.0)
