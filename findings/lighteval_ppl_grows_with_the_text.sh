#!/usr/bin/env bash
# Guess: lighteval's metric "ppl" (Metrics.prediction_perplexity) is exp of the mean nats a token or a word, as its
#   word_perplexity and byte_perplexity are of a word and a byte; the smaller, the better.
# Versions: lighteval 0.13.0, inspect_ai 0.3.285, transformers 5.23.0, torch 2.13.0 (CPU).
# File: a text of n words, one token each, every token with a log-probability of -3: each perplexity of a word is e^3 = 20.1.
# Came: it is exp of the nats of the whole text, averaged over texts: 8e3 for 3 words, 2e130 for 100, and from 237 words on
#   an OverflowError. It is marked higher_is_better=True; target_perplexity, also called "ppl", is made so and marked
#   False. word_perplexity, byte_perplexity and bits_per_byte are as guessed.
# Known: a docstring inside says that this kind's mean over texts has no weights; that a text counts as one, it does not.
# Matters: two models are compared by the length of the texts; a paragraph of a model that is 1 % better has another power
#   of ten, and a sort by the flag puts the worse one first. Helps: word_perplexity or bits_per_byte.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 2>/dev/null
venv/bin/pip install -q lighteval==0.13.0 inspect_ai==0.3.285 transformers==5.23.0 torch==2.13.0 2>/dev/null
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>warnings <<'PY' || { tail -5 warnings; exit 1; }
import math

from lighteval.metrics.metrics import Metrics
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc

seen = {}
for name in ("word_perplexity", "byte_perplexity", "bits_per_byte", "prediction_perplexity", "target_perplexity"):
    metric, line = getattr(Metrics, name).value, []
    for words in (3, 100, 236, 237):
        text = " ".join(["word"] * words)
        document = Doc(query=text, choices=[text], gold_index=0, task_name="any")
        response = ModelResponse(input_tokens=[0] * words, logprobs=[-3.0] * words)
        try:
            prepared = metric.sample_level_fn.prepare(document, response)
            seen[name, words] = metric.corpus_level_fn.compute_corpus([prepared])
            line.append(f"{words} words {seen[name, words]:.4g}")
        except OverflowError as error:
            seen[name, words] = math.inf
            line.append(f"{words} words OverflowError ({error})")
    seen[name] = metric.higher_is_better
    print(f"{name} ({metric.metric_name}), higher is better {metric.higher_is_better}: " + ", ".join(line), flush=True)
for words in (3, 100, 236, 237):
    assert abs(seen["word_perplexity", words] / math.exp(3) - 1) < 1e-9, seen
    for name in ("prediction_perplexity", "target_perplexity"):
        expected = math.exp(3 * words) if words < 237 else math.inf
        assert seen[name, words] == expected or abs(seen[name, words] / expected - 1) < 1e-9, seen
assert seen["prediction_perplexity"] and not seen["target_perplexity"] and not seen["word_perplexity"], seen
PY
# Output seen:
# word_perplexity (word_perplexity), higher is better False: 3 words 20.09, 100 words 20.09, 236 words 20.09, 237 words 20.09
# byte_perplexity (byte_perplexity), higher is better False: 3 words 1.902, 100 words 1.824, 236 words 1.823, 237 words 1.823
# bits_per_byte (bits_per_byte), higher is better False: 3 words 0.9274, 100 words 0.8674, 236 words 0.8664, 237 words 0.8663
# prediction_perplexity (ppl), higher is better True: 3 words 8103, 100 words 1.942e+130, 236 words 3.023e+307, 237 words OverflowError (math range error)
# target_perplexity (ppl), higher is better False: 3 words 8103, 100 words 1.942e+130, 236 words 3.023e+307, 237 words OverflowError (math range error)
