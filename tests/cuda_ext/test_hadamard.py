"""Rows times a Hadamard matrix on the CPU: instruction sets against float64 and each other."""

import pytest
import torch

from cuda_ext.hadamard import hadamard
from cuda_ext.packed import ISAS, cpu_isa
from quant.hadamard import hadamard_matrix, paley_order

DTYPES = [torch.float32, torch.float64]
# Orders 1, 2, 12, 20, 28, 36 and 344, times powers of two below and above every vector's width.
SIZES = [1, 2, 8, 12, 24, 64, 96, 160, 224, 288, 576, 1536, 4096, 11008]


def core_of(n, dtype):
    order = paley_order(n)
    return None if order == 1 else hadamard_matrix(order).T.contiguous().to(dtype)


def rows_of(n, dtype, rows=3):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(rows, n, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_the_product_of_every_size(isa, n, dtype):
    x = rows_of(n, dtype)
    expected = x.double() @ hadamard_matrix(n).double()
    found = hadamard(x, core_of(n, dtype)).double()
    allowed = 4 * torch.finfo(dtype).eps * n**0.5 * float(x.abs().max()) * max(1, n**0.25)
    assert float((found - expected).abs().max()) <= allowed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_factors_of_blocks_are_those_of_rows_by_turns(isa, dtype):
    x, factors = rows_of(96, dtype, rows=8).reshape(2, 4, 96), rows_of(96, dtype, rows=2)
    turns = x.reshape(4, 2, 96) * factors
    assert hadamard(x, core_of(96, dtype), factors).equal(
        hadamard(turns.reshape(2, 4, 96), core_of(96, dtype))
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [64, 576, 1536])
def test_the_same_bits_with_every_instruction_set_and_number_of_threads(
    library, monkeypatch, n, dtype
):
    x, found, before = rows_of(n, dtype, rows=700), [], torch.get_num_threads()
    for isa in ISAS[: ISAS.index(cpu_isa()) + 1]:
        monkeypatch.setenv("BITSWEEP_CPU_ISA", isa)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(hadamard(x, core_of(n, dtype)))
            torch.set_num_threads(before)
    assert all(each.equal(found[0]) for each in found)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.ones(2, 24), None), "n=24 is no power of two times the order 1 of core"),
        ((torch.ones(2, 24).half(), None), "x is float16; pass float32 or float64"),
        ((torch.ones(24, 2).T, None), "x is not contiguous"),
        ((torch.ones(2, 24), torch.ones(12, 11)), r"core is \[12, 11\]; expected \[12, 12\]"),
        ((torch.ones(2, 24), torch.ones(12, 12).double()), "core is float64; expected float32"),
        ((torch.ones(3, 8), None, torch.ones(2, 8)), "as many rows of factors as x has blocks"),
        ((torch.tensor(1.0), None), "x is a scalar"),
    ],
)
def test_arguments_that_do_not_fit(library, arguments, says):
    with pytest.raises(RuntimeError, match=says):
        hadamard(*arguments)


def test_no_rows_and_not_a_number(library):
    assert hadamard(torch.ones(0, 8)).shape == (0, 8)
    x = torch.ones(2, 8)
    x[1, 3] = float("nan")
    assert hadamard(x).isnan().tolist() == [[False] * 8, [True] * 8]


def test_fake_tensors_have_the_shape(library):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        assert hadamard(torch.ones(2, 3, 8)).shape == (2, 3, 8)
