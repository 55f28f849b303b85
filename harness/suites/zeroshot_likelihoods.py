"""Log-likelihoods of targets after prompts: one forward pass for all that share a context.

Choices of one token after one prompt need the same logits, and so does a choice whose tokens begin
with those of another one. Only the last positions, from the first that predicts a target on, go
through the head if the model has `logits_to_keep`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.suites.scoring import stacked

# (ids [batch, tokens], positions needed, from the end) -> logits [batch, those or all, vocabulary]
Logits = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Asked:
    """One request: what the model reads, and the tokens that its last positions predict."""

    ids: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def start(self) -> int:
        """The position that predicts the first token of the target."""
        return len(self.ids) - len(self.target)


def asked(prompt: Sequence[int], target: Sequence[int], most: int) -> Asked:
    """Return the request for a target after a prompt, of which at most `most` tokens are read.

    The last token of the target is not read; what is too long is cut from the left.
    """
    ids = (*prompt, *target)[-(most + 1) : -1]
    return Asked(ids, tuple(target))


def passes(requests: Sequence[Asked]) -> list[list[int]]:
    """Return the requests (indices) of each forward pass of one sequence, the longest one first.

    A request is answered by any sequence that begins with its own; sequences by falling length.
    """
    order = sorted(range(len(requests)), key=lambda n: requests[n].ids, reverse=True)
    found: list[list[int]] = []
    for number in order:  # a sequence comes right before those that it begins with
        ids = requests[number].ids
        if found and requests[found[-1][0]].ids[: len(ids)] == ids:
            found[-1].append(number)
        else:
            found.append([number])
    return sorted(found, key=lambda group: -len(requests[group[0]].ids))


@torch.inference_mode()
def likelihoods(
    logits_of: Logits, requests: Sequence[Asked], batch_size: int, device: str
) -> Iterator[tuple[int, float, bool]]:
    """Yield (index, log-likelihood in nats, whether greedy decoding gives it) of every request.

    Log-softmax and the sum over a target's tokens are computed in float32.
    """
    groups = passes(requests)
    for first in range(0, len(groups), batch_size):
        batch = groups[first : first + batch_size]
        tokens = stacked([torch.tensor(requests[group[0]].ids) for group in batch])
        start = min(requests[number].start for group in batch for number in group)
        logits = logits_of(tokens.to(device), tokens.shape[1] - start)
        missing = tokens.shape[1] - logits.shape[1]  # positions without logits
        for row, group in zip(logits, batch, strict=True):
            for number in group:
                one = requests[number]
                needed = row[one.start - missing : len(one.ids) - missing].float()
                target = torch.tensor(one.target, device=needed.device)
                scores = needed.log_softmax(-1).gather(1, target[:, None])
                greedy = bool((needed.argmax(-1) == target).all())
                yield number, float(scores.sum()), greedy
