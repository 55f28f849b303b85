"""Files of compressed-tensors before 0.18, which put 32 // bits whole codes in a word."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import quant
from quant.checkpoint import read_format, read_layer
from quant.checkpoint.folder import MANIFEST
from quant.checkpoint.inspection import inspect
from quant.checkpoint.source import ArtifactSource
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.weight import QuantizedWeight
from tests.oracles.random_weights import random_weight, same
from tests.oracles.textbook_unpack import compressed_tensors, pack_whole_codes, whole_codes
from tests.quant.stored_layers import described, write
from tests.quant.tiny_checkpoints import METHOD, edit_config, edit_tensors, logits, quantized

CT = "compressed-tensors"
OLD, NEW = "0.17.1", "0.18.0"


def packed(codes: Tensor, bits: int) -> Tensor:
    return torch.tensor([pack_whole_codes(row, bits) for row in codes.tolist()], dtype=torch.int32)


def old_layer(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors of a layer as 0.17.1 packs them."""
    tensors = write(CT, weight)
    bits = weight.scheme.bits
    tensors["weight_packed"] = packed(weight.codes, bits)
    if not weight.scheme.symmetric:
        tensors["weight_zero_point"] = packed(weight.zero.t(), bits).t().contiguous()
    return tensors


def config_of(weight: QuantizedWeight, version: str | None) -> dict[str, Any]:
    config = described(CT, weight)
    del config["version"]
    return config if version is None else {**config, "version": version}


@st.composite
def weights(draw: st.DrawFn) -> QuantizedWeight:
    group = draw(st.sampled_from([None, 3, 8, 20]))
    scheme = Scheme(
        bits=draw(st.sampled_from([2, 3, 3, 4, 5, 6, 7, 8])),
        group_size=group,
        symmetric=draw(st.booleans()),
    )
    inputs = (group or 1) * draw(st.integers(1, 7)) * draw(st.sampled_from([1, 9]))
    return random_weight(scheme, draw(st.integers(1, 67)), inputs, seed=draw(st.integers(0, 99)))


@settings(max_examples=60, deadline=None)
@given(weights())
def test_both_packings_are_read_by_the_version(weight: QuantizedWeight) -> None:
    tensors, bits = old_layer(weight), weight.scheme.bits
    textbook = compressed_tensors(tensors, bits, whole_codes)
    exact = weight.scale.double().repeat_interleave(weight.shape[1] // weight.scale.shape[1], 1) * (
        weight.codes.double() - weight.zero[:, weight.column_groups()]
    )
    assert torch.equal(textbook, exact)
    assert same(read_layer(tensors, config_of(weight, OLD)), weight)
    for version in (NEW, None):  # a stream that fits both packings needs a version
        if version is None and 32 % bits:
            continue
        assert same(read_layer(write(CT, weight), config_of(weight, version)), weight)


@pytest.mark.parametrize("version", [OLD, NEW, None, "main"])
@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_words_that_fit_one_packing_show_it(bits: int, version: str | None) -> None:
    """128 codes take 12 words as a stream and 13 as whole codes of 3 bits, whatever is declared."""
    for symmetric in (True, False):
        weight = random_weight(Scheme(bits, group_size=64, symmetric=symmetric), 6, 128)
        for tensors in (old_layer(weight), write(CT, weight)):
            assert same(read_layer(tensors, config_of(weight, version)), weight)


def test_zero_points_show_the_packing_of_words_that_fit_both() -> None:
    """40 codes of 3 bits take 4 words in both packings, 64 take 6 or 7."""
    weight = random_weight(Scheme(3, group_size=8), 64, 40)
    for tensors in (old_layer(weight), write(CT, weight)):
        assert same(read_layer(tensors, config_of(weight, None)), weight)


def test_words_that_fit_both_need_a_version() -> None:
    weight = random_weight(Scheme(3, symmetric=True), 6, 40)
    message = (
        r"this layer.weight_packed holds 40 codes of 3 bits in 4 words a row, which fits both .*"
        r"\(10 codes a word before 0\.18, .*names no release: set it in config"
    )
    for version in (None, "main", "", "0.17.2.a20260731"):
        with pytest.raises(ArtifactError, match=message):
            read_layer(old_layer(weight), config_of(weight, version))
    for version in ("0.6.0", "0.12.3.a20251114", "0.15.0.1", OLD):
        assert same(read_layer(old_layer(weight), config_of(weight, version)), weight)
    for version in ("0.18.1.a20260801", "0.20.0", "1.0"):
        assert same(read_layer(write(CT, weight), config_of(weight, version)), weight)
    short = random_weight(Scheme(3, symmetric=True), 6, 10)  # one word is the same in both
    assert same(read_layer(old_layer(short), config_of(short, None)), short)


def test_bits_beyond_the_codes_are_damage() -> None:
    """A stream that fits both packings and is declared older, or a bit that fell over."""
    weight = random_weight(Scheme(3, group_size=8), 40, 40)
    for part in ("weight_packed", "weight_zero_point"):
        for place in (30, 31):
            tensors = old_layer(weight)
            tensors[part][1, 1] |= 1 << place if place < 31 else -(1 << 31)
            with pytest.raises(ArtifactError, match=rf"layer\.{part} has bits beyond the 10 codes"):
                read_layer(tensors, config_of(weight, OLD))
    with pytest.raises(ArtifactError, match="is not that of the release that wrote it"):
        read_layer(write(CT, weight), config_of(weight, OLD))


