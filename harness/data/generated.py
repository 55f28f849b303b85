"""Windows that the model under test writes itself: sampled continuations of sampled prompts.

Every token is drawn at temperature 1 by the inverse of the distribution function, from a number
that depends on the seed, the window and the position alone: batches do not matter, and rounding
only where a number falls between two sums. Special tokens are not drawn, so that a window is one
running text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.data.specials import Specials
from harness.data.texts import ProtocolError

BATCH = 32  # windows that are written at a time
PROMPT = 32  # tokens of a document that a window begins with, at most


@torch.inference_mode()
def continued(
    model: Any, prompts: Sequence[Sequence[int]], draws: Tensor, barred: Tensor
) -> Tensor:
    """Continue prompts of one length by sampling.

    model    a causal language model of transformers.
    prompts  ids of each window's beginning, all of one length.
    draws    float64 [windows, length]: the uniform number of each position; those of prompts are
             not read.
    barred   bool [vocabulary]: tokens that are not drawn.

    Returns int64 [windows, length] on the CPU. Raises ProtocolError for logits that are not finite.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    def choose(ids: Tensor, logits: Tensor) -> Tensor:
        """Logits [windows, vocabulary] with the drawn token above all others."""
        scores = logits.double().masked_fill(barred.to(logits.device), -torch.inf)
        if not torch.isfinite(scores.amax(-1)).all():
            raise ProtocolError(
                "the model's own logits are not finite while it continues a prompt; use another "
                "dtype (model.dtype=float32) or a calibration text"
            )
        sums = scores.softmax(-1).cumsum(-1)
        number = draws[:, ids.shape[1], None].to(sums.device) * sums[:, -1:]
        # The last token with a probability of its own, where rounding leads beyond the sum.
        token = torch.searchsorted(sums, number, right=True)
        token = torch.minimum(token, (sums < sums[:, -1:]).sum(-1, keepdim=True))
        return torch.full_like(logits, -torch.inf).scatter(1, token, 0.0)

    start = torch.tensor(list(map(list, prompts)), device=model.device)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=draws.shape[1] - start.shape[1], pad_token_id=0
    )
    own = model.generation_config
    model.generation_config = settings  # penalties and cuts of the model's own would join ours
    try:
        found: Tensor = model.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            logits_processor=LogitsProcessorList([choose]),
        )
    finally:
        model.generation_config = own
    return found.cpu()


def generated(
    documents: Sequence[str],
    tokenizer: Any,
    length: int,
    model: Any,
    *,
    number: int,
    seed: int,
) -> tuple[list[Tensor], list[str]]:
    """Return (`number` windows of `length` ids that `model` writes, the documents).

    A window begins with BOS and the first tokens of its document or, without documents, with BOS
    and one token drawn uniformly. Raises ProtocolError for a document without a token.
    """
    special = set(getattr(tokenizer, "all_special_ids", ()))
    size = int(model.get_input_embeddings().num_embeddings)
    known = min(size, len(tokenizer))
    ordinary = [token for token in range(known) if token not in special]
    if not ordinary:
        raise ProtocolError("all tokens of the tokenizer are special; choose a calibration text")
    barred = torch.ones(size, dtype=torch.bool)
    barred[ordinary] = False
    draws = torch.rand(
        (number, length), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    specials = Specials.of(tokenizer)
    lead = [] if specials.bos is None else [specials.bos]
    prompts: list[list[int]] = []
    for index in range(number):
        if documents:
            ids = specials.encode(tokenizer, documents[index], bos=True)[: min(PROMPT, length)]
            if ids == lead:
                raise ProtocolError(f"document {documents[index][:40]!r} has no token to continue")
        else:
            first = ordinary[int(draws[index, len(lead)] * len(ordinary))]
            ids = [*lead, first]
        prompts.append(ids)
    windows: dict[int, Tensor] = {}
    for size_of_prompt in sorted(set(map(len, prompts))):
        chosen = [n for n, ids in enumerate(prompts) if len(ids) == size_of_prompt]
        for first_of_batch in range(0, len(chosen), BATCH):
            batch = chosen[first_of_batch : first_of_batch + BATCH]
            found = torch.tensor([prompts[n] for n in batch])
            if size_of_prompt < length:
                found = continued(model, found.tolist(), draws[batch], barred)
            windows |= dict(zip(batch, found, strict=True))
    return [windows[index] for index in range(number)], list(documents)
