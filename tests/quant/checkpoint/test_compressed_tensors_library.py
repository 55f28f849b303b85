"""compressed-tensors itself and transformers read what is exported; what they write is read."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from torch import nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

import quant
from quant import config as quant_config
from quant.calibrate.stream import quantize_model
from quant.checkpoint import dequantize_layers
from quant.checkpoint.formats.base import StoredLayer
from quant.checkpoint.formats.compressed_tensors import FORMAT
from quant.linear import QuantLinear
from quant.scheme import BITS, Scheme
from quant.solvers import rtn
from tests.oracles.random_weights import random_weight
from tests.quant.tiny_checkpoints import CONFIGS, METHOD, logits, quantized

# Said whenever dequantize=True is asked for, which the library's own asymmetric files need.
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
EMBEDDED = Path(__file__).resolve().parents[3] / "harness" / "embedded" / "model"


def read_by_the_library(folder: Path, **options: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def dense(folder: Path) -> PreTrainedModel:
    """What quant.load reads, with plain nn.Linear: the same arithmetic as the library's."""
    model = quant.load(folder, kernel="reference")
    dequantize_layers(model, model.dtype)
    return model


def test_the_library_reads_layers_of_several_schemes(tmp_path: Path) -> None:
    model, weights = quantized("llama", Scheme(4, 8, symmetric=True))
    for seed, layer in enumerate(weights):
        if "v_proj" in layer or layer.endswith("layers.1.mlp.down_proj"):
            own = Scheme(8 if "v_proj" in layer else 3, None, symmetric=True)
            weights[layer] = random_weight(own, *weights[layer].shape, seed=seed)
            model.get_submodule(layer).weight.data.copy_(weights[layer].dequantize())
    artifact = quant.save(tmp_path / "a", model, weights, method=METHOD)
    exported = quant.export(artifact, tmp_path / "b", "compressed-tensors")
    assert torch.equal(logits(read_by_the_library(exported.folder)), logits(model))
    assert torch.equal(logits(dense(exported.folder)), logits(model))


# Layouts are those of one architecture; the other one names and transposes its layers otherwise.
EXPORTED = [
    (name, symmetric, group_size, bits)
    for name, widths in (("llama", BITS), ("opt", (3, 4)))
    for symmetric in (True, False)
    for group_size in (None, 8)
    for bits in widths
]


@pytest.mark.parametrize(("name", "symmetric", "group_size", "bits"), EXPORTED)
def test_the_library_reads_what_is_exported(
    tmp_path: Path, name: str, symmetric: bool, group_size: int | None, bits: int
) -> None:
    """Plain from_pretrained gives the very same float32 logits; 40 and 72 fill no word evenly."""
    scheme = Scheme(bits, group_size=group_size, symmetric=symmetric)
    model, weights = quantized(name, scheme)
    artifact = quant.save(tmp_path / "a", model, weights, method=METHOD)
    exported = quant.export(artifact, tmp_path / "b", "compressed-tensors")
    theirs = read_by_the_library(exported.folder)
    assert torch.equal(logits(theirs), logits(model))
    assert torch.equal(logits(dense(exported.folder)), logits(model))


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (Scheme(4, symmetric=True), []),
        (Scheme(8), ["transformers dequantizes"]),
        (Scheme(3, symmetric=True), ["vLLM reads 3 bits, symmetric as they are, in releases"]),
        (Scheme(5), ["transformers dequantizes", "transformers reads 5 bits; vLLM reads asym"]),
        (
            Scheme(4, symmetric=True, head=Scheme(6, symmetric=True)),
            ["37291", "vLLM reads 6 bits, symmetric as they are"],
        ),
    ],
)
def test_what_vllm_reads_is_said(scheme: Scheme, words: list[str]) -> None:
    """Its source: symmetric 2 to 8 bits, asymmetric 4 and 8."""
    layer = StoredLayer("model.layers.0.mlp.up_proj", 8, 8, dtype=torch.float16)
    found = FORMAT.writer.notes(scheme, [layer])
    assert len(found) == len(words)
    assert all(word in note for word, note in zip(words, found, strict=True))


