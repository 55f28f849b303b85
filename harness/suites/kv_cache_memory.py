"""Bytes that the suite of key-value caches holds beside the weights of the model.

Windows are measured one after the other, so their number counts for the figures alone. Keys and
values are those of one layer at a time: caches are simulated on all tokens of a window at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.suites.at_once import (
    CACHED_LOGITS,
    LOGITS_AT_ONCE,
    POSITIONS_AT_ONCE,
    WHOLE_BYTES,
)
from quant.kv.base import ATTENDED, CHECKED, QUERIES
from quant.memory.plan import IN_HOST, Item, inside_bytes

if TYPE_CHECKING:
    from quant.kv.support import Chosen
    from quant.memory.shapes import ModelShape

QUERY_COPIES = 3  # queries, scaled, and what attention gives
# Products, softmax, what a mask leaves of either, and parts; a window has ever longer rows of them,
# and each size leaves holes in the heap that the next does not fit into (measured).
LOGIT_COPIES = 8
FIGURES = 4  # numbers of a prediction that are kept until the end


def items(
    shape: ModelShape,
    heads: tuple[int, int],
    width: int,
    window: int,
    predictions: int,
    schemes: Sequence[Chosen],
    budgets: int,
    here: str,
) -> Iterator[Item]:
    """Yield the items of a measurement.

    heads        of keys and values, and of queries.
    width        channels of a head.
    window       tokens of the longest window; predictions: of all windows of one text.
    here         "host" or "device".
    """
    number = max(shape.itemsize, 4)  # caches compute in float32, or in float64
    kept, asked = (2 * heads[0] * width * window, heads[1] * width * window)
    attend, compare, look = ("attend",), ("compare",), ("look",)
    yield Item("a window inside a block", inside_bytes(shape, window), here, attend)
    stored = min(shape.itemsize, 2)
    yield Item("keys and values of a layer, in 16 bits", kept * stored, here, attend)
    copies = max(each.scheme.copies for each in schemes)
    yield Item("the copies that a cache makes of them", copies * kept * number, here, attend)
    yield Item("queries of a layer", QUERY_COPIES * asked * number, here, attend)
    rows = min(max(ATTENDED // (heads[1] * window), QUERIES[0]), QUERIES[1], window)
    logits = LOGIT_COPIES * rows * heads[1] * window * number
    yield Item("attention of some queries", logits, here, attend)
    whole = window * shape.vocabulary * shape.itemsize
    behind = whole if whole <= WHOLE_BYTES else window * shape.hidden * shape.itemsize
    yield Item("what is compared, of two caches", 2 * behind, here)
    some = min(window, POSITIONS_AT_ONCE, -(-LOGITS_AT_ONCE // shape.vocabulary)) * shape.vocabulary
    counted = 2 * some * number + 5 * 8 * min(some, CACHED_LOGITS)
    yield Item("logits that are compared", counted, here, compare)
    first = min(CHECKED, window)
    checked = first * shape.vocabulary * (2 * shape.itemsize + 4 * 8)
    yield Item("logits of the check of attention", checked, here, look)
    yield Item("a check inside a block", inside_bytes(shape, first), here, look)
    settings = 1 + budgets * len(schemes)
    yield Item("figures of all windows", FIGURES * 8 * settings * predictions, IN_HOST)
