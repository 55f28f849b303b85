"""Next-token distributions of a reference model in a fraction of their bytes, for KL divergences.

Of every position ENTRIES logits are kept: the largest ones, and a random sample of the rest. With
p the reference's probabilities, token i is kept with probability min(1, p_i / t), where the
threshold t is such that ENTRIES tokens are kept, and weighs w_i = max(p_i, t). So the sum of
w_i log(p_i / q_i) over the kept tokens has the expectation KL(p || q) for every q, which need not
be known before: the Horvitz-Thompson estimator of a sample with probabilities proportional to size
(Horvitz and Thompson 1952). The sample is systematic (Madow 1949): its size is fixed, and so is its
total weight, 1. docs/protocols.md derives the estimate, its error and its lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from harness.suites.distributions import (
    Compared,
    DivergenceError,
    in_cache,
    joined,
    require_finite,
    require_one_shape,
)

ENTRIES = 1024
# A vocabulary of at most this size is not compressed: its logits take about as many bytes as the
# entries and their tokens.
EXACT_VOCABULARY = 2048
# The start of a sample is drawn in steps of 2**-24, which are far wider than the rounding of a sum
# of probabilities, so that samples have their exact size.
_STEPS = 2**24
TINY = 1e-200  # a probability that is none
ROUNDING = 1e-12  # more than that of a sum of probabilities, which is 1 at most
HALF = 2**15  # half of the tokens that two bytes tell apart
TENSORS = ("tokens", "logits", "normalizer", "threshold", "first", "confidence")


@dataclass(frozen=True)
class Compressed:
    """The distributions at consecutive positions of one window.

    tokens      int32 [positions, entries], ascending: the kept tokens.
    logits      [positions, entries], in the dtype of the model: their logits.
    normalizer  float64 [positions]: log-sum-exp of all logits.
    threshold   float64 [positions]: t; 0 where all other tokens have probability 0.
    first       int32 [positions]: the most likely token, which in a flat distribution need not be
                among the kept; confidence, float64 [positions]: its probability.
    vocabulary  number of tokens that the model knows.
    """

    tokens: Tensor
    logits: Tensor
    normalizer: Tensor
    threshold: Tensor
    first: Tensor
    confidence: Tensor
    vocabulary: int

    @property
    def shape(self) -> torch.Size:
        """Batch (1), positions and vocabulary, as those of the logits."""
        return torch.Size([1, len(self.tokens), self.vocabulary])

    def compared(self, part: slice, logits: Tensor) -> Compared:
        """Compare positions with the logits [positions, vocabulary] of another model.

        Returns the estimates of KL(reference || other), flips, and what is known of their error.
        Raises DivergenceError for logits that are not finite or of another vocabulary.
        """
        require_one_shape((len(self.tokens[part]), self.vocabulary), logits.shape)
        found, start = [], part.start
        for some in in_cache(logits):
            found.append(self._compared(slice(start, start + len(some)), some))
            start += len(some)
        return joined(found)

    def _compared(self, part: slice, logits: Tensor) -> Compared:
        device = logits.device
        kept = self.tokens[part].to(device, torch.int64)
        normalizer = self.normalizer[part].to(device)[:, None]
        threshold = self.threshold[part].to(device)[:, None]
        log_p = self.logits[part].to(device).double() - normalizer
        log_q = logits.gather(-1, kept).double()
        log_q -= torch.logsumexp(logits.double(), -1, keepdim=True)
        p, difference = log_p.exp(), log_p - log_q
        sampled = p < threshold
        values = (torch.maximum(p, threshold) * difference).sum(-1)
        require_finite(values)
        certain = torch.where(sampled, 0.0, p * difference).sum(-1)
        return Compared(
            divergence=values.cpu(),
            flipped=self.first[part] != logits.argmax(-1).cpu(),
            confidence=self.confidence[part],
            certain=(certain + _of_the_rest(log_q, sampled, threshold)).cpu(),
            variance=_variance(difference, sampled, threshold).cpu(),
        )

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        tensors["tokens"] = _narrowed(self.tokens, self.vocabulary)
        return save({**tensors, "vocabulary": torch.tensor(self.vocabulary)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Compressed:
        """What `to_bytes` gave."""
        tensors = load(data)
        vocabulary = int(tensors.pop("vocabulary"))
        tensors["tokens"] = _widened(tensors["tokens"])
        return cls(**tensors, vocabulary=vocabulary)

    @property
    def share(self) -> float:
        """Bytes of a position over those of all its logits in float32."""
        token = 2 if self.vocabulary <= 2 * HALF else 4
        kept = ENTRIES * (token + self.logits.dtype.itemsize) + 3 * 8 + 4
        return kept / (4 * self.vocabulary)


def _narrowed(tokens: Tensor, vocabulary: int) -> Tensor:
    """Tokens in two bytes each if there are few enough; int16 begins at -2**15."""
    return (tokens - HALF).to(torch.int16) if vocabulary <= 2 * HALF else tokens


def _widened(tokens: Tensor) -> Tensor:
    return tokens.to(torch.int32) + HALF if tokens.dtype == torch.int16 else tokens


def _of_the_rest(log_q: Tensor, sampled: Tensor, threshold: Tensor) -> Tensor:
    """r log(r / s): r and s are the probabilities of all tokens but the certain ones."""
    r = sampled.sum(-1) * threshold[:, 0]  # a sample of fixed size has the weight of what it is of
    s = 1.0 - torch.where(sampled, 0.0, log_q.exp()).sum(-1)
    # With too much for s it is a bound still, and with too little, as rounding may leave, not.
    return torch.where(r > 0, r * (r / (s.clamp_min(0.0) + ROUNDING)).log(), 0.0)


def _variance(difference: Tensor, sampled: Tensor, threshold: Tensor) -> Tensor:
    """The variance of the estimates, by Hansen and Hurwitz's formula: t^2 n s^2.

    n sampled tokens of one weight t, s^2 the sample variance of their differences. It takes the
    draws as independent, which overstates the variance of a systematic sample of fixed size.
    """
    count = sampled.sum(-1).double()
    mean = torch.where(sampled, difference, 0.0).sum(-1) / count.clamp_min(1)
    squares = torch.where(sampled, (difference - mean[:, None]) ** 2, 0.0).sum(-1)
    return threshold[:, 0] ** 2 * count * squares / (count - 1).clamp_min(1)


def compress(logits: Tensor, start: int, seed: int) -> Compressed:
    """Compress the logits [positions, vocabulary] of consecutive positions, of any float dtype.

    start  the first of them in its window; seed of the window. Both choose the samples, so that the
           same window of a model always has the same.

    Raises DivergenceError for logits that are NaN or infinite.
    """
    found = []
    for some in in_cache(logits):
        found.append(_compress(some, start, seed))
        start += len(some)
    return together(found)


def together(parts: Sequence[Compressed]) -> Compressed:
    """Consecutive positions of a window, one behind the other."""
    held = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
    return Compressed(**held, vocabulary=parts[0].vocabulary)


def _compress(logits: Tensor, start: int, seed: int) -> Compressed:
    positions, vocabulary = logits.shape
    p = logits.double()
    normalizer = torch.logsumexp(p, -1, keepdim=True)
    if not bool(normalizer.isfinite().all()):
        raise DivergenceError(
            "the reference model gives logits that are NaN or infinite; use another dtype "
            "(model.dtype=float32)"
        )
    p.sub_(normalizer).exp_()
    largest = logits.topk(ENTRIES, -1).indices
    found = p.gather(-1, largest)
    confidence, most_likely = found[:, 0].clone(), logits.argmax(-1)
    certain, threshold = _threshold(found, p.scatter_(-1, largest, 0.0).sum(-1, keepdim=True))
    # Shares of the rest in the draws. A token is drawn where their sum passes start, start + 1, ...
    p.scatter_(-1, largest, torch.where(certain, 0.0, found))
    shares = p.div_(threshold.clamp_min(TINY)[:, None]).cumsum_(-1)
    places = torch.arange(start, start + positions, dtype=torch.int64)
    first = _starts(places, seed).to(p.device)[:, None]
    ranks = torch.arange(ENTRIES, device=p.device)
    drawn = torch.searchsorted(shares, first + (ranks - certain.sum(-1, keepdim=True)))
    tokens = torch.where(certain, largest, drawn).sort(-1).values
    return Compressed(
        tokens=tokens.to(torch.int32).cpu(),
        logits=logits.gather(-1, tokens).cpu(),
        normalizer=normalizer[:, 0].cpu(),
        threshold=threshold.cpu(),
        first=most_likely.to(torch.int32).cpu(),
        confidence=confidence.cpu(),
        vocabulary=vocabulary,
    )


def _threshold(largest: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the largest tokens are kept for certain, bool [positions, ENTRIES], and t.

    largest  their probabilities, descending [positions, ENTRIES]; others: the sum of all others'.

    With the k largest kept for certain, ENTRIES - k of the rest, whose probabilities sum to r, are
    drawn with t = r / (ENTRIES - k); k is the smallest number for which no other p exceeds t.
    """
    rest = largest.flip(-1).cumsum(-1).flip(-1) + others  # of all but the k largest
    free = torch.arange(ENTRIES, 0, -1, device=largest.device)
    count = (largest * free <= rest).int().argmax(-1, keepdim=True)
    threshold = (rest / free).gather(-1, count)
    # Nothing to draw from: the largest are all that there is.
    nothing = others < TINY
    ranks = torch.arange(ENTRIES, device=largest.device)
    return (ranks < count) | nothing, torch.where(nothing, 0.0, threshold)[:, 0]


def _starts(places: Tensor, seed: int) -> Tensor:
    """The starts of systematic samples, in (0, 1): float64, from positions and seed alone."""
    mixed = (places * 2_654_435_761 + seed) % 2**32  # Knuth's multiplier spreads the positions
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> 16)) * 73_244_475) % 2**32
    return ((mixed ^ (mixed >> 16)) % _STEPS).double() / _STEPS + 0.5 / _STEPS
