"""Layers of one model with schemes of their own: quantization, resuming, artifacts, exports."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import quant
from quant.calibrate.stream import quantize_model
from quant.checkpoint.inspection import inspect
from quant.checkpoint.make import quantize_to
from quant.checkpoint.source import ArtifactSource, CheckpointSource
from quant.config import QuantizationConfig
from quant.decode.caches import FUSED
from quant.decode.choose import make_decoder
from quant.errors import QuantizationError, SchemeError
from quant.levels import nf4
from quant.linear import QuantLinear
from quant.measure.dummy import build_dummy
from quant.memory.limits import Limits
from quant.memory.plan import plan_quantization
from quant.memory.shapes import model_shape
from quant.scheme import Scheme, mixture
from quant.solvers import gptq, rtn
from quant.transforms import awq
from quant.transforms.base import Group
from tests.oracles import textbook_gptq
from tests.quant.architectures import random_windows, tiny_model

THREE, FOUR, TWO = Scheme(3, 16), Scheme(4, 8), Scheme(2, 8, symmetric=True)
MIXED = Scheme(3, 16, layers={"*.down_proj": FOUR, "model.layers.0.self_attn.v_proj": TWO})
WINDOWS = random_windows(3)


def expected(layer: str) -> Scheme:
    if layer.endswith("down_proj"):
        return FOUR
    return TWO if layer == "model.layers.0.self_attn.v_proj" else THREE


def made(scheme: Scheme = MIXED, **options: Any) -> tuple[PreTrainedModel, Any]:
    model = tiny_model("llama")
    config = QuantizationConfig(gptq.SOLVER, scheme, kernel="reference", **options)
    return model, quantize_model(model, WINDOWS, config)


def test_a_layer_has_the_scheme_of_its_pattern() -> None:
    assert MIXED.of("model.layers.7.mlp.down_proj") == FOUR
    assert MIXED.of("model.layers.0.self_attn.v_proj") == TWO
    assert MIXED.of("model.layers.1.self_attn.v_proj") == THREE
    assert MIXED.every == (THREE, FOUR, TWO)
    assert MIXED.name == "w3g16+w4g8+w2g8_sym"
    assert Scheme(3, 16, head=Scheme(8), layers={"*": FOUR}).name == "w3g16+w4g8_head_w8"
    assert Scheme(3, 16, head=Scheme(8), layers={"*": FOUR}).without_head == THREE


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"*.down_proj": FOUR, "*.mlp.*": TWO}, r"gives .*down_proj two schemes \(\*.down_proj: w"),
        ({"*.dwon_proj": FOUR}, r"layers\[\*.dwon_proj\]=w4g8 is the pattern of none of the mod"),
        ({"lm_head": FOUR}, r"layers\[lm_head\]=w4g8 is the pattern of none"),
    ],
)
def test_patterns_that_do_not_fit_are_refused_before_anything_changes(
    layers: dict[str, Scheme], message: str
) -> None:
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SchemeError, match=message):
        quantize_model(model, [], QuantizationConfig(rtn.SOLVER, Scheme(3, 16, layers=layers)))
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"*": Scheme(4, 16, levels=nf4.LEVELS)}, r"layers\[\*\]=nf4g16 has nf4 levels, and the"),
        ({"*": MIXED}, "is not the scheme of one layer"),
        ({"*": 4}, r"layers\[\*\]=4 is not the scheme of one layer"),
        ((("*", FOUR), ("*", TWO)), r"layers\[\*\] is given twice"),
    ],
)
def test_what_is_no_scheme_of_a_layer(layers: Any, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        Scheme(3, 16, layers=layers)


def test_a_name_of_several_schemes_says_what_to_write() -> None:
    with pytest.raises(SchemeError, match=r"use scheme=w3g64 'scheme.layers=\{PATTERN: w4g64\}'"):
        Scheme.parse("w3g64+w4g64")


def test_a_solver_is_asked_for_every_scheme() -> None:
    layers = {"*.down_proj": Scheme(4, 8, grid="hessian")}
    with pytest.raises(QuantizationError, match="cannot be asked for w4g8_hessian"):
        QuantizationConfig(rtn.SOLVER, Scheme(3, 16, layers=layers))


def test_every_layer_is_solved_with_its_scheme() -> None:
    """Layers of one Hessian with different schemes, against the textbook's GPTQ in float64."""
    plain = tiny_model("llama").double()
    seen: list[torch.Tensor] = []
    names = [f"model.layers.0.self_attn.{each}_proj" for each in "qkv"]
    handle = plain.get_submodule(names[0]).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    with torch.no_grad():
        for window in WINDOWS:
            plain(window[None])
    handle.remove()
    inputs = torch.cat([each.flatten(0, 1) for each in seen])
    hessian = 2 / len(WINDOWS) * inputs.T @ inputs
    _, result = made(arithmetic="portable")
    for name in names:
        weight, own = plain.get_submodule(name).weight.detach(), expected(name)
        wanted = textbook_gptq.solve(
            weight.numpy(), hessian.numpy(), own.bits,
            group_size=own.group_size, symmetric=own.symmetric,
        )  # fmt: skip
        found = result.weights[name]
        assert found.scheme == own
        assert found.codes.tolist() == wanted.codes.tolist()


