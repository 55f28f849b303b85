"""Even out the columns of a trained embedded model without changing what it computes.

The hand-made start weights (`initial.py`) leave the first block's query and key matrices with one
large entry a row, in columns eight times as large as the others: rounded to three bits a row they
lose everything else, and two bits in groups then beat three bits, which no trained checkpoint of
the field shows.  Two turns of the coordinates that leave every logit as it is take that away:

* inside a head, query and key are turned by one random orthogonal matrix R, since
  (R q) . (R k) = q . k;
* the residual stream is turned by an orthogonal matrix Q with Q 1 = 1, which commutes with the mean
  and the variance of a LayerNorm once the norm's gain is part of the layers that read it (Ashkboos
  et al., QuaRot, arXiv 2404.00456, section 3, for RMSNorm).

Q is a rotation by a part of a right angle only, so the columns keep the unevenness of real models.
"""

from __future__ import annotations

import torch
from transformers import OPTForCausalLM
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoderLayer

# Root mean square of the angles, in radians, by which the residual stream is turned: the largest
# columns of the first block are then about 3.5 times the median.
_ANGLE = 0.55


@torch.no_grad()
def smooth(model: OPTForCausalLM, seed: int) -> None:
    """Turn heads and residual stream of an OPT model whose norms come first, in place.

    The parameters keep their dtype, float32 or float64. Logits stay as they are up to rounding, but
    for the last norm: its gains cannot be turned while the output embedding is tied, so their mean
    stands for all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    decoder = model.model.decoder
    for layer in decoder.layers:
        assert isinstance(layer, OPTDecoderLayer)
        attention = layer.self_attn
        _fold(layer.self_attn_layer_norm, attention.q_proj, attention.k_proj, attention.v_proj)
        _fold(layer.final_layer_norm, layer.fc1)
        _turn_heads(attention, generator)
    norm = decoder.final_layer_norm
    norm.weight.fill_(float(norm.weight.mean()))
    turn = _rotation(model.config.hidden_size, generator).to(norm.weight.dtype)
    for vectors in (decoder.embed_tokens.weight, decoder.embed_positions.weight):
        vectors.copy_(vectors @ turn)
    for layer in decoder.layers:
        assert isinstance(layer, OPTDecoderLayer)
        attention = layer.self_attn
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, layer.fc1):
            reader.weight.copy_(reader.weight @ turn)
        for writer in (attention.out_proj, layer.fc2):
            writer.weight.copy_(turn.T @ writer.weight)
            writer.bias.copy_(turn.T @ writer.bias)
    norm.bias.copy_(turn.T @ norm.bias)


def _fold(norm: torch.nn.LayerNorm, *readers: torch.nn.Linear) -> None:
    """Make a norm's gain and bias part of the layers that read it."""
    for reader in readers:
        reader.bias.add_(reader.weight @ norm.bias)
        reader.weight.mul_(norm.weight)
    norm.weight.fill_(1.0)
    norm.bias.zero_()


def _turn_heads(attention: OPTAttention, generator: torch.Generator) -> None:
    size = attention.head_dim
    for head in range(attention.num_heads):
        draws = torch.randn(size, size, generator=generator, dtype=torch.float64)
        turn = torch.linalg.qr(draws).Q.to(attention.q_proj.weight.dtype)
        rows = slice(head * size, (head + 1) * size)
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[rows] = turn @ projection.weight[rows]
            projection.bias[rows] = turn @ projection.bias[rows]


def _rotation(width: int, generator: torch.Generator) -> torch.Tensor:
    """Return a rotation, float64 of shape (width, width), that leaves the vector of ones alone."""
    draws = torch.randn(width, width, generator=generator, dtype=torch.float64)
    centre = torch.eye(width, dtype=torch.float64) - 1.0 / width
    skew = centre @ (draws - draws.T) @ centre
    # The squared angles of a skew matrix's exponential sum up to its squared entries.
    skew *= _ANGLE * width**0.5 / float(skew.norm())
    turn: torch.Tensor = torch.linalg.matrix_exp(skew)
    return turn
