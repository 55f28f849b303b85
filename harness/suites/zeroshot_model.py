"""Adapter of a loaded model to lm-eval's Hugging Face model; the loaded model is not changed.

Imports lm-eval and transformers, so it is imported only when a zero-shot suite runs.
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from harness.data import vocabulary
from harness.data.specials import Specials, Tally
from harness.suites.base import SuiteContext
from harness.suites.zeroshot_likelihoods import asked, likelihoods
from harness.suites.zeroshot_tasks import TaskError
from quant.forward_products import forward_products


class View:
    """A read-only view of a model for lm-eval: it scores and generates, but nothing changes it.

    lm-eval ties the weights of a torch module, and builds a quantizer from a
    `quantization_config`. This is not a module, and its config has no quantization_config.
    """

    def __init__(self, model: Any, kernel: str) -> None:
        self._model, self._kernel = model, kernel
        forward = inspect.signature(getattr(model, "forward", model))
        self._keeps = "logits_to_keep" in forward.parameters
        self.device = model.device
        self.config = copy.deepcopy(model.config)
        if getattr(self.config, "quantization_config", None) is not None:
            del self.config.quantization_config

    def last_logits(self, tokens: Tensor, count: int) -> Tensor:
        """Logits [batch, count, vocabulary] of the last positions; of all if it cannot choose."""
        options = {"logits_to_keep": count} if self._keeps else {}
        with forward_products(self._kernel, self._model):
            logits: Tensor = self._model(input_ids=tokens, use_cache=False, **options).logits
        return logits

    def generate(self, **options: Any) -> Tensor:
        with forward_products(self._kernel, self._model):
            result: Tensor = self._model.generate(**options)
        return result


class Scorer(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """HFLM that reports progress, counts what it truncates and refuses non-finite scores."""

    def __init__(self, context: SuiteContext, length: int, batch_size: int) -> None:
        # lm-eval truncates from the left; log-softmax is in float32 for every dtype.
        super().__init__(
            pretrained=View(context.model, context.kernel),
            tokenizer=copy.deepcopy(context.tokenizer),  # lm-eval may add a padding token
            backend="causal",
            batch_size=batch_size,
            max_length=length,
            softmax_dtype="float32",
        )
        self._context = context
        self.requests = self.truncated = self.shared = 0
        self._to_generate = self._generated = 0
        self._rolling = False
        self._prompts: dict[str, list[int]] = {}  # ids of prompts, which choices share
        self._specials = Specials.of(self.tokenizer)
        self._size = vocabulary.size_of(context.model)
        self.special = Tally(self.tokenizer, self._specials)
        bos = self.tokenizer.bos_token_id
        self.begins_with_bos = bos is not None and self.tok_encode("a")[:1] == [bos]

    @property
    def template(self) -> str:
        """The chat template that prompts are put into, if the suite asks for it."""
        return str(self.tokenizer.get_chat_template())

    def get_model_info(self) -> dict[str, Any]:
        """Return nothing, because our records describe the model."""
        return {}

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        """Return the ids of a text by the rule of `harness.data.specials`."""
        if add_special_tokens is False:
            ids = list(self.tokenizer.encode(string, add_special_tokens=False))
        else:
            ids = self._specials.trim(self.tokenizer.encode(string))
        if self._rolling and ids[:1] == self._specials.blank_prompt(self.tokenizer.eos_token_id):
            del ids[0]
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: Any,
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Return ids and attention mask of prompts, by the same rule."""
        rows = [self.tok_encode(text, left_truncate_len=left_truncate_len) for text in strings]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            place = slice(width - len(row), width) if padding_side == "left" else slice(len(row))
            ids[number, place] = torch.tensor(row)
            mask[number, place] = 1
        return ids, mask

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As in lm-eval, but a prompt of white space alone counts as empty."""
        encoded = []
        self._prompts.clear()
        for request in requests:
            prompt, target = request.args
            ids = self._encode_pair(prompt, target) if prompt.strip() else self._behind_bos(target)
            self._require_known(request, prompt + target, [*ids[0], *ids[1]])
            encoded.append(((prompt, target), *ids))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """As in lm-eval, but a text that begins with BOS gets no second one."""
        for request in requests:
            self._require_known(request, request.args[0], self.tok_encode(request.args[0]))
        self._rolling = True
        try:
            result: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
            return result
        finally:
            self._rolling = False

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        """As in lm-eval, after a check of all prompts."""
        for request in requests:
            prompt, settings = request.args
            ids = self.tok_encode(prompt)
            self._require_known(request, prompt, ids)
            room = self.max_length - int(settings.get("max_gen_toks", self.max_gen_toks))
            if room < 1:
                raise TaskError(
                    f"task {request.task_name} generates up to {self.max_length - room} tokens, "
                    f"but the context has {self.max_length}; measure it with a larger model.context"
                )
            self.special.add([ids[-room:]])
            self.truncated += len(ids) > room
        self.requests += len(requests)
        self._to_generate, self._generated = len(requests), 0
        result: list[str] = super().generate_until(requests, disable_tqdm=True)
        return result

    def _model_generate(self, context: Tensor, *args: Any, **settings: Any) -> Tensor:
        found: Tensor = super()._model_generate(context, *args, **settings)
        self._generated += len(context)
        self._context.progress(self._generated, self._to_generate, "generated answers")
        return found

    def _behind_bos(self, target: str) -> tuple[list[int], list[int]]:
        """The ids of an empty prompt and of its target, which may begin with BOS."""
        bos = self._specials.blank_prompt(self.tokenizer.eos_token_id)
        if not bos:
            raise TaskError(
                f"the prompt of {target[:40]!r} is empty and the tokenizer has neither BOS nor EOS "
                "to replace it; correct the item or leave it out of the task's file"
            )
        ids = self.tok_encode(target, add_special_tokens=False)
        return bos, ids[1:] if ids[:1] == bos else ids

    def _require_known(self, request: Any, text: str, ids: list[int]) -> None:
        if vocabulary.unknown(ids, self._size):
            task = getattr(request, "task_name", None) or "without a name"
            try:
                where = f"task {task}, {text[-80:]!r}"
                vocabulary.require_known(ids, self.tokenizer, self._size, where)
            except vocabulary.VocabularyError as error:
                raise TaskError(str(error)) from error

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a prompt and of its target.

        As in lm-eval, both are encoded together, and the ids after the prompt's own are the target.
        If a token spans the border (a tokenizer whose words end in their space), the joint ids do
        not begin with the prompt's, and lm-eval would split at a wrong token. In that case the
        white space between them goes to the prompt or, if a token still spans the border, that
        token goes to the target. `shared` counts these requests.
        """
        text = context + continuation
        context = context.rstrip()
        words = text[len(context) :].lstrip()
        whole = self.tok_encode(text)
        for prompt in (context, text[: len(text) - len(words)]):
            ids = self._prompts.get(prompt) or self.tok_encode(prompt)
            self._prompts[prompt] = ids
            if whole[: len(ids)] == ids and len(whole) > len(ids):
                self.shared += prompt != context
                return ids, whole[len(ids) :]
        self.shared += 1
        pairs = enumerate(zip(whole, ids, strict=False))
        common = next((n for n, (a, b) in pairs if a != b), min(len(whole), len(ids)))
        return whole[:common], whole[common:]

    def _loglikelihood_tokens(
        self,
        requests: Any,
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        del disable_tqdm  # progress is reported to the suite's context
        for pair, prompt_ids, target_ids in requests:
            prompt, target = pair or ("", "a text")  # rolling windows have only ids
            if not (prompt_ids and 0 < len(target_ids) <= self.max_length):
                raise TaskError(
                    f"the continuation {target[:40]!r} of {prompt[-40:]!r} has {len(target_ids)} "
                    f"tokens of its own, but must have 1 to {self.max_length}; correct the item or "
                    "leave it out of the task's file"
                )
            self.special.add([[*prompt_ids, *target_ids]])
            self.truncated += len(prompt_ids) + len(target_ids) > self.max_length + 1
        self.requests += len(requests)
        asking = [asked(prompt, target, self.max_length) for _, prompt, target in requests]
        scores: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)
        size = override_bs or self.batch_size
        found = likelihoods(self.model.last_logits, asking, size, str(self.device))
        for done, (number, score, greedy) in enumerate(found, start=1):
            scores[number] = score, greedy
            self._context.progress(done, len(requests), "zero-shot requests")
        for (pair, _, _), (score, _) in zip(requests, scores, strict=True):
            if not math.isfinite(score):
                raise TaskError(
                    "the likelihood of the continuation of "
                    f"{(pair or ('',))[0][-60:]!r} is not finite ({score}); if the weights are "
                    f"finite, use another dtype than {self._context.dtype} (model.dtype=float32)"
                )
        return scores