@pytest.mark.parametrize("bits", BITS)
def test_rows_have_the_words_that_readers_count(bits: int) -> None:
    """ceil(inputs * bits / 32) words along the inputs, zero-points so along the outputs."""
    shapes = FORMAT.writer.entries(Scheme(bits, 8), StoredLayer("x", 24, 40))
    assert shapes["weight_packed"][0] == (24, math.ceil(40 * bits / 32))
    assert shapes["weight_zero_point"][0] == (math.ceil(24 * bits / 32), 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_half_precision_weights_are_the_same(
    tmp_path: Path, dtype: torch.dtype, symmetric: bool
) -> None:
    """Exact when the scales have the type of the model; other types are rounded, and it is said."""
    word = str(dtype).removeprefix("torch.")
    scheme = Scheme(4, group_size=8, symmetric=symmetric, scale_dtype=word)
    model, weights = quantized("llama", scheme)
    artifact = quant.save(tmp_path / "a", model.to(dtype), weights, method=METHOD)
    exported = quant.export(artifact, tmp_path / "b", "compressed-tensors")
    assert not any("round" in note for note in exported.notes)
    theirs = read_by_the_library(exported.folder)
    values = logits(theirs)  # the first pass decompresses
    for layer, weight in weights.items():
        assert torch.equal(theirs.get_submodule(layer).weight, weight.dequantize(dtype))
    assert torch.equal(values, logits(dense(exported.folder)))


def test_scales_that_readers_will_round_are_named(tmp_path: Path) -> None:
    model, weights = quantized("llama", Scheme(3, group_size=8))
    artifact = quant.save(tmp_path / "a", model.to(torch.bfloat16), weights, method=METHOD)
    notes = quant.export(artifact, tmp_path / "b", "compressed-tensors").notes
    assert "readers will round the float16 scales" in notes[0]
    assert "scheme.scale_dtype=bfloat16" in notes[0]
    assert "transformers dequantizes asymmetric grids when it loads them" in notes[1]
    assert "transformers reads 3 bits; vLLM reads asymmetric grids only of 4 and 8" in notes[2]
    assert quant.export(artifact, tmp_path / "c", "gptq-v2").notes == ()
    model, weights = quantized("llama", Scheme(3, scale_dtype="float32"))
    artifact = quant.save(tmp_path / "a", model, weights, method=METHOD)
    (note,) = quant.export(artifact, tmp_path / "d", "gptq-v2").notes
    assert "as float16 and will round these float32 scales" in note


@pytest.mark.parametrize("scheme", [Scheme(4, group_size=128, symmetric=True), Scheme(3)])
def test_the_embedded_model(tmp_path: Path, scheme: Scheme) -> None:
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()
    weights = quantize_model(model, [], quant_config.QuantizationConfig(rtn.SOLVER, scheme)).weights
    artifact = quant.save(tmp_path / "a", model, weights, method=METHOD, tokenizer=EMBEDDED)
    exported = quant.export(artifact, tmp_path / "b", "compressed-tensors")
    theirs = read_by_the_library(exported.folder)
    assert torch.equal(logits(theirs), logits(dense(artifact)))
    # The kernels add up in another order than nn.Linear.
    packed = quant.load(exported.folder)
    torch.testing.assert_close(logits(packed), logits(theirs), rtol=0, atol=1e-3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported.folder)
    assert tokenizer("Tom put the key upstairs.").input_ids


@pytest.mark.realdata
@pytest.mark.parametrize("scheme", [Scheme(4), Scheme(4, group_size=32, symmetric=True), Scheme(8)])
def test_a_trained_model_on_real_text(tmp_path: Path, shared: Path, scheme: Scheme) -> None:
    source = shared / "models" / "tinystories-656k"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    weights = quantize_model(model, [], quant_config.QuantizationConfig(rtn.SOLVER, scheme)).weights
    artifact = quant.save(tmp_path / "a", model, weights, method=METHOD, tokenizer=source)
    exported = quant.export(artifact, tmp_path / "b", "compressed-tensors")
    text = (shared / "data/tinystories-valid/tinystories_valid_1M.txt").read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported.folder)
    ids = tokenizer(text.split("<|endoftext|>")[1].strip(), return_tensors="pt").input_ids
    theirs = read_by_the_library(exported.folder)
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, model(ids).logits)
        assert torch.equal(theirs(ids).logits, dense(artifact)(ids).logits)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("bits", BITS)
def test_what_the_library_writes_is_read(
    tmp_path: Path, symmetric: bool, group_size: int | None, bits: int
) -> None:
    expected = write_with_the_library(tmp_path / "a", symmetric, group_size, bits)
    ours = quant.load(tmp_path / "a", kernel="reference")
    layers = [m for m in ours.modules() if isinstance(m, QuantLinear)]
    assert {m.scheme.bits for m in layers} == {bits}
    assert len(layers) == 14
    # Without it transformers 5.23 with compressed-tensors 0.20 expects zero-points that are not
    # packed, and stops; the configuration of our exports has it.
    options = {} if symmetric else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    theirs = read_by_the_library(tmp_path / "a", **options)
    assert torch.equal(logits(dense(tmp_path / "a")), logits(theirs))
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=1e-5)
    checkpoint = quant.checkpoint.read_format(tmp_path / "a")
    assert checkpoint.producer.startswith("compressed-tensors 0.")


def write_with_the_library(
    folder: Path, symmetric: bool, group_size: int | None, bits: int
) -> torch.Tensor:
    """A model quantized, packed and saved by compressed-tensors; its logits before packing."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    arguments = QuantizationArgs(
        num_bits=bits,
        symmetric=symmetric,
        strategy="channel" if group_size is None else "group",
        group_size=group_size,
    )
    group = QuantizationScheme(targets=["Linear"], weights=arguments)
    config = QuantizationConfig(
        config_groups={"group_0": group}, ignore=["lm_head"], quantization_status="frozen"
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            _choose_grid(module, symmetric, group_size, bits)
    before = logits(model)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    return before


def _choose_grid(module: nn.Module, symmetric: bool, group_size: int | None, bits: int) -> None:
    """Min-max scales and zero-points, signed as the library has them."""
    weight = module.weight.data
    groups = weight.unflatten(1, (-1, group_size or weight.shape[1]))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if symmetric:
        scale, zero = groups.abs().amax(-1) / (2 ** (bits - 1) - 0.5), torch.zeros_like(low)
    else:
        scale = (high - low) / (2**bits - 1)
        half = 2 ** (bits - 1)
        zero = (-half - low / scale).round().clamp(-half, half - 1)
    module.weight_scale.data.copy_(scale)
    module.weight_zero_point.data.copy_(zero.to(torch.int8))
