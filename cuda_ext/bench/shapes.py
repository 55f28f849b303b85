"""Layers that are timed: inputs and outputs by name."""

from __future__ import annotations

import re

BITS = (2, 3, 4, 8)

SHAPES = {
    "llama-7b-up": (4096, 11008),
    "llama-7b-down": (11008, 4096),
    "llama-8b-q": (4096, 4096),
    "llama-8b-kv": (4096, 1024),
    "llama-8b-up": (4096, 14336),
    "llama-8b-down": (14336, 4096),
    "llama-70b-q": (8192, 8192),
    "llama-70b-kv": (8192, 1024),
    "llama-70b-up": (8192, 28672),
    "llama-70b-down": (28672, 8192),
    "opt-175b-q": (12288, 12288),
    "opt-175b-fc1": (12288, 49152),
    "opt-175b-fc2": (49152, 12288),  # the micro-benchmark of the GPTQ paper
    # The large matrix that Marlin's benchmark takes on an A10 (72 multiprocessors), and the fused
    # gate and up projections of its LLaMA-65B.
    "marlin-a10": (73728, 18432),
    "marlin-llama-65b-up": (8192, 43520),
}


_SIZES = re.compile(r"([1-9]\d*)x([1-9]\d*)")


def sizes(shape: str) -> tuple[int, int]:
    """Return inputs and outputs of a name in SHAPES, or of a literal shape ("512x256")."""
    match = _SIZES.fullmatch(shape)
    return SHAPES[shape] if match is None else (int(match[1]), int(match[2]))


def chosen(text: str) -> list[str]:
    """Parse comma-separated shapes: a name, a prefix ("opt-175b"), "all", or "512x256".

    Raises ValueError that names the unknown shape.
    """
    found: list[str] = []
    for part in text.split(","):
        matching = [name for name in SHAPES if part in (name, "all")]
        if _SIZES.fullmatch(part):
            matching = [part]
        matching = matching or [name for name in SHAPES if name.startswith(f"{part}-")]
        if not matching:
            raise ValueError(f"shape {part!r} is unknown; choose from {', '.join(SHAPES)}, or all.")
        found += [name for name in matching if name not in found]
    return found
