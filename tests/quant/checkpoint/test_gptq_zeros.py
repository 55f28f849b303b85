"""Version 1 stores zero-points minus one, version 2 as they are: a mix-up is named, not guessed."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from cuda_ext.layout import pack_codes
from quant.checkpoint import read_layer
from quant.checkpoint.choose import parse
from quant.checkpoint.layers import settle
from quant.errors import ArtifactError
from quant.linear import pack
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.oracles.random_weights import random_weight, same
from tests.quant.stored_layers import write

CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": False, "desc_act": False}
VERSIONS = ("gptq", "gptq_v2")


def layer(bits: int = 4, version: str = "gptq_v2", outputs: int = 6, **settings: Any) -> Any:
    """Tensors of a random layer [outputs, 24] as a file of that version holds them; the weight."""
    weight = random_weight(Scheme(bits, group_size=8, **settings), outputs, 24)
    tensors = pack(weight)
    if version == "gptq":
        # What readers of version 1 undo: zero-point - 1, where 0 wraps to 2^bits - 1.
        stored = (weight.zero.int() - 1) % 2**bits
        tensors["qzeros"] = pack_codes(stored.t().to(torch.uint8), bits)
    return tensors, weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", VERSIONS)
def test_both_versions(bits: int, version: str) -> None:
    tensors, weight = layer(bits, version)
    for key in ("checkpoint_format", "format"):  # transformers writes both
        config = {**CONFIG, "bits": bits, key: version}
        assert same(read_layer(tensors, config, shape=(6, 24)), weight)
    (other,) = set(VERSIONS) - {version}
    config = {**CONFIG, "bits": bits, "checkpoint_format": other}
    assert not same(read_layer(tensors, config, shape=(6, 24)), weight)


def rounded(bits: int, version: str, lean: float = 0.0) -> Any:
    """As `layer`, of Gaussian weights rounded to nearest; `lean` moves them by so many steps."""
    torch.manual_seed(bits)
    weight = torch.randn(128, 8192 if bits == 8 else 128)  # 256 steps need many to be sure
    scheme = Scheme(bits, group_size=16)
    first = rtn.solve(weight, scheme).weight
    found = rtn.solve(weight + lean * first.scale.float().mean(), scheme).weight
    tensors = pack(found)
    if version == "gptq":
        stored = (found.zero.int() - 1) % 2**bits
        tensors["qzeros"] = pack_codes(stored.t().to(torch.uint8), bits)
    return tensors, found


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", VERSIONS)
def test_dequantized_rows_tell_the_version_of_asymmetric_files(bits: int, version: str) -> None:
    tensors, weight = rounded(bits, version)
    config = {**CONFIG, "bits": bits, "group_size": 16}
    if bits == 2 and version == "gptq_v2":
        config["checkpoint_format"] = None  # as if it were missing
    assert same(read_layer(tensors, config), weight)
    parsed = settle(parse(config, "folder"), {"layer": tensors}, "folder")
    assert parsed.name == {"gptq": "GPTQ v1", "gptq_v2": "GPTQ v2"}[version]
    assert "found in the tensors: checkpoint_format not declared" in parsed.zero_points
    assert re.fullmatch(
        r"weights of 1 layer average [+-]0\.\d\d ± .* steps from 0, in the other version "
        r"[+-](0\.[89]|1\.\d).*",
        parsed.evidence,
    )


def test_what_fits_both_versions_is_refused_with_the_key_that_decides() -> None:
    """Weights that lean by half a step lie halfway between the two readings."""
    config = {**CONFIG, "group_size": 16}
    tensors, weight = rounded(4, "gptq_v2", lean=-0.5)
    sentence = r"proj: .* does not say checkpoint_format, and 1 layer do not show it: .*; add "
    with pytest.raises(ArtifactError, match=sentence + "checkpoint_format to quantization_config"):
        read_layer(tensors, config, layer="proj")
    assert same(read_layer(tensors, {**config, "checkpoint_format": "gptq_v2"}), weight)
    few, _ = layer(4, "gptq")  # too little to be sure of anything
    with pytest.raises(ArtifactError, match="does not say checkpoint_format"):
        read_layer(few, CONFIG)


def test_zero_points_of_0_in_version_one_wrap_and_are_said() -> None:
    tensors, _ = layer(4, "gptq")
    config = {**CONFIG, "checkpoint_format": "gptq"}
    wraps = pack_codes(torch.full((3, 6), 15, dtype=torch.uint8), 4)
    assert not read_layer({**tensors, "qzeros": wraps}, config).zero.any()
    parsed = settle(parse(config, "f"), {"a": {**tensors, "qzeros": wraps}}, "f")
    assert parsed.zero_points.endswith("trusted; some are stored as -1 and read as 0")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_zero_points_decide(version: str, bits: int) -> None:
    tensors, weight = layer(bits, version, symmetric=True)
    known = {"gptq": "77777777", "gptq_v2": "88888888"}[version]
    if bits == 4:
        assert f"{int(layer(4, version, 8, symmetric=True)[0]['qzeros'][0, 0]) % 2**32:x}" == known
    config = {**CONFIG, "bits": bits, "sym": True}
    assert same(
        read_layer(tensors, {**config, "checkpoint_format": version}, shape=(6, 24)), weight
    )
    assert same(read_layer(tensors, config, shape=(6, 24)), weight), "the file does not say"
    (other,) = set(VERSIONS) - {version}
    half = 2 ** (bits - 1)
    stored = half - (version == "gptq")
    message = (
        rf"proj\.qzeros holds {stored} everywhere, .*checkpoint_format='{version}', but .* says "
        rf"'{other}'.*set checkpoint_format to '{version}'"
    )
    with pytest.raises(ArtifactError, match=message):
        read_layer(tensors, {**config, "checkpoint_format": other}, shape=(6, 24), layer="proj")


def test_a_symmetric_file_with_other_zero_points() -> None:
    tensors, _ = layer(4, "gptq_v2")
    for version in VERSIONS:
        config = {**CONFIG, "sym": True, "checkpoint_format": version}
        with pytest.raises(ArtifactError, match=r"qzeros holds \d+ to \d+, .* sym=true.*sym to fa"):
            read_layer(tensors, config)


def test_constant_zero_points_betray_a_symmetric_file_that_says_it_is_not() -> None:
    """Hundreds of equal zero-points, the constant of the other version, are no coincidence."""
    for version, other in (VERSIONS, VERSIONS[::-1]):
        tensors, weight = layer(4, version, 64, symmetric=True)
        right = read_layer(tensors, {**CONFIG, "checkpoint_format": version})
        assert torch.equal(right.zero, weight.zero)
        with pytest.raises(ArtifactError, match=f"set checkpoint_format to '{version}' and sym"):
            read_layer(tensors, {**CONFIG, "checkpoint_format": other})
        few, _ = layer(4, version, 6, symmetric=True)
        read_layer(few, {**CONFIG, "checkpoint_format": other})
    for version in VERSIONS:
        tensors, weight = layer(4, version, 64, symmetric=True)
        assert torch.equal(read_layer(tensors, CONFIG).zero, weight.zero), "the file does not say"
    coarse, _ = layer(2, "gptq", 64, symmetric=True)
    read_layer(coarse, {**CONFIG, "bits": 2, "checkpoint_format": "gptq_v2"}, shape=(64, 24))


def test_contradictions_of_the_configuration() -> None:
    both = {**CONFIG, "checkpoint_format": "gptq", "format": "gptq_v2"}
    with pytest.raises(ArtifactError, match=r"'gptq' and format='gptq_v2'.*remove the wrong one"):
        parse(both, "folder")
    with pytest.raises(ArtifactError, match=r"format='marlin' with quant_method='gptq' cannot be"):
        parse({**CONFIG, "format": "marlin"}, "folder")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"checkpoint_format": "gptq", "sym": True}, "version 1 .* declared, the symmetric ones"),
        ({"checkpoint_format": "gptq_v2"}, "version 2 .* declared, asymmetric: trusted"),
        ({}, "^checkpoint_format not declared$"),
    ],
)
def test_how_sure_it_is_is_said(changes: dict[str, Any], sentence: str) -> None:
    assert re.search(sentence, parse({**CONFIG, **changes}, "folder").zero_points)


def test_written_zero_points() -> None:
    weight = random_weight(Scheme(4, symmetric=True), 8, 16)
    words: dict[str, Tensor] = {v: write(v, weight)["qzeros"] for v in ("gptq-v1", "gptq-v2")}
    assert {v: f"{int(w[0, 0]) % 2**32:x}" for v, w in words.items()} == {
        "gptq-v1": "77777777",
        "gptq-v2": "88888888",
    }
