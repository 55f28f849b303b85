"""Large float32 products of the solver: which library multiplies them, and which half is needed.

torch.mm on the CPU is MKL's, which takes its AVX2 path on processors that are not Intel's; oneDNN,
which torch ships too, takes AVX-512 wherever it is (measured on a Zen 5: 2.1 times as fast). torch
offers it for plain tensors through one operator only, a private one that its own compiler calls.
Where that is not there torch.mm multiplies, and the log says so once; only the rounding differs.
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

from quant.tiling import strips

_log = logging.getLogger("quant")

# Below this many products a call costs more than it saves.
ONEDNN_PRODUCTS = 1 << 21

_torch_alone: ContextVar[bool] = ContextVar("torch_alone", default=False)


@contextmanager
def torch_alone(alone: bool) -> Iterator[None]:
    """Whether torch.mm multiplies everything inside, as kernel="reference" has it."""
    token = _torch_alone.set(alone)
    try:
        yield
    finally:
        _torch_alone.reset(token)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] @ b [k, n] in their dtype (float32 or float64), without reduced precision."""
    if not _by_onednn(a, b):
        return a @ b
    # oneDNN multiplies by the transpose and wants dense operands; others take a slow road there.
    weight = b.T if b.is_contiguous() or b.T.is_contiguous() else b.T.contiguous()
    return _onednn_linear(a.contiguous(), weight, None)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear, multiplied as `product` does where no gradient is wanted."""
    if torch.is_grad_enabled() or input.device.type != "cpu" or weight.dim() != 2:
        return functional.linear(input, weight, bias)
    rows = input.reshape(-1, input.shape[-1])
    if not _by_onednn(rows, weight.T):
        return functional.linear(input, weight, bias)
    # Whatever is not dense takes a slow road in oneDNN.
    found = _onednn_linear(rows.contiguous(), weight.contiguous(), bias)
    return found.view(*input.shape[:-1], len(weight))


def add_gram(total: Tensor, rows: Tensor) -> None:
    """total [n, n] += rows.T @ rows for rows [tokens, n], above the diagonal (and a bit below).

    rows are float16 or bfloat16 on CUDA, where tensor cores multiply them exactly and sum in
    float32, else in total's dtype. `mirror` makes the other half: strips of rows that begin at the
    diagonal cost a little over half of the whole product.
    """
    inputs = rows.shape[1]
    if _torch_alone.get():
        total += rows.T @ rows
        return
    # Contiguous along the tokens, both factors are dense whatever strip is cut.
    columns = rows.T.contiguous() if rows.device.type == "cpu" else rows.T
    for start, end in strips(inputs):
        left, right = columns[start:end], columns[start:].T
        # The product is made apart: added to the large sum term by term, inside one addmm_, each
        # token rounds at the size of the sum (measured: 2 to 4 times the error).
        if left.dtype == total.dtype:
            total[start:end, start:] += product(left, right)
        else:
            total[start:end, start:] += torch.mm(left, right, out_dtype=total.dtype)


def mirror(total: Tensor) -> None:
    """Copy what is above the diagonal of total [n, n] below it, in place."""
    for start, end in strips(len(total)):
        total[end:, start:end] = total[start:end, end:].T
        square = total[start:end, start:end]  # not every library makes it symmetric to the bit
        square.copy_(square.triu() + square.triu(1).T)


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    large = (
        not _torch_alone.get()
        and a.dtype == b.dtype == torch.float32
        and a.device.type == "cpu"
        and a.shape[0] * a.shape[1] * b.shape[1] >= ONEDNN_PRODUCTS
    )
    if not large:
        return False
    reason = _why_no_onednn()
    if reason is not None:
        say_once(
            f"large float32 products are torch.mm's, not oneDNN's: {reason}. Results differ by "
            "rounding only."
        )
    return reason is None


def _why_no_onednn() -> str | None:
    if not torch.backends.mkldnn.is_available():
        return f"this torch ({torch.__version__}) was built without it"
    if not torch.backends.mkldnn.enabled:
        return "torch.backends.mkldnn.enabled is False"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return f"this torch ({torch.__version__}) has no operator mkldnn::_linear_pointwise"
    return None


def _onednn_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows [m, k] @ weight [n, k].T + bias [n], and no function of the result."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return result


@cache
def say_once(message: str) -> None:
    """Log a warning, the same one once a process."""
    _log.warning(message)
