"""Memory is counted before the work, bounds what is measured, and refuses with figures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from quant.arithmetic import FAST, PORTABLE
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.input_operator import operator_bits, operator_of
from quant.memory.compiled import PRODUCT_BYTES, PRODUCTS_KEPT
from quant.memory.limits import Limits
from quant.memory.plan import (
    IN_HOST,
    ON_DEVICE,
    ON_DISK,
    USABLE,
    MemoryPlanError,
    ModelShape,
    fits_whole,
    plan_evaluation,
    plan_quantization,
    size,
)
from quant.scheme import Scheme
from quant.solvers import gptq, qronos, rtn
from quant.solvers.base import Memory
from quant.transforms import equalize, residual_hadamard
from quant.transforms.base import Transform
from tests.quant import resident, rotating
from tests.quant.architectures import random_windows, tiny_model

GPTQ = QuantizationConfig(gptq.SOLVER, Scheme(4, 128))
OPT_175B = ModelShape(
    layers=((12288, 12288),) * 4 + ((49152, 12288), (12288, 49152)),
    blocks=96, block_bytes=12 * 12288**2 * 2, outside_bytes=(50272 + 2050) * 12288 * 2,
    hidden=12288, vocabulary=50272, itemsize=2,
)  # fmt: skip
GB = 10**9


def plan_175b(activations: str = "auto", **limits: int) -> object:
    tokens = 128 * 2048
    return plan_quantization(OPT_175B, GPTQ, tokens, 2048, Limits(**limits), activations)


def test_the_plan_of_a_large_model_is_the_sum_of_its_parts() -> None:
    plan = plan_175b(device=141 * GB, host=60 * GB, disk=500 * GB)
    parts = {item.name: item for item in plan.items}
    assert parts["weights of a block"].bytes == 12 * 12288**2 * 2
    assert parts["activations between blocks"].bytes == 128 * 2048 * 12288 * 2
    assert parts["activations between blocks"].where == ON_DEVICE
    hessians = 4 * (5 * 12288**2 + 49152**2)
    assert parts["Hessians of a block (q, k, v share one)"].bytes == hessians
    always = sum(i.bytes for i in plan.items if i.where == ON_DEVICE and not i.phases)
    factor = hessians + parts["the largest factorization"].bytes
    solve = hessians + parts["the largest layer in the solver"].bytes
    collect = hessians + sum(
        parts[name].bytes for name in ("a batch inside a block", "product of the widest inputs")
    )
    assert plan.needed(ON_DEVICE) == always + max(factor, solve, collect)
    rows = list(plan.rows())
    assert ("at most at one time", ON_DEVICE, plan.needed(ON_DEVICE)) in rows
    assert ("may be taken", IN_HOST, int(60 * GB * USABLE)) in rows


def test_the_block_that_is_being_written_is_counted_beside_the_one_being_made() -> None:
    limits = Limits(device=141 * GB, host=60 * GB, disk=500 * GB)
    plan = plan_quantization(OPT_175B, GPTQ, 128 * 2048, 2048, limits)
    parts = {item.name: item for item in plan.items}
    codes, grids = 12 * 12288**2, 12 * 12288**2 // 128 * (16 + 4) // 8
    assert parts["quantized weights of a block"].bytes == codes + grids
    largest = 4 * 12288**2
    packed = codes // 2 + grids + largest // 2 + largest // 128 * (16 + 4) // 8
    written = parts["the block before it, being written"]
    assert written.bytes == codes + grids + packed
    assert (written.where, written.phases) == (
        IN_HOST,
        ("collect", "factor", "solve", "transform"),
    )
    # A block may hold more than its layers: norms, or experts that stay as they are.
    more = replace(OPT_175B, block_bytes=OPT_175B.block_bytes + GB)
    rounding = QuantizationConfig(rtn.SOLVER, Scheme(4, 128))
    plan = plan_quantization(more, rounding, 0, 2048, limits)
    assert {item.name: item for item in plan.items}[written.name].bytes == written.bytes + GB


def test_activations_go_where_there_is_room() -> None:
    roomy = plan_175b(device=10**13, host=10**13, disk=10**13)
    needed = {where: roomy.needed(where) for where in (ON_DEVICE, IN_HOST)}
    held = 128 * 2048 * 12288 * 2

    def place(device: int, host: int, disk: int = 10**13) -> str:
        limits = {"device": device, "host": host, "disk": disk}
        return plan_175b(**{k: int(v / USABLE) + 2 for k, v in limits.items()}).activations

    assert place(needed[ON_DEVICE], 10**13) == "cuda"
    assert place(needed[ON_DEVICE] - 10, 10**13) == "cpu"
    host = needed[IN_HOST] + held
    assert place(needed[ON_DEVICE] - held, host) == "cpu"
    assert place(needed[ON_DEVICE] - held, host - 10) == "disk"
    with pytest.raises(MemoryPlanError, match=r"6\.44 GB of the disk and 6\.44 GB may be taken"):
        place(needed[ON_DEVICE] - held, host - 10, held - 1_000_000)
    no_gpu = plan_quantization(OPT_175B, GPTQ, 2048, 2048, Limits(host=10**13))
    assert no_gpu.activations == "cpu"
    assert no_gpu.needed(ON_DEVICE) == 0


def test_what_does_not_fit_is_refused_with_figures() -> None:
    message = (
        r"this needs \d+\.\d\d GB of memory of the device and 22\.80 GB may be taken "
        r"\(the largest factorization \d+\.\d\d GB, .*\): use a larger device, .*runtime=cpu\.$"
    )
    with pytest.raises(MemoryPlanError, match=message):
        plan_175b(device=24 * GB, host=64 * GB, disk=500 * GB)
    with pytest.raises(MemoryPlanError, match=r"of host memory .*runtime\.activations=disk"):
        plan_175b(host=8 * GB, disk=500 * GB)


def test_what_a_solver_holds_beside_its_matrices_is_counted() -> None:
    solver = replace(gptq.SOLVER, memory=replace(gptq.SOLVER.memory, beside=1000))
    plain, beside = (
        {item.name: item.bytes for item in plan_quantization(
            OPT_175B, replace(GPTQ, solver=each), 4096, 2048, Limits()
        ).items}
        for each in (gptq.SOLVER, solver)
    )  # fmt: skip
    largest = "the largest layer in the solver"
    assert beside == {**plain, largest: plain[largest] + 4 * 1000}


def test_rounding_needs_neither_hessians_nor_activations() -> None:
    rounding = QuantizationConfig(rtn.SOLVER, Scheme(4))
    plan = plan_quantization(OPT_175B, rounding, 10**6, 2048, Limits(host=100 * GB))
    names = {item.name for item in plan.items if item.bytes}
    assert not any("Hessian" in name or "activations" in name for name in names)


def test_kernels_that_products_compile_are_counted_where_they_are_compiled() -> None:
    def compiled(shape: ModelShape, kernel: str = "cpu", **limits: int) -> int:
        quantization = QuantizationConfig(gptq.SOLVER, Scheme(4, 128), kernel=kernel)
        plan = plan_quantization(shape, quantization, 2048, 2048, Limits(**limits))
        return sum(item.bytes for item in plan.items if item.name == "kernels that oneDNN compiles")

    small = replace(OPT_175B, layers=((512, 512), (128, 512)))
    # Two layers and four strips, each with a full and a rest batch; at three look-backs one product
    # with the triangle and one for each height; one block column behind another.
    assert compiled(small) == (2 * (2 + 4) + 3 * (1 + 2) + 2 * 1) * PRODUCT_BYTES
    assert compiled(OPT_175B) == PRODUCTS_KEPT * PRODUCT_BYTES
    assert compiled(small, "reference") == 0
    assert compiled(small, device=10**13, host=10**13) == 0


def test_portable_arithmetic_counts_float64() -> None:
    shape = replace(OPT_175B, blocks=1, itemsize=4)
    fast, wide = (
        {item.name: item.bytes for item in plan_quantization(
            shape, replace(GPTQ, arithmetic=arithmetic), 4096, 2048, Limits()
        ).items}
        for arithmetic in (FAST, PORTABLE)
    )  # fmt: skip
    assert wide["the largest layer, in float64"] == 8 * 12288 * 49152
    doubled = [
        "Hessians of a block (q, k, v share one)", "the largest factorization",
        "the largest layer in the solver",
        "product of the widest inputs", "activations between blocks",
    ]  # fmt: skip
    assert [wide[name] / fast[name] for name in doubled] == [2] * len(doubled)
    assert wide["a batch inside a block"] == 3 * fast["a batch inside a block"]
    assert "kernels that oneDNN compiles" not in wide
    rounding = replace(GPTQ, solver=rtn.SOLVER, options=None, arithmetic=PORTABLE)
    largest = "the largest layer in the solver"
    plain = plan_quantization(shape, rounding, 0, 2048, Limits())
    assert {i.name: i.bytes for i in plain.items}[largest] == 4 * 5 * 12288 * 49152


@pytest.mark.parametrize(
    ("transform", "options", "matrices"),
    [
        (rotating.TRANSFORM, None, 8 * (5 * 12288**2 + 49152**2)),
        (equalize.TRANSFORM, equalize.Options(keep="where_needed"), 4 * (5 * 12288 + 49152)),
        (equalize.TRANSFORM, None, 0),
        (
            Transform("toy", "toy", len, rebuild=dict, keep=lambda _: "always"),
            None,
            4 * (5 * 12288**2 + 49152**2),
        ),
    ],
)
def test_operators_are_counted_for_every_layer_and_for_the_block_before(
    transform: Transform, options: object, matrices: int
) -> None:
    """A transform that says nothing of the size of its tensors may keep a matrix."""
    kept = QuantizationConfig(gptq.SOLVER, Scheme(4, 128), transforms=((transform, options),))
    places = (Limits(device=10**13, host=10**13, disk=10**13), Limits(host=10**13))
    on_gpu, on_cpu = (plan_quantization(OPT_175B, kept, 2048, 2048, each) for each in places)
    parts = {item.name: item for item in on_gpu.items}
    here = parts["operators in front of a block's layers"]
    before = parts["operators of the block before it"]
    assert (here.bytes, here.where, here.phases) == (matrices, ON_DEVICE, ())
    assert (before.bytes, before.where, before.phases) == (matrices, IN_HOST, ())
    folded = replace(kept, transforms=((equalize.TRANSFORM, None),))
    without = plan_quantization(OPT_175B, folded, 2048, 2048, Limits(host=10**13))
    assert on_cpu.needed(IN_HOST) - without.needed(IN_HOST) == 2 * matrices


def test_the_full_precision_model_beside_is_counted() -> None:
    """Hidden states twice, a drift for every Hessian, inputs of a batch; a block with stages."""
    limits, tokens = Limits(device=10**13, host=10**13, disk=10**13), 128 * 2048
    for stages, block in ((False, 0), (True, OPT_175B.block_bytes)):
        plain, compared = (
            {
                item.name: item.bytes
                for item in plan_quantization(
                    OPT_175B,
                    QuantizationConfig(
                        solver, Scheme(4, 128), solver.options(true_sequential=stages)
                    ),
                    tokens,
                    2048,
                    limits,
                ).items
            }
            for solver in (gptq.SOLVER, qronos.SOLVER)
        )
        stored = "activations between blocks"
        assert compared[stored] == 2 * plain[stored]
        drifts = compared["drifts of a block's inputs"]
        assert drifts == compared["Hessians of a block, being collected"]
        inputs = 4 * 2048 * (5 * 12288 + 49152)
        assert compared["a batch of inputs in full precision"] == inputs
        assert compared.get("the block in full precision", 0) == block
        new = set(compared) - set(plain)
        assert len(new) == 2 + bool(block)


@pytest.mark.parametrize("keep", ["where_needed", "always"])
def test_what_is_kept_is_as_large_as_its_transform_says(keep: str) -> None:
    options = equalize.Options(keep=keep, powers_of_two=False)
    for transform in ((rotating.TRANSFORM, None), (equalize.TRANSFORM, options)):
        model = tiny_model("llama")
        config = QuantizationConfig(rtn.SOLVER, Scheme(4, 16), transforms=(transform,))
        quantize_model(model, random_windows(2), config)
        sizes = {
            module.weight.shape[1]: operator_bits(module) // 8
            for module in model.modules()
            if isinstance(module, nn.Linear) and operator_of(module) is not None
        }
        assert sizes == {inputs: transform[0].kept_bytes(inputs) for inputs in sizes}
        assert sizes


def test_a_rotated_residual_stream_takes_a_head_of_its_own_and_a_wide_layer() -> None:
    tied = replace(OPT_175B, head=(50272, 12288))
    rotation = ((residual_hadamard.TRANSFORM, None),)
    config = QuantizationConfig(gptq.SOLVER, Scheme(4, 128), transforms=rotation)
    plan = plan_quantization(tied, config, 2048, 2048, Limits(device=10**13, host=10**13))
    parts = {item.name: item for item in plan.items}
    outside = OPT_175B.outside_bytes + 50272 * 12288 * 2
    assert parts["embeddings, norm and head"].bytes == outside
    assert parts["embeddings and head, until checked"].bytes == outside
    assert parts["a layer rotated, in float64"].bytes == 40 * 12288 * 49152
    own = replace(tied, head_bytes=1000)
    assert own.with_own_head() == own


def test_whether_a_model_fits_whole() -> None:
    limits = Limits(device=141 * GB, host=1000 * GB)
    assert not fits_whole(OPT_175B, 2048, 1, limits)
    assert fits_whole(replace(OPT_175B, block_bytes=10**9), 2048, 1, limits)
    assert not fits_whole(replace(OPT_175B, block_bytes=10**9), 2048, 1, Limits(host=90 * GB))
    assert fits_whole(OPT_175B, 2048, 1, Limits())
    streamed = plan_evaluation(OPT_175B, 340_000, 2048, 1, limits)
    assert streamed.activations == "cuda"
    assert streamed.needed(ON_DEVICE) < 25 * GB
    assert streamed.needed(ON_DISK) == 0


def test_sizes_are_readable() -> None:
    assert [size(n) for n in (512, 2_500_000, 6_442_450_944)] == ["0.5 kB", "2.50 MB", "6.44 GB"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=256, hidden_size=512, intermediate_size=768, num_hidden_layers=8,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def measured(checkpoint: Path) -> resident.Measured:
    generator = torch.Generator().manual_seed(0)
    windows = [torch.randint(0, 256, (256,), generator=generator) for _ in range(8)]
    plan = QuantizationConfig(gptq.SOLVER, Scheme(4, 128), batch_tokens=1024, arithmetic=FAST)
    found = resident.measure(checkpoint, plan, windows)
    if found is None:
        pytest.skip("memory of this C library stays with the process")
    return found


def test_the_plan_bounds_what_is_measured(measured: resident.Measured) -> None:
    # Small allocations are none of the plan's business.
    assert measured.peak < measured.planned + 12_000_000
    assert measured.peak > measured.planned / 4, "a bound this loose would refuse what fits"


def test_passes_hold_two_blocks_and_activations(measured: resident.Measured) -> None:
    parts = {item.name: item.bytes for item in measured.plan.items}
    shape, writing = measured.shape, parts["the block before it, being written"]
    blocks = 2 * shape.block_bytes + shape.outside_bytes
    activations = parts["activations between blocks"] + parts["a batch inside a block"]
    holes = activations  # that results of several sizes leave in the heap
    packing = 4_000_000  # buffers of the product library's threads, which stay (seen: 1 to 4 MB)
    bound = blocks + activations + writing + holes + packing
    assert bound < shape.whole_bytes, "the bound would allow all blocks at once"
    assert measured.stages["forward"] < bound


def test_runs_leave_no_memory_behind(measured: resident.Measured) -> None:
    assert measured.grown < resident.REPEATS * measured.shape.block_bytes / 2


def test_a_transform_holds_layers_of_one_input_and_what_it_searches_and_tries_with() -> None:
    """Layers are given as float32; which share an input is known only when the model runs."""
    wide, inner = 12288, 49152
    searching = Transform("toy", "t", len, memory=Memory(weights=2, prepared=3), folds_through=True)
    most = 2 * inner * wide + 3 * inner**2
    for transform, searched, passes in ((equalize.TRANSFORM, 0, 1), (searching, most, 3)):
        config = QuantizationConfig(
            gptq.SOLVER, Scheme(4, 128), transforms=((transform, None),), arithmetic=FAST
        )
        plan = plan_quantization(OPT_175B, config, 2048, 2048, Limits(host=10**13))
        (item,) = [each for each in plan.items if each.phases == ("transform",)]
        given = max(
            (4 * wide + inner) * wide + wide**2,  # as if q, k, v, the output and fc1 shared theirs
            wide * inner + inner**2,
        )
        (inside,) = [i.bytes for i in plan.items if i.name == "a batch inside a block, watched"]
        assert item.bytes == 4 * (given + searched) + passes * inside