def test_padding_may_hold_codes() -> None:
    """0.9 repeats a code of the first word in the unused places of the last."""
    weight = random_weight(Scheme(3, group_size=8), 8, 64)
    tensors = old_layer(weight)
    tensors["weight_zero_point"] |= 5 << 27  # place 9 of 8 zero-points in a word
    tensors["weight_packed"][:, -1] |= 3 << 27
    assert same(read_layer(tensors, config_of(weight, OLD)), weight)


@pytest.mark.parametrize(
    ("part", "change", "shape"),
    [
        ("weight_packed", lambda t: t[:, :-2], r"\[64, 5\]; .* make it torch.int32 \[64, 7\]"),
        ("weight_packed", lambda t: t[:-1], r"\[63, 7\]; .* make it torch.int32 \[64, 7\]"),
        ("weight_zero_point", lambda t: t[:-2], r"\[5, 8\]; .* make it torch.int32 \[7, 8\]"),
        ("weight_zero_point", lambda t: t[:, 1:], r"\[7, 7\]; .* make it torch.int32 \[7, 8\]"),
        # Cut to the words of a stream, while the other part has those of whole codes.
        ("weight_packed", lambda t: t[:, :-1], r"\[64, 6\]; .* make it torch.int32 \[64, 7\]"),
    ],
)
def test_what_is_cut_short_is_named(part: str, change: Any, shape: str) -> None:
    weight = random_weight(Scheme(3, group_size=8), 64, 64)
    tensors = old_layer(weight)
    tensors[part] = change(tensors[part]).contiguous()
    with pytest.raises(ArtifactError, match=rf"layer\.{part} is torch.int32 {shape}"):
        read_layer(tensors, config_of(weight, OLD))


def old_folder(folder: Path, scheme: Scheme, version: str | None = OLD) -> Any:
    """A tiny model as llm-compressor saved it with 0.17.1; its inputs are 40 and 72."""
    model, weights = quantized("llama", scheme)
    artifact = quant.save(folder / "a", model, weights, method=METHOD)
    exported = quant.export(artifact, folder / "b", CT).folder
    (exported / MANIFEST).unlink()

    def repack(tensors: dict[str, Tensor]) -> None:
        for layer, weight in weights.items():
            stored = old_layer(weight).items()
            tensors |= {f"{layer}.{p}": t for p, t in stored if p != "weight_scale"}

    edit_tensors(repack)(exported)

    def declare(config: dict[str, Any]) -> None:
        said = config["quantization_config"]
        del said["meta"], said["version"]
        said |= {} if version is None else {"version": version}

    edit_config(declare)(exported)
    return exported, model, weights


def test_a_model_is_loaded_and_its_bits_are_those_of_the_files(tmp_path: Path) -> None:
    folder, model, weights = old_folder(tmp_path, Scheme(3, group_size=8))
    torch.testing.assert_close(logits(quant.load(folder)), logits(model), rtol=0, atol=1e-5)
    found = inspect(folder)
    assert (
        "10 codes of 3 bits a word, as compressed-tensors packed before 0.18" in found.zero_points
    )
    assert (found.format, found.producer) == (CT, f"{CT} {OLD}")
    stored = {layer: old_layer(weight) for layer, weight in weights.items()}
    for tensors in stored.values():  # the model is float32
        tensors["weight_scale"] = tensors["weight_scale"].float()
    held = sum(tensor.nbytes for tensors in stored.values() for tensor in tensors.values())
    assert found.bits_per_weight == 8 * held / found.weights
    with ArtifactSource(folder) as source:
        layer = "model.layers.0.self_attn.q_proj"  # [40, 40]: 4 words a row, and a column of zeros
        bits = 32 * (40 * 4 + 4 * 5) + 32 * 40 * 5 + 2 * 64
        assert source.layer_bits()[layer] == (1600, bits)
    # Another release packs the same codes as a stream.
    again = quant.export(folder, tmp_path / "c", CT).folder
    assert read_format(again).evidence == ""
    assert all(same(w, weights_of(again)[n]) for n, w in weights_of(folder).items())


def weights_of(folder: Path) -> dict[str, QuantizedWeight]:
    return quant.load_weights(folder)


def test_a_code_of_three_bits_takes_3_2() -> None:
    weight = random_weight(Scheme(3, symmetric=True), 4, 320)
    tensors = old_layer(weight)
    assert 8 * tensors["weight_packed"].nbytes / weight.codes.numel() == 3.2
    assert same(read_layer(tensors, config_of(weight, OLD)), weight)


def test_other_layers_show_the_packing_where_no_version_does(tmp_path: Path) -> None:
    """40 inputs fit both packings, 72 do not: down_proj has 8 words of 3 bits, not 7."""
    folder, model, _ = old_folder(tmp_path, Scheme(3, symmetric=True), version=None)
    assert "before 0.18" in read_format(folder).evidence
    torch.testing.assert_close(logits(quant.load(folder)), logits(model), rtol=0, atol=1e-5)


def test_four_bits_of_an_old_release_count_as_ever(tmp_path: Path) -> None:
    folder, _, _ = old_folder(tmp_path, Scheme(4, group_size=8))
    found = inspect(folder)
    assert found.bits_per_weight == Scheme(4, 8, scale_dtype="float32").bits_per_weight(40)
    assert "before 0.18" not in found.zero_points
