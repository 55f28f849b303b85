"""QuantEmbedding: token embeddings that are looked up in a packed table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quant.linear import QuantLinear


class QuantEmbedding(nn.Module):
    """Rows of a packed table [vocabulary, width]; only those that are asked for are unpacked.

    matrix is the table as a QuantLinear, whose outputs are the tokens. It may be the model's head
    at the same time (tied): `shared` then leaves it registered there alone, so that it is moved,
    counted and stored once.
    """

    embed_scale: Tensor | None
    _like: Tensor

    def __init__(
        self,
        matrix: QuantLinear,
        dtype: torch.dtype,
        scale: Tensor | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Look rows up in `matrix` and give them in `dtype`, which follows the model's, multiplied
        by scale [] if there is one.
        """
        super().__init__()
        if shared:
            self.__dict__["matrix"] = matrix
        else:
            self.matrix = matrix
        self.register_buffer("embed_scale", scale, persistent=False)
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def num_embeddings(self) -> int:
        return self.matrix.out_features

    @property
    def embedding_dim(self) -> int:
        return self.matrix.in_features

    @property
    def dtype(self) -> torch.dtype:
        """What rows are given in."""
        return self._like.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows [..., width] of token ids [...]; IndexError for one that has none."""
        tokens = ids.flatten()
        inside = (tokens >= 0) & (tokens < self.num_embeddings)
        if ids.is_cuda:  # on the device, as torch's own: asking it here would wait for it
            torch._assert_async(inside.all())
        elif not torch.compiler.is_compiling() and not bool(inside.all()):
            raise IndexError(
                f"index out of range in self: token {int(tokens[~inside][0])} of "
                f"{self.num_embeddings}"
            )
        rows = self.matrix.dequantize_rows(tokens, self.dtype).view(*ids.shape, self.embedding_dim)
        return rows if self.embed_scale is None else rows * self.embed_scale.to(rows.dtype)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the whole table [vocabulary, width], as QuantLinear does, not multiplied."""
        return self.matrix.dequantize(dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, scheme={self.matrix.scheme.name}"


def embed_scale(table: nn.Module) -> Tensor | None:
    """Return what a model's own embeddings multiply rows by; None for nn.Embedding itself."""
    scale = getattr(table, "embed_scale", None)
    return None if scale is None else torch.as_tensor(scale)


def looked_up(model: nn.Module) -> set[nn.Module]:
    """Return the packed matrices of a model that nothing is multiplied by: untied embeddings."""
    found: set[nn.Module] = {
        each.matrix for each in model.modules() if isinstance(each, QuantEmbedding)
    }
    return found - {model.get_output_embeddings()}  # type: ignore[operator]


def rows_and_device(model: nn.Module) -> tuple[int, torch.device]:
    """Return the number of token embeddings of a model, packed or not, and their device."""
    table = model.get_input_embeddings()  # type: ignore[operator]
    if isinstance(table, QuantEmbedding):
        return table.num_embeddings, table._like.device
    weight: Tensor = table.weight
    return int(weight.shape[0]), weight.device
