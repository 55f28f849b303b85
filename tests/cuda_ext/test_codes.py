"""Compiled packing, unpacking and decoding: every instruction set against Python's integers, and
against torch, which runs where no library is built."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from cuda_ext import build, codes, layout, packed
from cuda_ext.codes import COLUMNS, NIBBLES, ROWS, Words

BITS = (2, 3, 4, 5, 6, 7, 8)
AWQ = (0, 4, 1, 5, 2, 6, 3, 7)
MANY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def random_codes(rows, columns, bits, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)


def stream(row, bits):
    """One integer with code i at bit i * bits, cut into signed words of 32 bits."""
    total = sum(code << (i * bits) for i, code in enumerate(row))
    words = [(total >> (32 * i)) & 0xFFFFFFFF for i in range(-(-len(row) * bits // 32))]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def nibbles(found, places):
    """Words [columns, rows / 8] of codes [rows, columns], row by row."""
    rows, columns = found.shape
    words = np.zeros((columns, rows // 8), dtype=np.uint32)
    for row in range(rows):
        words[:, row // 8] |= found[row].numpy().astype(np.uint32) << (4 * places[row % 8])
    return torch.from_numpy(words.view(np.int32))


def values_of(found, scale, zero, group):
    """(code - zero) * scale, exact in float64 and rounded once to float32."""
    steps = found.double() - zero[:, group].double()
    return (steps * scale.float()[:, group].double()).float()


def grid_of(rows, groups, bits, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    scale = torch.randn(rows, groups, generator=generator).to(dtype)  # of both signs
    zero = torch.randint(0, 2**bits, scale.shape, dtype=torch.uint8, generator=generator)
    return scale, zero


@MANY
@given(st.sampled_from(BITS), st.integers(1, 140), st.integers(1, 700), st.integers(0, 9))
@example(3, 64, 256, 0)  # whole tiles, and whole blocks of columns
@example(7, 65, 513, 1)
@example(8, 1, 1, 2)
def test_words_of_every_shape(isa, bits, rows, columns, seed):
    found = random_codes(rows, columns, bits, seed)
    words = torch.tensor([stream(row, bits) for row in found.tolist()], dtype=torch.int32)
    assert codes.compiled(words)
    assert torch.equal(codes.pack_rows(found, bits), words)
    assert torch.equal(codes.pack_columns(found, bits), words.t())
    assert torch.equal(codes.unpack_rows(words, bits, columns), found)
    assert torch.equal(codes.unpack_columns(words.t(), bits, columns), found)
    assert torch.equal(codes.unpack_columns(words.t().contiguous(), bits, columns), found)


@pytest.mark.parametrize(("rows", "columns"), [(8, 1), (136, 17), (256, 300), (264, 5)])
def test_nibbles_of_eight_rows(isa, rows, columns):
    found = random_codes(rows, columns, 4)
    for places in (AWQ, tuple(range(8))):
        words = Words(nibbles(found, places), 4, columns, NIBBLES, places)
        assert words.shape == (rows, columns)
        assert torch.equal(words.unpack(), found)


@MANY
@given(
    st.sampled_from(BITS), st.integers(1, 70), st.integers(1, 400), st.integers(1, 150),
    st.booleans(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)  # fmt: skip
def test_values_are_rounded_once(isa, bits, rows, columns, size, scattered, dtype):
    found = random_codes(rows, columns, bits)
    group = torch.arange(columns) // size
    scale, zero = grid_of(rows, int(group.max()) + 1, bits, dtype)
    if scattered:
        group = group[torch.randperm(columns, generator=torch.Generator().manual_seed(2))]
    index = group.int() if scattered else None
    expected = values_of(found, scale, zero, group)
    streams = [Words(codes.pack_rows(found, bits), bits, columns, ROWS)]
    streams += [Words(codes.pack_columns(found, bits), bits, columns, COLUMNS)]
    if bits == 4 and rows % 8 == 0:
        streams += [Words(nibbles(found, AWQ), 4, columns, NIBBLES, AWQ)]
    for some in (found, *streams):
        out = torch.full((rows, columns), float("nan"))
        codes.decode(out, some, scale, zero, size, index)
        assert torch.equal(out.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_does_the_same_without_a_library(monkeypatch, library, threads):
    """Nothing is built for it, and no word differs; also not with more threads."""
    found = random_codes(300, 777, 3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = codes.pack_rows(found, 3), codes.pack_columns(found, 3)
    finally:
        torch.set_num_threads(before)
    words = nibbles(random_codes(16, 40, 4), AWQ)
    unpacked = Words(words, 4, 40, NIBBLES, AWQ).unpack()
    codes._is_built.cache_clear()
    monkeypatch.setattr(build, "is_loaded", lambda: False)
    monkeypatch.setattr(build, "find", lambda: None)
    try:
        assert not codes.compiled(found)
        plain = codes.pack_rows(found, 3), codes.pack_columns(found, 3)
        assert all(torch.equal(one, other) for one, other in zip(made, plain, strict=True))
        assert torch.equal(codes.unpack_rows(made[0], 3, 777), found)
        assert torch.equal(codes.unpack_columns(made[1], 3, 777), found)
        assert torch.equal(Words(words, 4, 40, NIBBLES, AWQ).unpack(), unpacked)
    finally:
        codes._is_built.cache_clear()


def test_a_library_that_is_built_is_found(monkeypatch, library):
    codes._is_built.cache_clear()
    monkeypatch.setattr(build, "is_loaded", lambda: False)
    assert codes.compiled(torch.zeros(1))
    assert not codes.compiled(torch.zeros(1, device="meta"))


def test_what_does_not_fit_is_named(library):
    found = random_codes(8, 64, 4)
    words = codes.pack_rows(found, 4)
    with pytest.raises(RuntimeError, match=r"words is \[8, 8\]; expected \[8, 9\]"):
        codes.unpack_rows(words, 4, 65)
    with pytest.raises(TypeError, match=r"words are torch\.int64; pass torch\.int32"):
        codes.unpack_rows(words.long(), 4, 64)
    with pytest.raises(ValueError, match="bits=9 is not a bit width"):
        codes.unpack_columns(words, 9, 64)
    with pytest.raises(ValueError, match="code 15 does not fit in 3 bits"):
        codes.pack_rows(found | 15, 3)
    with pytest.raises(TypeError, match=r"codes are torch\.int32; pass torch\.uint8"):
        codes.pack_columns(found.int(), 4)
    with pytest.raises(RuntimeError, match="a word of them holds 4-bit codes of eight rows"):
        Words(words, 3, 8, NIBBLES, AWQ).unpack()
    for places in ((), (0, 0, 1, 2, 3, 4, 5, 6), (8, 0, 1, 2, 3, 4, 5, 6)):
        with pytest.raises(RuntimeError, match="each of eight rows a nibble of its own"):
            Words(words, 4, 8, NIBBLES, places).unpack()
    scale, zero = grid_of(8, 2, 4)
    out, index = torch.empty(8, 64), torch.zeros(64, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"scale is \[8, 2\]; expected \[8, 4\]"):
        codes.decode(out, found, scale, zero, 16)
    with pytest.raises(RuntimeError, match=r"out is \[8, 63\]; expected \[8, 64\]"):
        codes.decode(out[:, :63], found, scale, zero, 32)
    index[5] = 2
    with pytest.raises(RuntimeError, match="column 5 is in group 2 of 2"):
        codes.decode(out, found, scale, zero, 32, index)


def test_fake_tensors_have_the_shapes_of_true_ones(library):
    codes.load()
    found = random_codes(16, 40, 4)
    words = {order: codes._pack(found, 4, order) for order in (ROWS, COLUMNS)}
    words[NIBBLES] = nibbles(found, AWQ)
    grid = grid_of(16, 2, 4)
    places = sum(place << (4 * row) for row, place in enumerate(AWQ))
    cases = [("unpack_words", (part, 4, 40, order, places)) for order, part in words.items()]
    cases += [("pack_words", (found, 4, order)) for order in (ROWS, COLUMNS)]
    cases += [("decode_codes", (torch.empty(16, 40), found, *grid, None, 20))]
    cases += [("dequantize_words", (torch.empty(16, 40), words[0], 4, 0, 0, *grid, None, 20))]
    for name, arguments in cases:
        operator = getattr(torch.ops.bitsweep, name)
        true = operator(*arguments)
        with FakeTensorMode() as mode:
            fake = operator(
                *(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments)
            )
        assert (true is None) == (fake is None)
        if true is not None:
            assert (fake.shape, fake.dtype) == (true.shape, true.dtype)


def test_packed_layers_of_all_bits_are_what_torch_packs(library):
    """The way of a checkpoint to the kernels: codes, GPTQ's words, tiles."""
    for bits in BITS:
        found = random_codes(40, 96, bits)
        words = codes.pack_columns(found, bits)
        assert torch.equal(words, layout.pack_codes(found.t(), bits, dim=0))
        if bits in (2, 3, 4, 8):
            grid = torch.ones(1, 40), codes.pack_rows(torch.ones(1, 40, dtype=torch.uint8), bits)
            tiles = packed.pack(words, *grid, None, bits=bits, in_features=96)
            found_again = packed.unpack(tiles, bits=bits, in_features=96, out_features=40)
            assert torch.equal(found_again["qweight"], words)
