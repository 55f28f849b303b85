"""The kernels suite: every shape of the model once, at every batch, beside full precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.suites import timing_products
from harness.suites.base import SuiteContext
from harness.suites.kernels import Config
from harness.suites.shapes import parse_task, task_name
from quant.linear import QuantLinear
from quant.measure.dummy import build_dummy
from quant.scheme import Scheme
from tests.harness.suites.suite_context import suite_context
from tests.quant.architectures import CONFIGS, LINEARS_PER_BLOCK, VOCABULARY

CONFIG = Config(batches=[1, 3], seconds=0.001)


@pytest.fixture(autouse=True)
def small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies beyond a cache of a real size take seconds to make."""
    monkeypatch.setattr(timing_products, "last_level_cache", lambda device: 2**12)
    monkeypatch.setitem(timing_products.READ_BYTES, "cpu", 2**20)


def model_of(name: str, scheme: Scheme | None, dtype: torch.dtype = torch.float32):
    kind, changes = CONFIGS[name]
    config = kind(**{"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, **changes})
    return build_dummy(config, scheme, dtype=dtype)


def context(model, **changes) -> SuiteContext:
    kernel = next((m.kernel for m in model.modules() if isinstance(m, QuantLinear)), "torch")
    return suite_context(model, **{"quantized": True, "kernel": kernel, **changes})


@pytest.mark.parametrize("scheme", [None, Scheme(3, 16)])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_layers_of_every_architecture(name: str, scheme: Scheme | None) -> None:
    shapes = timing_products.shapes_of(timing_products.layers_of(model_of(name, scheme)))
    inside = sum(shape.layers for shape in shapes)
    around = 2 if name == "opt-350m" else 0  # its projections stand outside the blocks
    assert inside == 3 * LINEARS_PER_BLOCK[name] + around


def test_layers_of_several_schemes_are_refused() -> None:
    model = model_of("llama", Scheme(4, 16))
    other = model_of("llama", Scheme(3, 16))
    model.model.layers[1].mlp.up_proj = other.model.layers[1].mlp.up_proj
    with pytest.raises(ValueError, match=r"several schemes \(w4g16, w3g16\), and kernels"):
        timing_products.run(context(model), CONFIG)


def test_every_figure_of_every_shape_and_batch() -> None:
    found = timing_products.run(context(model_of("llama", Scheme(4, 16))), CONFIG).metrics
    tasks = {metric.task for metric in found}
    shapes = {(32, 32), (32, 16), (32, 48), (48, 32)}
    assert tasks == {task_name(*shape, batch) for shape in shapes for batch in (1, 3)}
    for task in tasks:
        figures = {metric.name: metric for metric in found if metric.task == task}
        inputs, outputs, batch = parse_task(task)
        moved = inputs * outputs * 4 + batch * (inputs + outputs) * 4
        full = figures["full_ms"]
        assert figures["full_gb_per_s"].value == pytest.approx(moved / full.value / 1e6)
        assert figures["full_share"].value == pytest.approx(
            figures["full_gb_per_s"].value / figures["read_bandwidth"].value
        )
        assert set(full.quantiles) >= {"p10", "p50", "p90"}
        assert figures["packed_speedup"].value > 0
        assert figures["packed_ms"].notes["kernel"] != "torch"
        assert full.notes["kernel"] == "torch"
        packed = figures["packed_gb_per_s"].value * figures["packed_ms"].value * 1e6
        assert packed < moved


def test_full_precision_has_no_packed_product() -> None:
    found = timing_products.run(context(model_of("opt", None), quantized=False), CONFIG).metrics
    assert {metric.name for metric in found} == {
        "read_bandwidth",
        "full_ms",
        "full_gb_per_s",
        "full_share",
    }
    assert {metric.notes["layers"] for metric in found} == {"12", "3"}


def test_layers_run_in_the_type_of_the_cell() -> None:
    seen = set()
    forward = QuantLinear.forward

    def watch(self, x):
        seen.add(x.dtype)
        return forward(self, x)

    model = model_of("opt", Scheme(4, 32), torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuantLinear, "forward", watch)
        timing_products.run(context(model, dtype="bfloat16"), CONFIG)
    assert seen == {torch.bfloat16}


def test_weights_take_turns_beyond_the_cache() -> None:
    shape = timing_products.Shape(32, 32, 1)
    subject = context(model_of("opt", None), kernel="auto")
    weights = timing_products._Weights(shape, Scheme(4, 32), subject, torch.float32)
    _, full, packed = weights.contenders(2)
    assert len(full.steps) * weights.bytes["full"] >= 4 * 2**12
    assert len(packed.steps) * weights.bytes["packed"] >= 4 * 2**12
    outputs = {str(step().sum().item()) for step in packed.steps}
    assert len(outputs) == len(packed.steps), "every step has a weight of its own"


def test_a_model_without_linear_layers_is_refused() -> None:
    class Empty(torch.nn.Module):
        def get_output_embeddings(self):
            return None

    with pytest.raises(ValueError, match="Empty has no linear layers"):
        timing_products.run(context(Empty()), CONFIG)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 64))
def test_task_names_read_back(inputs, outputs, batch) -> None:
    assert parse_task(task_name(inputs, outputs, batch)) == (inputs, outputs, batch)


@pytest.mark.parametrize("name", ["", "model", "4096x11008", "4096x11008_b", "axb_b1"])
def test_other_names_are_no_shapes(name) -> None:
    with pytest.raises(ValueError, match="is not a layer shape"):
        parse_task(name)
