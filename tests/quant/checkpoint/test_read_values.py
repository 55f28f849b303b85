"""Values out of the words of a file: those of the codes, and those of torch, bit for bit."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import quant
from cuda_ext import codes as packed_codes
from cuda_ext import packed
from cuda_ext.toolchain import BuildError, find_compiler
from quant.checkpoint.export import export
from quant.checkpoint.layers import (
    quantized_layers,
    read_layer,
    read_weight,
)
from quant.checkpoint.loader import read_format
from quant.checkpoint.tensors import TensorReader
from quant.linear import QuantLinear, pack
from quant.scheme import Scheme
from quant.weight import AnyWeight, QuantizedWeight
from tests.oracles.random_weights import random_weight, same
from tests.quant.stored_layers import described, write
from tests.quant.tiny_checkpoints import METHOD, quantized

FORMATS = ("gptq-v1", "gptq-v2", "compressed-tensors", "awq")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _library() -> None:
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(f"no library here: {error}")
    packed.load()


def schemes() -> list[tuple[str, Scheme, bool]]:
    found = []
    for format in FORMATS:
        for bits in {"awq": (4,), "gptq-v1": (3, 4)}.get(format, (2, 3, 4, 5, 8)):
            for size, symmetric in ((None, True), (16, False), (40, True)):
                scattered = size == 16 and format.startswith("gptq")
                found.append((format, Scheme(bits, size, symmetric=symmetric), scattered))
    return found


@pytest.mark.parametrize(("format", "scheme", "scattered"), schemes(), ids=str)
def test_torch_and_compiled_code_read_the_same(
    format: str, scheme: Scheme, scattered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of every kind, in 80 inputs and 72 outputs, which no vector divides."""
    weight = random_weight(scheme, 72, 80, scattered=scattered)
    if format == "gptq-v1":
        without_zeros(weight)
    tensors, config = write(format, weight), described(format, weight)
    compiled = read_layer(tensors, config, shape=weight.shape)
    values = [compiled.dequantize(dtype) for dtype in DTYPES]
    monkeypatch.setattr(packed_codes, "compiled", lambda _: False)
    by_torch = read_layer(tensors, config, shape=weight.shape)
    assert isinstance(compiled, QuantizedWeight)
    assert isinstance(by_torch, QuantizedWeight)
    assert torch.equal(compiled.codes, weight.codes)
    assert same(compiled, by_torch)
    for found, dtype in zip(values, DTYPES, strict=True):
        assert torch.equal(found, by_torch.dequantize(dtype))
        assert found.dtype == dtype
    written = write(format, weight)
    assert all(torch.equal(written[name], part) for name, part in tensors.items())


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("format", ["", *FORMATS])
def test_layers_of_a_folder(tmp_path: Path, format: str, mapped: bool) -> None:
    """By words, by codes, and from what is multiplied."""
    model, weights = quantized("llama", Scheme(4 if format == "awq" else 3, group_size=8))
    if format == "gptq-v1":
        weights = {name: without_zeros(weight) for name, weight in weights.items()}
    folder = quant.save(tmp_path / "own", model, weights, method=METHOD)
    if format:
        folder = tmp_path / format
        export(tmp_path / "own", folder, format)
    checkpoint = read_format(folder)
    with TensorReader(folder, mapped=mapped) as reader:
        layers = quantized_layers(reader, checkpoint)
        for layer, parts in layers.items():
            weight = read_weight(reader, checkpoint, layer, parts)
            assert isinstance(weight, QuantizedWeight)
            values = weight.dequantize()
            assert weight.words is not None, "values come from words"
            packed = pack(weight)
            assert (weight.words is None) == (format in ("compressed-tensors", "awq"))
            assert torch.equal(weight.codes, weights[layer].codes)
            assert weight.words is None
            assert torch.equal(values, weight.dequantize())
            assert torch.equal(values, weights[layer].dequantize())
            for name, part in pack(weight).items():
                assert torch.equal(packed[name], part)


def test_a_loaded_model_does_not_lie_in_its_file(tmp_path: Path) -> None:
    """Also where no kernel changes the buffers: a file may be written anew."""
    model, weights = quantized("llama", Scheme(4, group_size=8))
    folder = quant.save(tmp_path / "own", model, weights, method=METHOD)
    loaded = quant.load(folder, kernel="reference")
    held = quant.load_weights(folder)
    for file in folder.glob("*.safetensors"):
        with file.open("r+b") as opened:
            opened.seek(-file.stat().st_size // 2, 2)
            opened.write(b"\x55" * (file.stat().st_size // 2))
    for layer, weight in weights.items():
        module = loaded.get_submodule(layer)
        assert isinstance(module, QuantLinear)
        assert torch.equal(module.dequantize(), weight.dequantize())
        assert torch.equal(held[layer].dequantize(), weight.dequantize())


def without_zeros(weight: AnyWeight) -> QuantizedWeight:
    """Version 1 of GPTQ has no zero-point of 0."""
    assert isinstance(weight, QuantizedWeight)
    assert weight.zero is not None
    weight.zero.clamp_(min=1)
    return weight


def test_packed_codes_are_unpacked_when_they_are_asked_for() -> None:
    weight = random_weight(Scheme(3, 16), 8, 48)
    words = packed_codes.Words(packed_codes.pack_rows(weight.codes, 3), 3, 48)
    held = QuantizedWeight(words, weight.scheme, None, weight.grid)
    assert held.shape == (8, 48)
    assert torch.equal(held.column_groups(), weight.column_groups())
    assert torch.equal(held.dequantize(), weight.dequantize())
    assert held.words is words
    again = pickle.loads(pickle.dumps(held))
    assert torch.equal(replace(held, group_index=None).codes, weight.codes)
    for each in (held, again):
        assert torch.equal(each.codes, weight.codes)
        assert each.codes is each.codes
        assert each.words is None
        assert torch.equal(each.dequantize(), weight.dequantize())


@pytest.mark.parametrize(("scheme", "scattered"), [(Scheme(4, 16), True), (Scheme(5, 24), False)])
def test_layers_without_a_kernel_are_dequantized_to_the_bits_of_the_operator(
    scheme: Scheme, scattered: bool
) -> None:
    weight = random_weight(scheme, 40, 96, scattered=scattered)
    by_torch = QuantLinear.from_quantized(weight, kernel="reference")
    compiled = QuantLinear.from_quantized(weight, kernel="cpu")
    assert not compiled.tiled
    for dtype in DTYPES:
        assert torch.equal(compiled.dequantize(dtype), by_torch.dequantize(dtype))
