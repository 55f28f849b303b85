"""The solver's large products: right in every layout, whichever library multiplies."""

import platform
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import products, tiling
from quant.products import add_gram, mirror, product


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


LAYOUTS = {
    "dense": lambda a, b: (a, b),
    "transposed": lambda a, b: (a.T.contiguous().T, b.T.contiguous().T),
    "strided": lambda a, b: (
        torch.cat([a, a], 1)[:, : a.shape[1]],
        torch.cat([b, b], 1)[:, : b.shape[1]],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(128, 300, 257), (1, 2048, 2048), (7, 5, 3)])
def test_products_in_float32(layout, shape):
    m, k, n = shape
    a, b = random(m, k, seed=1), random(k, n, seed=2)
    expected = a.double() @ b.double()
    found = product(*layout(a, b))
    assert found.dtype == torch.float32
    # The error of a sum of k float32 products, without any reduced precision.
    assert float((found - expected).abs().max()) < 2e-6 * k**0.5 * 5
    assert torch.equal(found, product(*layout(a, b))), "the same from run to run"


def test_products_in_float64_stay_float64():
    a, b = random(200, 200, dtype=torch.float64), random(200, 200, seed=1, dtype=torch.float64)
    assert torch.equal(product(a, b), a @ b)


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"], autouse=True)
def faster(request, monkeypatch):
    """Both libraries on every processor, whichever is the faster one there."""
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: request.param)
    return request.param


def test_the_faster_library_is_that_of_the_instruction_set(monkeypatch):
    monkeypatch.undo()
    for capability, expected in (("AVX2", False), ("AVX512", True), ("DEFAULT", True)):
        products._onednn_is_faster.cache_clear()
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda found=capability: found
        )
        assert products._onednn_is_faster() is expected
    products._onednn_is_faster.cache_clear()


def test_this_torch_multiplies_by_onednn(faster):
    """Else the tests here compare torch.mm with itself."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("torch has oneDNN for x86; elsewhere it depends on the build")
    assert products._why_no_onednn() is None
    assert products._by_onednn(random(200, 200), random(200, 200)) is faster


def hide(monkeypatch, what):
    """Take oneDNN away in one of the ways it can be missing."""
    if what == "library":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    if what == "operator":
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    return torch.backends.mkldnn.flags(enabled=what != "switch")


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("library", "was built without it"),
        ("switch", "mkldnn.enabled is False"),
        ("operator", "has no operator mkldnn::_linear_pointwise"),
    ],
)
def test_without_onednn_torch_multiplies_and_the_log_says_so_once(
    monkeypatch, caplog, missing, reason, faster
):
    if not faster:
        pytest.skip("oneDNN is not missed where torch.mm is faster")
    products.say_once.cache_clear()
    a, b = random(200, 200), random(200, 200, seed=1)
    with hide(monkeypatch, missing):
        product(a[:5], b)
        assert not caplog.messages, "a small product is torch.mm's everywhere"
        for _ in range(3):
            assert torch.equal(product(a, b), a @ b)
    (message,) = caplog.messages
    assert reason in message
    assert "differ by rounding only" in message


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from([torch.float32, torch.float64]))
def test_half_of_a_gram_matrix_and_its_mirror(inputs, tokens, dtype):
    rows = random(tokens, inputs, seed=inputs, dtype=dtype)
    total = torch.zeros(inputs, inputs, dtype=dtype)
    for part in rows.split(16):
        add_gram(total, part)
    mirror(total)
    assert torch.equal(total, total.T)
    torch.testing.assert_close(
        total.double(), rows.double().T @ rows.double(), rtol=1e-4, atol=1e-4
    )


def test_strips_cover_the_half_above_the_diagonal():
    for inputs in (1, 128, 129, 1000, 12288):
        strips = tiling.strips(inputs)
        assert [start for start, _ in strips[1:]] == [end for _, end in strips[:-1]]
        assert (strips[0][0], strips[-1][1]) == (0, inputs)
    area = sum((end - start) * (12288 - start) for start, end in strips)
    assert area / 12288**2 < 0.57


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_tensor_cores_sums_in_float32(dtype):
    rows = random(4096, 512).to(dtype).cuda()
    total = torch.zeros(512, 512, device="cuda")
    add_gram(total, rows)
    mirror(total)
    expected = rows.double().T @ rows.double()
    assert float((total - expected).abs().max() / expected.abs().max()) < 1e-5
