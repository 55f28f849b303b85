"""Hadamard matrices of many orders, and a fast product with them. Importing this loads no torch.

A Hadamard matrix H [n, n] has entries 1 and -1 and H^T H = n I, so H / sqrt(n) is a rotation. Its
order is 1, 2 or a multiple of 4. Nothing is tabulated; the matrices are constructed:

- Sylvester: H_2n = [[H_n, H_n], [H_n, -H_n]], and more generally the Kronecker product of two;
- Paley I (J. Math. Phys. 12, 1933): order q + 1 for a prime power q = 3 mod 4;
- Paley II: order 2 (q + 1) for a prime power q = 1 mod 4.

Prime powers are p, p^2 and p^3. A width n is the product of a Paley order, as small as possible,
and a power of two: 576 = 36 * 16, 1536 = 12 * 128, 11008 = 344 * 32.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# The largest Paley order: its matrix is dense, and a product takes so many operations an entry.
LARGEST_PALEY = 1024
# Up to this order one product with the whole matrix is faster than two with its factors.
DENSE = 64


def paley_order(n: int) -> int | None:
    """Return the smallest order m, 1 or Paley's, with n = m * 2^k; None if there is none."""
    if n < 1:
        return None
    order = n >> ((n & -n).bit_length() - 1)  # the odd part of n
    while order <= n and (order == 1 or order <= LARGEST_PALEY):
        if order == 1 or _field_of(order) is not None:
            return order
        order *= 2
    return None


def largest_block(width: int, most: int) -> int:
    """Return the largest order of a Hadamard matrix up to `most` that divides a width."""
    sizes = range(min(width, most), 0, -1)
    return next(n for n in sizes if width % n == 0 and paley_order(n) is not None)


@functools.lru_cache(maxsize=32)
def hadamard_matrix(n: int) -> Tensor:
    """Return a Hadamard matrix of order n as int8 [n, n]; its first column is all 1.

    Raises ValueError for an order that the constructions do not give.
    """
    import torch

    order = paley_order(n)
    if order is None:
        raise ValueError(_unknown(n))
    result = torch.ones(1, 1, dtype=torch.int8) if order == 1 else _paley(order)
    pair = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    while len(result) < n:
        result = torch.kron(result, pair)
    return result


def hadamard_product(x: Tensor, transposed: bool = False, factors: Tensor | None = None) -> Tensor:
    """Return x diag(factors) H for x [..., n] in float32 or float64, without a product by all of H.

    H is `hadamard_matrix(n)` (its transpose if transposed), so the result is sqrt(n) times as long
    as x. factors are [n], or [blocks, n] for x [..., blocks, n]; None: 1. On a CPU with AVX2 and
    without gradients this is cuda_ext.hadamard; elsewhere torch multiplies by two factors of H, in
    O(n^1.5) operations a row. The results differ by rounding only.
    """
    n = x.shape[-1]
    if _by_operator(x):
        from cuda_ext.hadamard import hadamard

        order = paley_order(n)
        if order is None:
            raise ValueError(_unknown(n))
        core = None if order == 1 else _factor(order, not transposed, x.dtype, x.device)
        rows = None if factors is None else factors.to(x.dtype).reshape(-1, n).contiguous()
        return hadamard(x.contiguous(), core, rows)
    if factors is not None:
        x = x * factors
    left, right = _split(n)
    inner = _factor(right, transposed, x.dtype, x.device)
    if left == 1:
        return x @ inner
    # H is the Kronecker product of both, so rows of x are matrices [left, right].
    outer = _factor(left, not transposed, x.dtype, x.device)
    rows = x.reshape(-1, left, right) @ inner
    return (outer @ rows).reshape(x.shape)


def random_signs(n: int, *seed: object) -> Tensor:
    """Return n signs, 1 or -1, as int8: the bits of SHAKE-256 of the seed, on every machine."""
    import hashlib

    import torch

    text = " ".join(map(str, ("signs", *seed)))
    drawn = hashlib.shake_256(text.encode()).digest(math.ceil(n / 8))
    return unpack_signs(torch.frombuffer(bytearray(drawn), dtype=torch.uint8), n)


def pack_signs(signs: Tensor) -> Tensor:
    """Return signs [..., n] as bits, uint8 [..., ceil(n / 8)], low bits first; 1 stands for -1."""
    import torch

    bits = torch.nn.functional.pad((signs < 0).byte(), (0, -signs.shape[-1] % 8))
    places = torch.arange(8, device=signs.device)
    packed: Tensor = (bits.unflatten(-1, (-1, 8)) << places).sum(-1)
    return packed.byte()


def unpack_signs(packed: Tensor, n: int) -> Tensor:
    """Return the signs int8 [..., n] that `pack_signs` packed."""
    import torch

    places = torch.arange(8, device=packed.device, dtype=torch.uint8)
    bits = ((packed[..., None] >> places) & 1).flatten(-2)[..., :n]
    return 1 - 2 * bits.char()


