"""Codes and grids of GGUF's blocks, against the package's dequantizer and against our packing."""

import warnings
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from quant.audit.grids import rounded
from quant.checkpoint.gguf.codes import NOTHING, TYPES, BadBlock, has_grid, read_codes
from quant.checkpoint.gguf.pack import PACKINGS, pack
from quant.scheme import Scheme
from tests.oracles.random_weights import random_weight

ROWS, INPUTS = 24, 512
# Places of float16 numbers in a block.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
    "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": [],
}  # fmt: skip


def random_rows(kind: str, sign: bool = True) -> np.ndarray[Any, Any]:
    """Random blocks with scales of a few sizes, some 0 and, if asked, negative."""
    draw = np.random.default_rng(len(kind))
    how = TYPES[kind]
    raw = draw.integers(0, 256, (ROWS * INPUTS // how.block, how.size), np.uint8)
    for at in HALVES[kind]:
        size = draw.choice([0, 0.01, 0.0625, 0.7], len(raw)).astype(np.float16)
        size *= draw.choice([-1, 1] if sign else [1], len(raw)).astype(np.float16)
        raw[:, at : at + 2] = size.view(np.uint8).reshape(-1, 2)
    if kind == "TQ2_0":  # three of the four codes
        raw[:, :64] &= ~((raw[:, :64] >> 1) & 0x55)
    if kind == "MXFP4":
        raw[:, 0] = draw.integers(100, 140, len(raw))
    if kind == "NVFP4":
        raw[:, :4] &= 127
        raw[0, 0], raw[1, 1] = 0, 127
    return raw.reshape(ROWS, -1)


@pytest.mark.parametrize("kind", TYPES)
def test_values_are_those_of_the_package(kind: str) -> None:
    raw = random_rows(kind)
    found = read_codes(kind, torch.from_numpy(raw), INPUTS)
    expected = torch.from_numpy(dequantize(raw, gguf.GGMLQuantizationType[kind]).copy())
    assert torch.equal(found.dequantize(), expected)
    assert found.shape == (ROWS, INPUTS)
    assert len(expected.unique()) > 6


@pytest.mark.parametrize("kind", TYPES)
def test_its_values_are_the_nearest_levels_of_its_grids(kind: str) -> None:
    found = read_codes(kind, torch.from_numpy(random_rows(kind, sign=False)), INPUTS)
    values = found.dequantize()
    torch.testing.assert_close(rounded(values, found).dequantize(), values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda each: each.name)
def test_it_undoes_packing(packing: Any) -> None:
    scheme = Scheme(packing.bits, packing.block, symmetric=packing.symmetric)
    weight = random_weight(scheme, ROWS, INPUTS, seed=3)
    weight.grid["scale"].copy_((weight.scale.float() * 1024).round().clamp(1, 60) / 1024)
    found = read_codes(packing.name, pack(weight, packing), INPUTS)
    assert torch.equal(found.codes, weight.codes)
    assert torch.equal(found.dequantize(), weight.dequantize())


def test_every_type_that_can_be_read_has_codes_or_is_a_codebook_of_vectors() -> None:
    vectors = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in gguf.GGMLQuantizationType:
            block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
            try:
                dequantize(block, kind)
            except NotImplementedError:
                continue
            plain = kind.name in ("F32", "F16", "BF16")
            assert plain or has_grid(kind.name) != (kind.name in vectors), kind


def test_a_group_whose_scale_is_0_has_one_level() -> None:
    found = read_codes("Q8_0", torch.full((2, 34), 7, dtype=torch.uint8).index_fill_(
        1, torch.tensor([0, 1]), 0), 32)  # fmt: skip
    assert found.dequantize().abs().sum() == 0
    nearest = rounded(torch.full((2, 32), 0.3), found)
    assert nearest.dequantize().abs().max() <= 128 * NOTHING
    flat = read_codes("Q4_1", torch.tensor([[0, 0, 0, 60] + [255] * 16], dtype=torch.uint8), 32)
    assert torch.equal(flat.dequantize(), torch.ones(1, 32))  # 15 * 0 + 1
    assert torch.equal(rounded(torch.full((1, 32), 0.3), flat).dequantize(), torch.ones(1, 32))


@pytest.mark.parametrize(
    ("kind", "row", "sentence"),
    [
        ("Q4_0", [0, 0x7C] + [0] * 16, "has a scale that is no finite number"),
        ("Q4_1", [0, 0, 0, 0x7E] + [0] * 16, "has a offset that is no finite number"),
        ("MXFP4", [255] + [0] * 16, "E8M0 255"),
        ("TQ2_0", [255] * 64 + [0, 60], "code 3, and TQ2_0 ends at 2"),
    ],
)
def test_blocks_that_cannot_be_are_named(kind: str, row: list[int], sentence: str) -> None:
    raw = torch.tensor([row], dtype=torch.uint8)
    with pytest.raises(BadBlock, match=sentence):
        read_codes(kind, raw, TYPES[kind].block)
