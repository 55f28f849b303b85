"""Hadamard matrices: every order is orthogonal, and the fast product is the dense one."""

import hashlib

import pytest
import torch

from quant.hadamard import (
    hadamard_matrix,
    hadamard_product,
    largest_block,
    pack_signs,
    paley_order,
    random_signs,
    unpack_signs,
)

# Every order up to 260, then those that widths of models need, of each construction.
ORDERS = [n for n in range(1, 261) if paley_order(n)] + [284, 344, 924]


@pytest.mark.parametrize("n", ORDERS)
def test_matrices_are_orthogonal_with_a_first_column_of_ones(n: int) -> None:
    matrix = hadamard_matrix(n).to(torch.int32)
    assert torch.equal(matrix.abs(), torch.ones(n, n, dtype=torch.int32))
    assert torch.equal(matrix.T @ matrix, n * torch.eye(n, dtype=torch.int32))
    assert bool((matrix[:, 0] == 1).all())


def test_the_orders_are_those_of_paley_and_sylvester() -> None:
    """An order above 2 is a multiple of 4; up to 200 these alone need other constructions."""
    assert [n for n in range(1, 200) if n % 4 and paley_order(n)] == [1, 2]
    assert [n for n in range(4, 200, 4) if not paley_order(n)] == [92, 116, 156, 172, 184, 188]


@pytest.mark.parametrize(
    ("width", "order"),
    [
        (128, 1), (576, 36), (1536, 12), (960, 60), (896, 28), (4864, 76), (2560, 20),
        (6656, 52), (2816, 44), (11008, 344), (13824, 108), (18944, 148), (29568, 924),
        (3840, 60), (13696, None), (4, 1), (3, None), (0, None), (-4, None),
    ],
)  # fmt: skip
def test_widths_of_models_have_the_smallest_order(width: int, order: int | None) -> None:
    assert paley_order(width) == order


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 12, 64, 72, 128, 576, 1536, 2752])
def test_the_fast_product_is_the_dense_one(n: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
    matrix = hadamard_matrix(n).double()
    close = {"rtol": 0, "atol": 4 * torch.finfo(dtype).eps * n}
    for found, expected in (
        (hadamard_product(x), x.double() @ matrix),
        (hadamard_product(x, transposed=True), x.double() @ matrix.T),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, **close)


def test_a_width_without_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="no Hadamard matrix of order 92"):
        hadamard_matrix(92)
    with pytest.raises(ValueError, match="no Hadamard matrix of order 172"):
        hadamard_product(torch.zeros(1, 172))


@pytest.mark.parametrize(
    ("width", "most", "block"),
    [(13696, 13696, 128), (172, 172, 4), (576, 9000, 576), (576, 128, 96), (50, 50, 2), (7, 7, 1)],
)
def test_blocks_that_divide_a_width(width: int, most: int, block: int) -> None:
    assert largest_block(width, most) == block


@pytest.mark.parametrize("n", [1, 7, 8, 20, 576])
def test_signs_are_bits_of_a_hash(n: int) -> None:
    """So that they are the same on every machine, whatever its generators."""
    drawn = hashlib.shake_256(b"signs 5 a layer").digest((n + 7) // 8)
    expected = [1 - 2 * (drawn[i // 8] >> i % 8 & 1) for i in range(n)]
    signs = random_signs(n, 5, "a layer")
    assert signs.tolist() == expected
    packed = pack_signs(torch.stack([signs, -signs]))
    assert packed.shape == (2, (n + 7) // 8)
    assert torch.equal(unpack_signs(packed, n), torch.stack([signs, -signs]))
    assert n < 20 or signs.tolist() != random_signs(n, 6, "a layer").tolist()
