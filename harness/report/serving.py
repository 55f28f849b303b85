"""The memory that a model takes when it serves one sequence: weights, cache, workspace."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Serving:
    """What serving takes, in bytes, and how much of it a context adds.

    weights     of parameters and buffers in memory.
    workspace   beside weights and cache, as measured while `workspace_at` tokens of a prompt were
                read at once; longer prompts are taken to be read in pieces of as many.
    cache       bytes of a position, and the window of the layers that keep it: (bytes, window);
                window None: layers that keep all positions.
    state       bytes of the cache that do not grow.
    positions   the longest context of the model; None: unknown, or nothing bounds it.
    timed       tokens of the sequence that was measured.
    weight_count  number of weights of the model; None: unknown.
    said        how the cache is known where it was not read from the model's own tensors.
    """

    weights: float
    workspace: float
    workspace_at: int
    cache: tuple[tuple[float, int | None], ...]
    state: float
    timed: int
    positions: int | None = None
    weight_count: float | None = None
    said: str = ""

    def cache_at(self, context: int) -> float:
        """Bytes of the cache with `context` tokens in it."""
        return self.state + sum(
            size * (context if window is None else min(context, window))
            for size, window in self.cache
        )

    def total(self, context: int) -> float:
        """Bytes of weights, cache and workspace."""
        return self.weights + self.cache_at(context) + self.workspace

    @property
    def bits_per_weight(self) -> float | None:
        """Bits in memory of all weights of the model, embeddings and head included."""
        return 8 * self.weights / self.weight_count if self.weight_count else None
