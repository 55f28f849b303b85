"""Packing is an exact inverse and the bit stream of GPTQ, checked against Python's big integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cuda_ext import layout
from cuda_ext.layout import pack_codes, unpack_codes, words_for

BITS = (2, 3, 4, 5, 6, 7, 8)


def stream(codes: list[int], bits: int) -> list[int]:
    """Oracle: one big integer with code i at bit i * bits, cut into signed 32-bit words."""
    total = sum(code << (i * bits) for i, code in enumerate(codes))
    count = (len(codes) * bits + 31) // 32
    words = [(total >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def random_codes(shape: tuple[int, ...], bits: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=generator)


@given(
    bits=st.sampled_from(BITS),
    lead=st.lists(st.integers(0, 4), max_size=2),
    n=st.integers(0, 140),
    trail=st.lists(st.integers(1, 3), max_size=2),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=150, deadline=None)
def test_unpack_is_the_inverse_of_pack(
    bits: int, lead: list[int], n: int, trail: list[int], seed: int
) -> None:
    codes = random_codes((*lead, n, *trail), bits, seed)
    for dim in (len(lead), len(lead) - codes.dim()):
        words = pack_codes(codes, bits, dim=dim)
        assert words.dtype == torch.int32
        assert words.is_contiguous()
        assert words.shape == (*lead, words_for(n, bits), *trail)
        assert torch.equal(unpack_codes(words, bits, n, dim=dim), codes)


@given(bits=st.sampled_from(BITS), data=st.data())
@settings(max_examples=150, deadline=None)
def test_words_are_the_bit_stream(bits: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=100))
    words = pack_codes(torch.tensor(codes, dtype=torch.uint8), bits)
    assert words.tolist() == stream(codes, bits)


@pytest.mark.parametrize("at_once", [1, 64, 100, 1000])
@pytest.mark.parametrize("bits", BITS)
def test_chunks_make_the_same_words(
    bits: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix read along its rows and across them, its length no multiple of a chunk."""
    monkeypatch.setattr(layout, "_PACKED_AT_ONCE", at_once)
    codes = random_codes((5, 333), bits)
    expected = torch.tensor([stream(row, bits) for row in codes.tolist()], dtype=torch.int32)
    assert torch.equal(pack_codes(codes, bits), expected)
    assert torch.equal(pack_codes(codes.t(), bits, dim=0), expected.t())


@pytest.mark.parametrize("bits", BITS)
def test_every_position_and_value(bits: int) -> None:
    """One code at a time, all values at all positions of two periods, into zero neighbours."""
    for value in range(1, 2**bits, 1 if bits < 5 else 17):
        codes = torch.eye(64, dtype=torch.uint8) * value
        words = pack_codes(codes, bits)
        assert words.tolist() == [stream(row, bits) for row in codes.tolist()]
        assert torch.equal(unpack_codes(words, bits, 64), codes)


@pytest.mark.parametrize(
    ("bits", "codes", "words"),
    [
        (2, [0, 1, 2, 3] * 4, [0xE4E4E4E4]),
        (2, [3], [0x00000003]),
        (4, [1, 2, 3, 4, 5, 6, 7, 15], [0xF7654321]),
        (4, [7] * 9, [0x77777777, 0x00000007]),
        (8, [0x78, 0x56, 0x34, 0xFF], [0xFF345678]),
        # 0..7 four times: code 10 lies on bits 30-32 and code 21 on bits 63-65 of the stream.
        (3, list(range(8)) * 4, [0x88FAC688, 0xC688FAC6, 0xFAC688FA]),
        (3, [0] * 10 + [7], [0xC0000000, 0x00000001]),
        (3, [0] * 21 + [5], [0x00000000, 0x80000000, 0x00000002]),
        (5, [1, 2, 3, 4, 5, 6, 0b10111], [0xCC520C41, 0x00000005]),
        (6, [0] * 5 + [0b111001], [0x40000000, 0x0000000E]),
        (7, [0] * 4 + [0b1010011], [0x30000000, 0x00000005]),
    ],
)
def test_literal_words(bits: int, codes: list[int], words: list[int]) -> None:
    packed = pack_codes(torch.tensor(codes, dtype=torch.uint8), bits)
    assert [word & 0xFFFFFFFF for word in packed.tolist()] == words
    assert unpack_codes(packed, bits, len(codes)).tolist() == codes


def test_rows_are_columns_transposed() -> None:
    """dim=0 (qweight) is dim=-1 on the transposed codes: what makes it GPTQ's layout."""
    codes = random_codes((72, 5), 3)
    assert torch.equal(pack_codes(codes, 3, dim=0), pack_codes(codes.t(), 3).t())


def test_unpack_into_float() -> None:
    codes = random_codes((40, 7), 4)
    words = pack_codes(codes, 4, dim=0)
    assert torch.equal(unpack_codes(words, 4, 40, dim=0, dtype=torch.float32), codes.float())


@pytest.mark.parametrize("bits", BITS)
def test_layers_that_are_unpacked_in_several_chunks(bits: int) -> None:
    codes = random_codes((200, 1500), bits)
    for dim, n in ((0, 200), (1, 1500)):
        words = pack_codes(codes, bits, dim=dim)
        assert torch.equal(unpack_codes(words, bits, n, dim=dim), codes)


def test_bad_input_is_named() -> None:
    codes = random_codes((4, 8), 2)
    words = pack_codes(codes, 2)
    with pytest.raises(ValueError, match="bits=9 is not a bit width"):
        pack_codes(codes, 9)
    with pytest.raises(TypeError, match=r"torch\.int64; pass torch\.uint8"):
        pack_codes(codes.long(), 2)
    with pytest.raises(ValueError, match="code 4 does not fit in 2 bits"):
        pack_codes(torch.tensor([0, 4], dtype=torch.uint8), 2)
    with pytest.raises(TypeError, match=r"torch\.uint8; pass torch\.int32"):
        unpack_codes(codes, 2, 8)
    with pytest.raises(ValueError, match="1 words along dim -1 do not match 17 codes"):
        unpack_codes(words, 2, 17)
    with pytest.raises(ValueError, match="dim=2 is out of range"):
        unpack_codes(words, 2, 8, dim=2)
