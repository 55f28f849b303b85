"""The rotated residual stream: the model computes the same, its weights are W R and R^T W."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import quant
from quant.calibrate.residual import RotatedSource, rotated
from quant.calibrate.source import LoadedModel
from quant.calibrate.stream import quantize_model
from quant.checkpoint.make import files_hash, quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.config import QuantizationConfig
from quant.errors import ModelStructureError, NonFiniteError, QuantizationError
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.base import Layer
from quant.transforms import equalize, hadamard, residual_hadamard
from quant.transforms.base import Transform
from quant.transforms.residual_hadamard import Options, residual
from tests.oracles.naive_hessians import naive_hessians
from tests.quant.architectures import CONFIGS, HIDDEN, random_windows, tiny_model, uneven_model
from tests.quant.mixtures import tiny_mixture

W8G16 = Scheme(8, group_size=16, scale_dtype="float32")
RESIDUAL = (residual_hadamard.TRANSFORM, None)
REFUSED = {
    "opt-350m": "no norm feeds its head lm_head alone (model.decoder.project_out makes its input)",
    "bloom": "its hidden states before the first block are no sum of rows of its embeddings "
    "(transformer.word_embeddings_layernorm comes in between)",
    "gemma2": "model.layers.0.post_attention_layernorm normalizes the output of self_attn.o_proj "
    "before it is added to the stream",
}


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


def rotate(model: PreTrainedModel) -> RotatedSource:
    window = random_windows(1, seed=3)[0]
    return rotated(LoadedModel(model), residual_hadamard.TRANSFORM, Options(), window)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float64, 1e-5)])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_computes_the_same_or_is_refused_by_name(
    name: str, dtype: torch.dtype, allowed: float
) -> None:
    make = tiny_model if dtype == torch.float32 else uneven_model
    model, tokens = make(name).to(dtype), torch.stack(random_windows(2, seed=5))
    before, weights = logits(model, tokens), copy.deepcopy(model.state_dict())
    if name in REFUSED:
        message = f"cannot rotate the residual stream of {type(model).__name__}: {REFUSED[name]}; "
        with pytest.raises(ModelStructureError, match=re.escape(message)):
            rotate(model)
        assert all(torch.equal(each, weights[key]) for key, each in model.state_dict().items())
        return
    rotate(model)
    assert (logits(model, tokens) - before).abs().max() <= allowed * before.abs().max()
    matrices = [key for key in weights if weights[key].dim() == 2 and "norm" not in key]
    same = [key for key in matrices if torch.equal(model.state_dict()[key], weights[key])]
    assert not same


def dense(keeps_mean: bool) -> Tensor:
    return residual(HIDDEN, keeps_mean).inputs(torch.eye(HIDDEN, dtype=torch.float64))


def test_weights_of_a_model_with_rms_norms_are_products_with_the_rotation() -> None:
    model, rotation = uneven_model("qwen2").double(), dense(keeps_mean=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rotate(model)
    expected = {
        "model.embed_tokens.weight": before["model.embed_tokens.weight"] @ rotation,
        "model.norm.weight": torch.ones(HIDDEN).double(),
        "lm_head.weight": (before["lm_head.weight"] * before["model.norm.weight"]) @ rotation,
    }
    for index in range(3):
        block = f"model.layers.{index}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            gain = before[f"{block}{norm}.weight"]
            expected[f"{block}{norm}.weight"] = torch.ones(HIDDEN).double()
            for reader in readers:
                weight = before[f"{block}{reader}.weight"] * gain
                expected[f"{block}{reader}.weight"] = weight @ rotation
        for writer in ("self_attn.o_proj", "mlp.down_proj"):
            expected[f"{block}{writer}.weight"] = rotation.T @ before[f"{block}{writer}.weight"]
    for name, value in model.state_dict().items():  # all others, q, k and v's biases, stay
        wanted = expected.get(name, before[name])
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12, msg=name)


def test_biases_of_layer_norms_go_into_their_readers() -> None:
    model, rotation = uneven_model("opt").double(), dense(keeps_mean=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rotate(model)
    after, block = model.state_dict(), "model.decoder.layers.1."
    gain = before[f"{block}final_layer_norm.weight"]
    shift = before[f"{block}final_layer_norm.bias"]
    weight, bias = before[f"{block}fc1.weight"], before[f"{block}fc1.bias"]
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(after[f"{block}fc1.weight"], (weight * gain) @ rotation, **close)
    torch.testing.assert_close(after[f"{block}fc1.bias"], bias + weight @ shift, **close)
    assert not after[f"{block}final_layer_norm.bias"].any()
    written = before[f"{block}fc2.bias"] @ rotation
    torch.testing.assert_close(after[f"{block}fc2.bias"], written, **close)
    # The head has no bias, so the last norm adds its own in the new coordinates.
    gain, shift = (before[f"model.decoder.final_layer_norm.{n}"] for n in ("weight", "bias"))
    kept = after["model.decoder.final_layer_norm.bias"]
    torch.testing.assert_close(kept, (shift / gain) @ rotation, **close)
    positions = before["model.decoder.embed_positions.weight"] @ rotation
    torch.testing.assert_close(after["model.decoder.embed_positions.weight"], positions, **close)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_solver_sees_the_hessian_of_the_rotated_stream(name: str) -> None:
    model, windows = uneven_model(name), random_windows(4)
    hessians: dict[str, Tensor] = {}

    def prepare(matrix: Tensor, chosen: gptq.Options, layer: Layer) -> object:
        hessians[layer.name] = matrix.clone()
        return gptq.prepare(matrix, chosen, layer)

    original = copy.deepcopy(model)
    config = QuantizationConfig(
        replace(gptq.SOLVER, prepare=prepare),
        W8G16,
        gptq.Options(true_sequential=True),
        (RESIDUAL,),
    )
    quantize_model(model, windows, config)
    expected = naive_hessians(model, hessians, windows)
    for layer, hessian in hessians.items():
        torch.testing.assert_close(hessian.double(), expected[layer], rtol=2e-3, atol=2e-3)
    # The norm in front of the first layer gave x = z g + c; now it gives z R.
    first, ends = (
        next(iter(hessians)),
        ("layers.0.self_attn_layer_norm", "layers.0.input_layernorm"),
    )
    norm = next(module for key, module in original.named_modules() if key.endswith(ends))
    rotation = dense(keeps_mean=name == "opt")
    seen: list[Tensor] = []
    handle = norm.register_forward_hook(lambda _, __, output: seen.append(output.double()))
    for window in windows:
        logits(original, window[None])
    handle.remove()
    shift = norm.bias.double() if name == "opt" else 0
    z = torch.cat([each[0] for each in seen]).sub(shift) / norm.weight.double() @ rotation
    plain = 2 / len(windows) * z.T @ z
    torch.testing.assert_close(hessians[first].double(), plain, rtol=1e-3, atol=1e-3)


def test_a_tied_head_is_stored_beside_the_embeddings(tmp_path: Path) -> None:
    """Block by block from files as in memory; nothing that Bitsweep alone reads is stored."""
    model, tokens = uneven_model("llama"), torch.stack(random_windows(2, seed=5))
    tied = tiny_model("llama", tie_word_embeddings=True)
    tied.load_state_dict({**model.state_dict(), "lm_head.weight": model.model.embed_tokens.weight})
    tied.save_pretrained(tmp_path / "model")
    config = QuantizationConfig(gptq.SOLVER, W8G16, transforms=(RESIDUAL,))
    result = quantize_model(tied, random_windows(4), config)
    assert tied.lm_head.weight is not tied.model.embed_tokens.weight
    with CheckpointSource(tmp_path / "model", torch.float32) as source:
        quantize_to(
            tmp_path / "read", source, random_windows(4), config,
            model_hash=files_hash(tmp_path / "model"), method={"name": "gptq"},
        )  # fmt: skip
    quant.save(tmp_path / "saved", tied, result.weights, method={"name": "gptq"})
    expected = logits(tied, tokens)
    for folder in ("read", "saved"):
        loaded = quant.load(tmp_path / folder, "reference")
        assert not loaded.config.tie_word_embeddings
        assert bool((loaded.model.norm.weight == 1).all())
        assert (tmp_path / folder / "config.json").read_text().count("operators") == 0
        apart = (logits(loaded, tokens) - expected).norm()
        assert apart <= 1e-4 * expected.norm()


def test_records_say_what_was_rotated_before_other_transforms() -> None:
    model = uneven_model("llama")
    transforms = (
        RESIDUAL, (hadamard.TRANSFORM, hadamard.Options(layers=("down_proj",))),
        (equalize.TRANSFORM, None),
    )  # fmt: skip
    tokens = torch.stack(random_windows(2, seed=5))
    before = logits(model, tokens)
    config = QuantizationConfig(rtn.SOLVER, W8G16, transforms=transforms)
    result = quantize_model(model, random_windows(3), config)
    assert (logits(model, tokens) - before).norm() < 0.15 * before.norm()  # 8 bits
    said = {layer.name.split(".")[-1]: layer.transforms for layer in result.layers}
    assert said["down_proj"][:2] == [
        "residual_hadamard into the residual stream",
        "hadamard kept in front of mlp.down_proj",
    ]
    assert said["q_proj"][0] == "residual_hadamard into the residual stream"
    assert said["q_proj"][2] == "equalize into input_layernorm"
    assert "transform" in {stage.name for stage in result.stages}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_weights_once_more(dtype: torch.dtype) -> None:
    model, tokens = tiny_model("llama").to(dtype), torch.stack(random_windows(2, seed=5))
    before = logits(copy.deepcopy(model).float(), tokens)
    rotate(model)
    assert (logits(model.float(), tokens) - before).norm() <= 0.05 * before.norm()


def share(model: PreTrainedModel) -> None:
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[1].mlp.up_proj.weight


def read_twice(model: PreTrainedModel) -> None:
    """A block that reads the stream in another way too."""
    block = model.model.layers[1]
    plain = block.mlp.forward
    block.mlp.forward = lambda x: plain(x) + x


def add_a_constant(model: PreTrainedModel) -> None:
    block = model.model.layers[1]
    plain = block.mlp.forward
    block.mlp.forward = lambda x: plain(x) + torch.linspace(0, 1, HIDDEN)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (share, "model.layers.2.mlp.up_proj and model.layers.1.mlp.up_proj share parameters"),
        (read_twice, "model.layers.1 computes something else when its readers"),
        (add_a_constant, "model.layers.1 computes something else when its readers"),
    ],
)
def test_what_depends_on_the_stream_otherwise_is_refused_and_left_as_it_was(
    spoil: Callable[[PreTrainedModel], None], message: str
) -> None:
    model = tiny_model("llama")
    spoil(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelStructureError, match=re.escape(message)):
        rotate(model)
    assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())


def test_a_bias_that_nothing_can_take_in_is_refused() -> None:
    """Falcon's layers have no biases, and its norm divides by a weight that is almost zero."""
    model = tiny_model("falcon")
    model.transformer.h[1].input_layernorm.weight.data[3] = 1e-9
    with pytest.raises(
        ModelStructureError, match=r"h\.1\.input_layernorm has a bias, .* have none"
    ):
        rotate(model)


def test_weights_that_are_not_finite_are_named() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj: 1 of"):
        rotate(model)


def test_a_mixture_of_experts_is_refused() -> None:
    config = QuantizationConfig(rtn.SOLVER, W8G16, transforms=(RESIDUAL,))
    with pytest.raises(ModelStructureError, match="cannot rotate the residual stream of Mixtral"):
        quantize_model(tiny_mixture("mixtral"), random_windows(3), config)


def test_a_residual_transform_comes_first_and_has_no_other_change() -> None:
    with pytest.raises(QuantizationError, match=r"residual_hadamard rotates .* list it first"):
        QuantizationConfig(rtn.SOLVER, W8G16, transforms=((equalize.TRANSFORM, None), RESIDUAL))
    with pytest.raises(ValueError, match="toy has both change and residual"):
        Transform("toy", "toy", len, residual=len)
