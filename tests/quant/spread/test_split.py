"""Blocks are split among devices so that the fullest is as empty as can be."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import ModelStructureError, NotEnoughMemory
from quant.measure.architectures import architecture_config
from quant.measure.dummy import predict_parts
from quant.scheme import Scheme
from quant.spread.split import GIB, Parts, Room, Spread, fewest, split


def rooms(count: int, free: int | None = None) -> list[Room]:
    return [Room(f"cuda:{index}", free) for index in range(count)]


def held(parts: Parts, counts: tuple[int, ...]) -> list[int]:
    """Bytes on every device, counted block by block."""
    found, start = [], 0
    for place, count in enumerate(counts):
        size = sum(parts.blocks[start : start + count])
        size += parts.first if place == 0 else 0
        size += parts.last if place == len(counts) - 1 else 0
        found.append(size)
        start += count
    return found


@given(
    first=st.integers(0, 50),
    blocks=st.lists(st.integers(1, 20), min_size=3, max_size=8),
    last=st.integers(0, 50),
    free=st.lists(st.integers(30, 200), min_size=1, max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_no_other_split_has_a_less_full_device(first, blocks, last, free) -> None:
    parts = Parts(first, tuple(blocks), last)
    given_rooms = [Room(f"cuda:{index}", each) for index, each in enumerate(free)]
    every = []
    for cuts in combinations(range(1, len(blocks)), len(free) - 1):
        ends = [0, *cuts, len(blocks)]
        counts = tuple(b - a for a, b in pairwise(ends))
        every.append(max(n / f for n, f in zip(held(parts, counts), free, strict=True)))
    if min(every) > 1:
        with pytest.raises(NotEnoughMemory):
            split(parts, given_rooms, "model")
        return
    counts = split(parts, given_rooms, "model")
    assert sum(counts) == len(blocks)
    assert min(counts) >= 1
    fullest = max(n / f for n, f in zip(held(parts, counts), free, strict=True))
    assert fullest == pytest.approx(min(every))


def test_of_equally_full_splits_the_most_even_is_taken() -> None:
    assert sorted(split(Parts(0, (1,) * 10, 0), rooms(3), "model")) == [3, 3, 4]


def test_a_larger_device_takes_more() -> None:
    unequal = [Room("cuda:0", 100), Room("cuda:1", 300)]
    assert split(Parts(0, (10,) * 8, 0), unequal, "model") == (2, 6)


def test_opt_175b_in_float16_needs_five_gpus_of_80_gb() -> None:
    """As in the paper; 96 blocks of 3.377 GiB, and embeddings that are tied to the head."""
    config, half = architecture_config("opt-175b"), torch.float16
    parts = predict_parts(config, None, dtype=half, kernel="torch")
    assert (len(parts.blocks), parts.last) == (96, 0)
    block = 12 * 12288**2 + 13 * 12288  # q, k, v, out and two of four times the width; norms
    assert set(parts.blocks) == {2 * block}
    assert parts.first == 2 * (50272 * 12288 + 2050 * 12288 + 2 * 12288)
    assert fewest(parts, rooms(8, 80 * GIB - 2**30), "opt-175b") == 5
    packed = predict_parts(config, Scheme(3), dtype=half, kernel="cuda")
    assert fewest(packed, rooms(8, 80 * GIB - 2**30), "opt-175b") == 1
    assert fewest(parts, rooms(4, 80 * GIB), "opt-175b") is None


def test_what_does_not_fit_is_refused_with_the_bytes_of_every_device() -> None:
    parts = Parts(2 * GIB, (4 * GIB,) * 6, GIB)
    with pytest.raises(NotEnoughMemory) as refused:
        split(parts, rooms(2, 13 * GIB), "model=big")
    assert str(refused.value) == (
        "model=big needs 27.00 GiB, and spread over 2 devices as evenly as its blocks allow it "
        "does not fit (cuda:0 14.00 of 13.00, cuda:1 13.00 of 13.00 GiB free): use more devices, "
        "fewer bits or a smaller model."
    )


def test_more_devices_than_blocks_are_refused() -> None:
    with pytest.raises(ModelStructureError, match="has 2 blocks, fewer than the 3 devices"):
        split(Parts(1, (1, 1), 1), rooms(3), "model")


def test_names_lie_where_their_block_does() -> None:
    spread = Spread("model.layers", ("cuda:0", "cuda:1"), (2, 10), "lm_head")
    assert spread.of("model.layers.1.mlp.down_proj.qweight") == "cuda:0"
    assert spread.of("model.layers.11.mlp.down_proj") == "cuda:1"
    assert spread.of("model.embed_tokens.weight") == "cuda:0"
    assert spread.of("lm_head.weight") == "cuda:1"
    assert spread.said() == "cuda:0: embeddings, blocks 0 to 1; cuda:1: blocks 2 to 11, head"
    tied = Spread("model.layers", ("cuda:0", "cuda:1"), (1, 1), None)
    assert tied.said() == "cuda:0: embeddings, head, block 0; cuda:1: block 1"
