"""Large float32 matrix products of the solver: choice of library, and symmetric products.

On the CPU torch.mm calls MKL, which uses only AVX2 on processors that are not made by Intel.
oneDNN, which torch also ships, uses AVX-512 wherever it exists (measured on a Zen 5: 2.1 times as
fast). Without AVX-512 MKL is the faster one, by 8 to 15 %, and compiles no kernel for every shape
of a product, so there torch.mm multiplies. torch offers oneDNN for plain tensors through one
operator only, a private one that its compiler calls. If that operator is missing, torch.mm
multiplies and the log says so once; results differ by rounding only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from cuda_ext import gram, ops, packed
from quant.tiling import strips

_log = logging.getLogger("quant")

# With fewer multiplications, a call of oneDNN costs more than it saves.
ONEDNN_PRODUCTS = 1 << 21

_torch_alone: ContextVar[bool] = ContextVar("torch_alone", default=False)


@contextmanager
def torch_alone(alone: bool) -> Iterator[None]:
    """If `alone`, use torch.mm for every product inside (kernel="reference" does)."""
    token = _torch_alone.set(alone)
    try:
        yield
    finally:
        _torch_alone.reset(token)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a [m, k] @ b [k, n] in their dtype (float32 or float64), without reduced precision."""
    if not _by_onednn(a, b):
        return a @ b
    # oneDNN multiplies by the transpose; operands that are not dense are slow there.
    weight = b.T if b.is_contiguous() or b.T.is_contiguous() else b.T.contiguous()
    return _onednn_linear(a.contiguous(), weight, None)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear with the product of `product`, if no gradient is required."""
    if torch.is_grad_enabled() or input.device.type != "cpu" or weight.dim() != 2:
        return functional.linear(input, weight, bias)
    rows = input.reshape(-1, input.shape[-1])
    if not _by_onednn(rows, weight.T):
        return functional.linear(input, weight, bias)
    # Operands that are not dense are slow in oneDNN.
    found = _onednn_linear(rows.contiguous(), weight.contiguous(), bias)
    return found.view(*input.shape[:-1], len(weight))


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add rows.T @ rows for rows [tokens, n] to the upper triangle of total [n, n], in place.

    rows are float16 or bfloat16 on CUDA, where tensor cores multiply them exactly and sum in
    float32; otherwise they have total's dtype. In float32 on a CPU this is cuda_ext.gram. Elsewhere
    strips of rows that begin at the diagonal are computed, which costs a little over half of the
    full product. Either touches some entries below the diagonal; `mirror` fills the lower triangle.
    """
    inputs = rows.shape[1]
    if _torch_alone.get():
        total += rows.T @ rows
        return
    if _by_operator(total, rows):
        gram.add_gram(total, _dense_last(rows))
        return
    columns = by_columns(rows).T
    for start, end in strips(inputs):
        left, right = columns[start:end], columns[start:].T
        # The product is computed separately: addmm_ would add each token to the large sum and
        # round at the size of that sum (measured: 2 to 4 times the error).
        if left.dtype == total.dtype:
            total[start:end, start:] += product(left, right)
        else:
            total[start:end, start:] += torch.mm(left, right, out_dtype=total.dtype)


def add_drift(total: Tensor, rows: Tensor, reference: Tensor, upper: bool) -> None:
    """Add (reference - rows).T @ rows for rows and reference [tokens, n] to total [n, n], in place.

    Both have total's dtype. upper: add what is on and above the diagonal, and some entries below
    it, as `add_gram` does, by the same operator.
    """
    if _by_operator(total, rows):
        gram.add_drift(total, _dense_last(rows), _dense_last(reference), upper)
        return
    first, second = by_columns(reference - rows).T, by_columns(rows).T
    if not upper or _torch_alone.get():
        total += product(first, second.T)
        return
    for start, end in strips(len(total)):
        total[start:end, start:] += product(first[start:end], second[start:].T)


def by_columns(rows: Tensor) -> Tensor:
    """Return rows [tokens, n] in the layout in which their products are summed fastest.

    oneDNN wants both factors of every strip dense, hence contiguous along the tokens; MKL takes
    them as they are, and the copy costs 10 to 20 % of the products. Our operator copies them.
    """
    if rows.device.type != "cpu" or _by_operator(rows, rows):
        return rows
    dense = rows.dtype != torch.float32 or _onednn_is_faster()
    return rows.T.contiguous().T if dense else rows


def _by_operator(total: Tensor, rows: Tensor) -> bool:
    single = rows.dtype == total.dtype == torch.float32
    return rows.device.type == "cpu" and single and not _torch_alone.get() and _gram_here()


def _dense_last(rows: Tensor) -> Tensor:
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def mirror(total: Tensor) -> None:
    """Copy the upper triangle of total [n, n] to the lower one, in place."""
    for start, end in strips(len(total)):
        total[end:, start:end] = total[start:end, end:].T
        square = total[start:end, start:end]  # not bit-symmetric with every library
        square.copy_(square.triu() + square.triu(1).T)


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    large = (
        not _torch_alone.get()
        and a.dtype == b.dtype == torch.float32
        and a.device.type == "cpu"
        and a.shape[0] * a.shape[1] * b.shape[1] >= ONEDNN_PRODUCTS
        and _onednn_is_faster()
    )
    if not large:
        return False
    reason = _why_no_onednn()
    if reason is not None:
        say_once(
            f"large float32 products run in torch.mm, not in oneDNN: {reason}. Results differ by "
            "rounding only."
        )
    return reason is None


@cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN is ahead of MKL on this processor; elsewhere than on x86 there is no MKL."""
    return torch.backends.cpu.get_cpu_capability() != "AVX2"


def _gram_here() -> bool:
    """Whether our operator sums Gram matrices here; logs the reason if it does not."""
    reason = why_no_operators()
    if reason is not None:
        say_once(
            f"Hessians are summed by other libraries, not by bitsweep::add_gram: {reason} Results "
            "differ by rounding only."
        )
    return reason is None


def operators_here() -> bool:
    """Whether bitsweep's operators of calibration run on the CPU here (see `torch_alone`)."""
    return not _torch_alone.get() and why_no_operators() is None


def why_no_operators() -> str | None:
    """Why bitsweep's operators of calibration are missing on the CPU or slower than torch."""
    reason = ops.why_unavailable(torch.device("cpu"))
    if reason is None and packed.cpu_isa() == "portable":
        reason = "without AVX2 these operators are slower (docs/solver.md)."
    return reason


def _why_no_onednn() -> str | None:
    if not torch.backends.mkldnn.is_available():
        return f"this torch ({torch.__version__}) was built without it"
    if not torch.backends.mkldnn.enabled:
        return "torch.backends.mkldnn.enabled is False"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return f"this torch ({torch.__version__}) has no operator mkldnn::_linear_pointwise"
    return None


def _onednn_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return rows [m, k] @ weight [n, k].T + bias [n], without an activation function."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return result


@cache
def say_once(message: str) -> None:
    """Log a warning, each message once per process."""
    _log.warning(message)