def test_results_and_artifact_have_the_schemes(tmp_path: Path) -> None:
    model, result = made()
    for layer in result.layers:
        scheme = expected(layer.name)
        assert (layer.scheme, layer.code_bits) == (scheme.name, scheme.bits)
        assert layer.bits_per_weight == scheme.bits_per_weight(layer.inputs)
    folder = quant.save(tmp_path / "a", model, result.weights, method={"name": "gptq"})
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (said["checkpoint_format"], said["bits"], said["group_size"]) == ("gptq_v2", 3, 16)
    assert said["dynamic"][r"+:^model\.layers\.0\.self_attn\.v_proj$"] == {
        "bits": 2, "group_size": 8, "sym": True,
    }  # fmt: skip
    loaded = quant.load(folder)
    with torch.no_grad():
        logits = loaded(WINDOWS[0][None]).logits
        torch.testing.assert_close(logits, model(WINDOWS[0][None]).logits, rtol=0, atol=1e-4)
    layers = {n: m for n, m in loaded.named_modules() if isinstance(m, QuantLinear)}
    assert {name: each.scheme for name, each in layers.items()} == {
        layer.name: expected(layer.name) for layer in result.layers
    }
    stored = sum(layer.outputs * layer.inputs * layer.bits_per_weight for layer in result.layers)
    found = inspect(folder)
    count = sum(layer.outputs * layer.inputs for layer in result.layers)
    assert found.bits_per_weight == pytest.approx(stored / count)
    assert set(found.mixture.split(", ")) == {
        f"{len(layers) - 4} layers w3g16", "3 layers w4g8", "1 layer w2g8_sym",
    }  # fmt: skip
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| other layers | w2g8_sym: `model.layers.0.self_attn.v_proj`; w4g8: `model.la" in card


@pytest.mark.parametrize("format", ["gptq-v1", "compressed-tensors"])
def test_exports_keep_them(tmp_path: Path, format: str) -> None:
    # Symmetric, because version 1 refuses zero-points of 0.
    layers = {"*.down_proj": Scheme(4, 8, True), "*.v_proj": Scheme(8, 16, True, grid="mse")}
    model, result = made(Scheme(3, 16, True, layers=layers))
    folder = quant.save(tmp_path / "a", model, result.weights, method={"name": "gptq"})
    quant.export(folder, tmp_path / "b", format)
    before, after = quant.load_weights(folder), quant.load_weights(tmp_path / "b")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert after[name].scheme.grid == weight.scheme.grid
        assert after[name].scheme.bits == weight.scheme.bits
        assert torch.equal(after[name].dequantize(), weight.dequantize())
    assert inspect(tmp_path / "b").mixture


def test_an_artifact_of_other_levels_has_them(tmp_path: Path) -> None:
    usual, fine = Scheme(4, 16, levels=nf4.LEVELS), Scheme(4, 8, levels=nf4.LEVELS)
    model = tiny_model("llama")
    scheme = Scheme(4, 16, levels=nf4.LEVELS, layers={"*.down_proj": fine})
    result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, scheme))
    folder = quant.save(tmp_path / "a", model, result.weights, method={"name": "rtn"})
    for name, weight in quant.load_weights(folder).items():
        assert weight.scheme == (fine if name.endswith("down_proj") else usual)
        assert torch.equal(weight.dequantize(), result.weights[name].dequantize())


def test_a_run_block_by_block_resumes_with_them(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    config = QuantizationConfig(gptq.SOLVER, MIXED, kernel="reference")

    def run(target: str, stop: int | None = None) -> Path:
        def progress(done: int, total: int, name: str) -> None:
            if done == stop:
                raise KeyboardInterrupt

        with CheckpointSource(tmp_path / "model", torch.float32) as source:
            quantize_to(
                tmp_path / target, source, WINDOWS, config,
                model_hash="m", method={"name": "gptq"}, progress=progress,
            )  # fmt: skip
        return tmp_path / target

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", stop=10)
    again = run("killed")
    for file in ("config.json", *(path.name for path in whole.glob("*.safetensors"))):
        assert (again / file).read_bytes() == (whole / file).read_bytes()
    with ArtifactSource(whole) as source:
        bits = {name: bits / count for name, (count, bits) in source.layer_bits().items()}
    assert bits["model.layers.1.mlp.down_proj"] == 4 + (16 + 4) / 8


def test_awq_rounds_each_layer_of_a_group_to_its_own_scheme() -> None:
    generator = torch.Generator().manual_seed(0)
    q, v = (torch.randn(8, 32, generator=generator) for _ in "qv")
    inputs = torch.randn(64, 32, generator=generator)
    hessian, scale = inputs.T @ inputs, torch.rand(32, generator=generator) + 0.5
    doubled = torch.triu(2 * hessian)
    doubled.diagonal().copy_(hessian.diagonal())

    def error(scheme: Scheme, **weights: torch.Tensor) -> float:
        group = Group("q", tuple(weights), tuple(weights.values()), hessian, scheme)
        return awq._error(group, scale.double(), doubled)

    both = error(Scheme(3, 16, layers={"v": TWO}), q=q, v=v)
    assert both == pytest.approx(error(THREE, q=q) + error(TWO, v=v), rel=1e-5)
    assert both != pytest.approx(error(THREE, q=q, v=v), rel=1e-2)


def test_the_identity_names_layers_and_is_what_it_was_without() -> None:
    plain = QuantizationConfig(gptq.SOLVER, Scheme(3, 16)).identity()["scheme"]
    assert "layers" not in plain
    said = QuantizationConfig(gptq.SOLVER, MIXED).identity()["scheme"]
    assert said["layers"]["*.down_proj"]["bits"] == 4
    assert {k: v for k, v in said.items() if k != "layers"} == plain


def test_the_plan_counts_the_dearest_scheme_of_each_layer() -> None:
    shape = model_shape(tiny_model("llama"))

    def needed(scheme: Scheme) -> int:
        config = QuantizationConfig(rtn.SOLVER, scheme)
        return plan_quantization(shape, config, 0, 0, Limits(None, None, None)).needed("host")

    assert needed(Scheme(3, 16)) < needed(MIXED)
    assert needed(MIXED) >= max(map(needed, MIXED.every))


def test_random_weights_have_them() -> None:
    config = tiny_model("llama").config
    model = build_dummy(config, MIXED, kernel="reference")
    found = {n: m.scheme for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    assert len(found) == 21
    assert found == {name: expected(name) for name in found}


def test_decoding_reads_layers_of_several_schemes(tmp_path: Path) -> None:
    """The fused step takes q, k and v of other widths; it is held against the layers alone."""
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
    layers = {"*.v_proj": Scheme(2, 32), "*.up_proj": Scheme(8, 32), "*.1.mlp.down*": Scheme(3, 32)}
    model = tiny_model("llama", **sizes)
    config = QuantizationConfig(rtn.SOLVER, Scheme(4, 32, layers=layers))
    result = quantize_model(model, [], config)
    loaded = quant.load(quant.save(tmp_path / "a", model, result.weights, method={"name": "rtn"}))
    decoder = make_decoder(loaded, WINDOWS[0][None, :4], 8)
    assert (decoder.mode, decoder.reason) == (FUSED, "")


def test_a_mixture_has_the_scheme_of_most_layers() -> None:
    found = mixture({"a": TWO, "b": THREE, "c": THREE})
    assert found == Scheme(3, 16, layers=(("a", TWO),))
    assert mixture({"a": TWO, "b": THREE}) == Scheme(2, 8, symmetric=True, layers=(("b", THREE),))
