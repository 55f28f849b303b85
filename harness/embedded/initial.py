"""The weights that training starts from.

A rough induction circuit: in the first block each head looks a little way back and notes what it
saw; in the second each head looks for places whose notes resemble what was just read, and repeats
the token found there.  Everything is trained from there on.  Runs from random weights looked
nothing up within two million tokens, but they used rates of 1e-3 and more, which destroy even this
circuit; whether random weights would do at 4e-4 has not been tried.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import OPTForCausalLM

# Of the residual stream, so many coordinates hold the position at first, the others the token.
_POSITION_WIDTH = 64
_TOKEN_SCALE = 0.02
_POSITION_SCALE = 0.04
# How far each head of the first block looks back, in tokens, and how sharply (a larger gain is
# narrower).
_LOOKS = ((1.0, 1.5), (2.0, 1.5), (3.0, 1.5), (5.5, 0.5))
# What each head of the second block compares: of the word that comes next, what stands one token
# before it, three (as "key" in "the key in the drawer"), or six and more; -1 is the token itself.
# Before that word is read everything is one token nearer: (query's look, key's look, gain).
_MATCHES = ((-1, 0, 2.0), (1, 2, 2.0), (3, 2, 2.0), (1, 3, 2.0))
_NOTE_SCALE = 0.04
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
    reader, writers = _look_back(decoder.layers[0].self_attn, frequencies)
    _match_and_copy(decoder.layers[1].self_attn, reader, writers)


def _look_back(
    attention: nn.Module, frequencies: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Let head h note what stood `_LOOKS[h]` back; return the value and the output matrices."""
    width, size = attention.embed_dim, attention.head_dim
    tokens = width - _POSITION_WIDTH
    # All heads read tokens alike, so that their notes can be compared.
    reader = torch.zeros(size, width)
    reader[:, :tokens] = _orthonormal(tokens, size).T
    writers = []
    for head, (distance, gain) in enumerate(_LOOKS):
        block = slice(head * size, (head + 1) * size)
        # The query is the key's pair of sine and cosine, turned back by `distance`.
        cosine = torch.diag((distance * frequencies).cos())
        sine = torch.diag((distance * frequencies).sin())
        turn = torch.cat([torch.cat([cosine, -sine], 1), torch.cat([sine, cosine], 1)], 0)
        attention.q_proj.weight[block] = 0
        attention.q_proj.weight[block, tokens:] = turn * gain**0.5
        attention.k_proj.weight[block] = 0
        attention.k_proj.weight[block, tokens:] = torch.eye(size) * gain**0.5
        attention.v_proj.weight[block] = reader
        writers.append(_orthonormal(width, size))
        attention.out_proj.weight[:, block] = writers[head] * _NOTE_SCALE
    return reader, writers


def _match_and_copy(
    attention: nn.Module, reader: torch.Tensor, writers: list[torch.Tensor]
) -> None:
    """Let each head look for notes that resemble what was just read, and repeat the token."""
    width, size = attention.embed_dim, attention.head_dim
    tokens = width - _POSITION_WIDTH
    for head, (query, key, gain) in enumerate(_MATCHES):
        block = slice(head * size, (head + 1) * size)
        value = torch.zeros(size, width)
        value[:, :tokens] = _orthonormal(tokens, size).T
        attention.q_proj.weight[block] = (reader if query < 0 else writers[query].T) * gain
        attention.k_proj.weight[block] = writers[key].T
        attention.v_proj.weight[block] = value
        attention.out_proj.weight[:, block] = value.T * _COPY_SCALE


def _orthonormal(rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns)).Q
