"""lm-eval's Hugging Face model over one that is already loaded, which it leaves as it is.

Imports lm-eval and transformers: only imported when a zero-shot suite runs.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import Tensor

from harness.suites.base import SuiteContext
from harness.suites.zeroshot_tasks import TaskError


class View:
    """What lm-eval may see of a model: it can be called and asked, not moved, tied or changed.

    lm-eval ties the weights of a torch module that it is given and tries to make a quantizer from
    a `quantization_config`; this is not a module, and its config has none.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.device = model.device
        self.config = copy.deepcopy(model.config)
        if getattr(self.config, "quantization_config", None) is not None:
            del self.config.quantization_config

    def __call__(self, tokens: Tensor) -> Any:
        return self._model(input_ids=tokens, use_cache=False)

    def generate(self, **options: Any) -> Tensor:
        return self._model.generate(**options)


class Scorer(HFLM):
    """HFLM that reports progress, counts what it truncates and refuses non-finite scores."""

    def __init__(self, context: SuiteContext, length: int, batch_size: int) -> None:
        # Truncation from the left is lm-eval's; log-softmax in float32 whatever the model's type.
        super().__init__(
            pretrained=View(context.model),
            tokenizer=copy.deepcopy(context.tokenizer),  # lm-eval may give it a padding token
            backend="causal",
            batch_size=batch_size,
            max_length=length,
            softmax_dtype="float32",
        )
        self._context = context
        self._done = self._total = 0
        self.requests = self.truncated = self.shared = 0
        bos = self.tokenizer.bos_token_id
        self.begins_with_bos = bos is not None and self.tok_encode("a")[:1] == [bos]

    def get_model_info(self) -> dict[str, Any]:
        """Return nothing: our records say what the model is."""
        return {}

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a prompt and of its target.

        As in lm-eval: both are encoded together, and what goes beyond the prompt's own ids is the
        target. But where the prompt's ids do not begin the whole, because a token spans the border
        (a tokenizer whose words end in their space), lm-eval would cut the target at a wrong
        token. Then the white space between them goes to the prompt or, if a token still spans the
        border, that token goes to the target. `shared` counts these requests.
        """
        text = context + continuation
        context = context.rstrip()
        words = text[len(context) :].lstrip()
        whole = self.tok_encode(text)
        for prompt in (context, text[: len(text) - len(words)]):
            ids = self.tok_encode(prompt)
            if whole[: len(ids)] == ids and len(whole) > len(ids):
                self.shared += prompt != context
                return ids, whole[len(ids) :]
        self.shared += 1
        pairs = enumerate(zip(whole, ids, strict=False))
        common = next((n for n, (a, b) in pairs if a != b), min(len(whole), len(ids)))
        return whole[:common], whole[common:]

    def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
        logits = super()._model_call(inps, attn_mask, labels)
        self._done = min(self._done + len(inps), self._total)
        self._context.progress(self._done, self._total, "zero-shot requests")
        return logits

    def _loglikelihood_tokens(
        self,
        requests: Any,
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        del disable_tqdm  # never a bar: progress goes to the suite's context
        for (prompt, target), prompt_ids, target_ids in requests:
            if not (prompt_ids and 0 < len(target_ids) <= self.max_length):
                raise TaskError(
                    f"the continuation {target[:40]!r} of {prompt[-40:]!r} has {len(target_ids)} "
                    f"tokens of its own, but must have 1 to {self.max_length}; correct the item or "
                    "leave it out of the task's file"
                )
            self.truncated += len(prompt_ids) + len(target_ids) > self.max_length + 1
        self.requests += len(requests)
        self._done, self._total = 0, len(requests)
        scores = super()._loglikelihood_tokens(requests, True, override_bs)
        self._context.progress(self._total, self._total, "zero-shot requests")
        for ((prompt, _), _, _), (score, _) in zip(requests, scores, strict=True):
            if not math.isfinite(score):
                raise TaskError(
                    f"the model gives the continuation of {prompt[-60:]!r} no finite likelihood "
                    f"({score}); if its weights are finite, run in another type than "
                    f"{self._context.dtype} (model.dtype=float32)"
                )
        return scores