def _by_operator(x: Tensor) -> bool:
    import torch

    from quant.products import operators_here

    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return plain and not (torch.is_grad_enabled() and x.requires_grad) and operators_here()


def _unknown(n: int) -> str:
    return f"no Hadamard matrix of order {n} is known here"


@functools.lru_cache(maxsize=64)
def _factor(n: int, transposed: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    matrix = hadamard_matrix(n).to(device, dtype)
    return matrix.T.contiguous() if transposed else matrix


@functools.lru_cache
def _split(n: int) -> tuple[int, int]:
    """Return orders (left, right) whose matrices' Kronecker product is hadamard_matrix(n).

    Right is a power of two, and their sum is as small as possible; left is 1 for a small n.
    """
    order = paley_order(n)
    if order is None:
        raise ValueError(_unknown(n))
    if n <= DENSE:
        return 1, n
    doublings = range((n // order).bit_length())
    left = min((order << each for each in doublings), key=lambda left: left + n // left)
    return left, n // left


def _field_of(order: int) -> tuple[int, int] | None:
    """Return (p, k) of the field GF(p^k) from which Paley makes this order; None if there is none.

    That is q = order - 1 = 3 mod 4 (I), or q = order / 2 - 1 = 1 mod 4 (II).
    """
    for q, residue in ((order - 1, 3), (order // 2 - 1, 1)):
        if order % 4 == 0 and q % 4 == residue:
            found = _prime_power(q)
            if found is not None:
                return found
    return None


def _prime_power(q: int) -> tuple[int, int] | None:
    """Return (p, k) with q = p^k for a prime p and k up to 3; None if q is no such power."""
    if q < 2:
        return None
    p = next((each for each in range(2, math.isqrt(q) + 1) if q % each == 0), q)
    k = next((each for each in (1, 2, 3) if p**each == q), None)
    return None if k is None else (p, k)


def _paley(order: int) -> Tensor:
    """Return Paley's matrix int8 [order, order], with rows negated so that column 0 is all 1."""
    import torch

    field = _field_of(order)
    assert field is not None
    characters = _characters(*field)  # Q: of the differences of the field's elements
    q = len(characters)
    core = torch.zeros(q + 1, q + 1, dtype=torch.int8)
    core[0, 1:], core[1:, 1:] = 1, characters
    one = torch.eye(q + 1, dtype=torch.int8)
    if order == q + 1:  # Q is skew: -1 is no square
        core[1:, 0] = -1
        matrix = core + one
    else:  # Q is symmetric
        core[1:, 0] = 1
        matrix = torch.kron(core, torch.tensor([[1, 1], [1, -1]], dtype=torch.int8))
        matrix += torch.kron(one, torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8))
    return matrix * matrix[:, :1]


def _characters(p: int, k: int) -> Tensor:
    """Return chi(a - b) for all elements a, b of GF(p^k), int8: 1 squares, -1 others, 0 for 0.

    An element is a polynomial of degree below k, its coefficients the digits of a number in base p.
    """
    import torch

    elements = [tuple(each // p**i % p for i in range(k)) for each in range(p**k)]
    modulus = _irreducible(p, k)
    character = torch.full((p**k,), -1, dtype=torch.int8)
    for element in elements:
        square = _square(element, modulus, p)
        character[sum(digit * p**i for i, digit in enumerate(square))] = 1
    character[0] = 0
    digits = torch.tensor(elements)
    place = torch.tensor([p**i for i in range(k)])
    differences = (digits[:, None] - digits) % p
    return character[(differences * place).sum(-1)]


def _irreducible(p: int, k: int) -> tuple[int, ...]:
    """Return c with x^k = c_0 + c_1 x + ... modulo an irreducible polynomial of degree k <= 3."""
    if k == 1:
        return (0,)
    # Of degree 2 or 3, a polynomial without a root has no factors.
    candidates = ((low, linear, *(0,) * (k - 2)) for linear in range(p) for low in range(p))
    return next(
        each
        for each in candidates
        if all((x**k - sum(c * x**i for i, c in enumerate(each))) % p for x in range(p))
    )


def _square(element: tuple[int, ...], modulus: tuple[int, ...], p: int) -> list[int]:
    """Return the coefficients of the square of an element of GF(p^k)."""
    k = len(element)
    product = [0] * (2 * k - 1)
    for (i, a), (j, b) in itertools.product(enumerate(element), repeat=2):
        product[i + j] += a * b
    for high in range(2 * k - 2, k - 1, -1):
        for i, c in enumerate(modulus):
            product[high - k + i] += product[high] * c
    return [value % p for value in product[:k]]
