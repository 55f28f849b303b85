"""The kernels that oneDNN compiles, one for every shape of a product, and keeps."""

from __future__ import annotations

from collections.abc import Sequence

from quant.tiling import BLOCKS, PANEL, strips

# oneDNN compiles a kernel for every shape of a product and keeps the last 1024. Measured: 0.5 to
# 0.8 MB each, constant from 1024 on.
PRODUCT_BYTES, PRODUCTS_KEPT = 800_000, 1024


def product_shapes(layers: Sequence[tuple[int, int]], mixture: bool) -> int:
    """Number of product shapes, of those kept, in a block with these layers (outputs, inputs).

    Those of its layers, and the others by number of inputs. In a mixture an expert gets another
    number of tokens in every batch.
    """
    if mixture:
        return PRODUCTS_KEPT
    count = 2 * len(set(layers))  # a last batch may be smaller
    for inputs in {inputs for _, inputs in layers}:
        heights = {outputs for outputs, n in layers if n == inputs}
        panels, columns = -(-inputs // PANEL) - 1, -(-inputs // BLOCKS["cpu"]) - 1
        count += 2 * len(strips(inputs)) + panels * (1 + len(heights)) + 2 * columns
    return min(count, PRODUCTS_KEPT)
