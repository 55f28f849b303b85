"""Checkpoints read bit by bit in plain Python from the written description of their formats.

GPTQ        qweight [in * bits / 32, out]: the codes of an output are one stream of bits down its
            column; word 0 first, lowest bit first. qzeros [groups, out * bits / 32]: the
            zero-points of a group are such a stream along its row, stored minus one in version 1.
AWQ         qweight [in, out / 8] and qzeros [groups, out / 8]: nibble k of word i holds output
            8 i + (0, 2, 4, 6, 1, 3, 5, 7)[k]; zero-points as they are.
compressed-tensors  weight_packed [out, in * bits / 32] along rows, weight_zero_point
            [out * bits / 32, groups] down columns; both signed, stored plus 2^(bits - 1). Files of
            releases before 0.18 have 32 // bits whole codes in a word instead of a stream of bits.
Values are scale * (code - zero).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)


def stream(words: Sequence[int], bits: int, count: int) -> list[int]:
    """The first `count` numbers of `bits` bits in a stream of 32-bit words."""
    number = sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(words))
    return [(number >> (bits * index)) & (2**bits - 1) for index in range(count)]


def whole_codes(words: Sequence[int], bits: int, count: int) -> list[int]:
    """The first `count` numbers of words that hold 32 // bits numbers each, lowest bits first."""
    found = []
    for index in range(count):
        word, place = divmod(index, 32 // bits)
        found.append((words[word] & 0xFFFFFFFF) >> (bits * place) & (2**bits - 1))
    return found


def pack_whole_codes(codes: Sequence[int], bits: int) -> list[int]:
    """Signed 32-bit words that hold 32 // bits numbers each, lowest bits first."""
    held, words = 32 // bits, []
    for first in range(0, len(codes), held):
        some = enumerate(codes[first : first + held])
        word = sum(code << (bits * place) for place, code in some)
        words.append(word - 2**32 if word >= 2**31 else word)
    return words


def gptq(tensors: Mapping[str, Tensor], bits: int, version: int) -> Tensor:
    """float64 [out, in] of one layer of a GPTQ checkpoint; g_idx names the group of a column."""
    scales, groups = tensors["scales"].double().tolist(), tensors["g_idx"].tolist()
    outputs, inputs = len(scales[0]), len(groups)
    offset = 1 if version == 1 else 0
    zeros = [
        [zero + offset for zero in stream(row, bits, outputs)] for row in tensors["qzeros"].tolist()
    ]
    values = torch.empty(outputs, inputs, dtype=torch.float64)
    for output, column in enumerate(tensors["qweight"].t().tolist()):
        for index, code in enumerate(stream(column, bits, inputs)):
            group = groups[index]
            values[output, index] = scales[group][output] * (code - zeros[group][output])
    return values


def awq(tensors: Mapping[str, Tensor], group_size: int) -> Tensor:
    """float64 [out, in] of one layer of an AWQ checkpoint (gemm)."""
    codes, zeros = _nibbles(tensors["qweight"]), _nibbles(tensors["qzeros"])
    scales = tensors["scales"].double()
    groups = torch.arange(len(codes)) // group_size
    return (scales[groups] * (codes - zeros[groups])).t()


def _nibbles(words: Tensor) -> Tensor:
    found = torch.empty(words.shape[0], words.shape[1] * 8, dtype=torch.float64)
    for row, line in enumerate(words.tolist()):
        for place, word in enumerate(line):
            for nibble, output in enumerate(AWQ_OUTPUTS):
                found[row, 8 * place + output] = (word >> (4 * nibble)) & 15
    return found


def compressed_tensors(
    tensors: Mapping[str, Tensor],
    bits: int,
    numbers: Callable[[Sequence[int], int, int], list[int]] = stream,
) -> Tensor:
    """float64 [out, in] of one pack-quantized layer; `numbers` reads its words."""
    outputs, inputs = tensors["weight_shape"].tolist()
    scales = tensors["weight_scale"].double().tolist()
    size = -(-inputs // len(scales[0]))
    half = 2 ** (bits - 1)
    zeros = [[0] * len(scales[0]) for _ in range(outputs)]
    if "weight_zero_point" in tensors:
        columns = [numbers(c, bits, outputs) for c in tensors["weight_zero_point"].t().tolist()]
        zeros = [[column[output] - half for column in columns] for output in range(outputs)]
    groups = [index // size for index in range(inputs)]
    if "weight_g_idx" in tensors:
        groups = tensors["weight_g_idx"].tolist()
    values = torch.empty(outputs, inputs, dtype=torch.float64)
    for output, row in enumerate(tensors["weight_packed"].tolist()):
        for index, code in enumerate(numbers(row, bits, inputs)):
            group = groups[index]
            values[output, index] = scales[output][group] * (code - half - zeros[output][group])
    return values
