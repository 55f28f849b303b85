"""Intervals of confidence: the probability that a reference gives its most likely token."""

from itertools import pairwise

CONFIDENCES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # their edges


def confidence_names() -> list[str]:
    """Of every interval: "confidence_25_50" is for a first choice of 25 to 50 %."""
    return [f"confidence_{100 * a:.0f}_{100 * b:.0f}" for a, b in pairwise(CONFIDENCES)]
