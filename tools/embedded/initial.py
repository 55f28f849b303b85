"""The weights that training starts from.

A rough induction circuit: in the first block each head looks a little way back and notes what it
saw; in the second each head looks for places whose notes resemble what was just read, and repeats
the token found there.  Everything is trained from there on.  Runs from random weights looked
nothing up within two million tokens of harder stories, but at rates of 1e-3 and more, which destroy
even this circuit; whether random weights would do at lower rates has not been tried.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import OPTForCausalLM
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoderLayer

# Of the residual stream, so many coordinates hold the position at first, the others the token.
_POSITION_WIDTH = 64
_TOKEN_SCALE = 0.02
_POSITION_SCALE = 0.04
# How far each head of the first block looks back, in tokens, and how sharply (a larger gain is
# narrower).
_LOOKS = ((1, 1.5), (1, 1.5), (3, 0.6), (6, 0.4))
_NOTE_SCALE = 0.04
_MATCH_GAIN = 1.4
_COPY_SCALE = 0.03


@torch.no_grad()
def initialize(model: OPTForCausalLM) -> None:
    """Set every matrix of an OPT model of width 256 or more with four heads a block.

    Blocks after the second, and all feed-forward layers, start by adding nothing.  Draws from
    torch's global generator.
    """
    decoder = model.model.decoder
    for name, module in decoder.layers.named_modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5)
            if name.endswith(("out_proj", "fc2")):
                module.weight.zero_()
    tokens = decoder.embed_tokens.weight
    tokens.normal_(std=_TOKEN_SCALE)
    tokens[:, -_POSITION_WIDTH:] = 0
    frequencies = 2.0 * 0.005 ** torch.linspace(0, 1, _POSITION_WIDTH // 2)
    positions = decoder.embed_positions.weight
    angles = torch.arange(len(positions))[:, None] * frequencies
    positions.zero_()
    positions[:, -_POSITION_WIDTH:] = torch.cat([angles.sin(), angles.cos()], 1) * _POSITION_SCALE
    first, second = decoder.layers[0], decoder.layers[1]
    assert isinstance(first, OPTDecoderLayer)
    assert isinstance(second, OPTDecoderLayer)
    readers, writers = _look_back(first.self_attn, frequencies)
    _match_and_copy(second.self_attn, readers, writers)


def _look_back(
    attention: OPTAttention, frequencies: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Let head h note what stood `_LOOKS[h]` back; return its value and output matrices."""
    width, size = attention.embed_dim, attention.head_dim
    half = len(frequencies)
    readers, writers = [], []
    for head, (distance, gain) in enumerate(_LOOKS):
        block = slice(head * size, (head + 1) * size)
        # The query is the key's pair of sine and cosine, turned back by `distance`.
        cosine = torch.diag((distance * frequencies).cos())
        sine = torch.diag((distance * frequencies).sin())
        turn = torch.cat([torch.cat([cosine, -sine], 1), torch.cat([sine, cosine], 1)], 0)
        key = torch.zeros(size, width)
        key[: 2 * half, -2 * half :] = torch.eye(2 * half) * gain**0.5
        query = torch.zeros(size, width)
        query[: 2 * half, -2 * half :] = turn * gain**0.5
        reader = torch.zeros(size, width)
        reader[:, : width - 2 * half] = _orthonormal(width - 2 * half, size).T
        writer = _orthonormal(width, size)
        attention.q_proj.weight[block] = query
        attention.k_proj.weight[block] = key
        attention.v_proj.weight[block] = reader
        attention.out_proj.weight[:, block] = writer * _NOTE_SCALE
        readers.append(reader)
        writers.append(writer)
    return readers, writers


def _match_and_copy(
    attention: OPTAttention, readers: list[torch.Tensor], writers: list[torch.Tensor]
) -> None:
    """Let each head look for notes that resemble what was just read, and repeat the token."""
    width, size = attention.embed_dim, attention.head_dim
    for head, (reader, writer) in enumerate(zip(readers, writers, strict=True)):
        block = slice(head * size, (head + 1) * size)
        # What was just read is this token and, for the heads that look further, the notes here.
        query = reader if _LOOKS[head][0] == 1 else 0.5 * reader + 2.0 * writer.T
        value = torch.zeros(size, width)
        value[:, : width - _POSITION_WIDTH] = _orthonormal(width - _POSITION_WIDTH, size).T
        attention.q_proj.weight[block] = query * _MATCH_GAIN
        attention.k_proj.weight[block] = writer.T * _MATCH_GAIN * (1.0 if head < 2 else 2.0)
        attention.v_proj.weight[block] = value
        attention.out_proj.weight[:, block] = value.T * _COPY_SCALE


def _orthonormal(rows: int, columns: int) -> torch.Tensor:
    basis: torch.Tensor = torch.linalg.qr(torch.randn(rows, columns)).Q
    return basis
