"""How the requests of lm-eval are cut into tokens and scored."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from harness.suites import zeroshot_scoring
from harness.suites.zeroshot import Config
from harness.suites.zeroshot_tasks import TaskError
from tests.harness.suites.byte_model import CHOICES, byte_model, byte_tokenizer, context, write


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return byte_model()


def test_long_prompts_are_cut_from_the_left_and_counted(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    items = [
        {"context": "x" * 100 + "The end of the", "continuation": "day"},
        {"context": "The end of the", "continuation": "day"},
    ]
    file = write(tmp_path / "long.jsonl", items)
    result = zeroshot_scoring.run(context(model, context_length=20), Config(["l"], {"l": file}))
    assert result.metrics[0].notes["truncated"] == "1 of 2 requests, to 20 tokens"
    ids = byte_tokenizer().encode(items[0]["context"] + " day")[-21:]
    scores = model(torch.tensor([ids[:-1]])).logits[0].detach().double().log_softmax(-1)[-4:]
    expected = sum(float(row[i]) for row, i in zip(scores, ids[-4:], strict=True))
    assert result.samples[0]["loglikelihoods"][0] == pytest.approx(expected, rel=1e-4)


def test_a_target_longer_than_the_context_is_named(model: LlamaForCausalLM, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"context": "a", "continuation": "b" * 30}])
    with pytest.raises(TaskError, match=r"has 31 tokens of its own, but must have 1 to 20"):
        zeroshot_scoring.run(context(model, context_length=20), Config(["l"], {"l": file}))


def test_non_finite_scores_name_the_document(model: LlamaForCausalLM, tmp_path: Path) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[0].self_attn.v_proj.weight[0, 0] = math.inf
    file = write(tmp_path / "mine.jsonl", CHOICES)
    with pytest.raises(TaskError, match=r"continuation of '.*Answer:' no finite likelihood .nan."):
        zeroshot_scoring.run(context(broken), Config(["m"], {"m": file}))


def test_a_token_on_the_border_belongs_to_one_side_only(model: LlamaForCausalLM) -> None:
    """A tokenizer whose words end in their space ("box ") joins prompt and target."""
    from tokenizers import Tokenizer, models

    from harness.suites.zeroshot_model import Scorer

    pieces = ["<s>", "the", "▁", "box", "the▁", "box▁", "red", "box▁r", "ed", "."]
    core = Tokenizer(models.WordLevel({p: n for n, p in enumerate(pieces)}, unk_token="."))

    class Words(PreTrainedTokenizerFast):
        """Encodes by the longest piece that fits."""

        def encode(self, text: str, **_: Any) -> list[int]:  # type: ignore[override]
            ids, rest = [0], text.replace(" ", "▁")
            while rest:
                piece = max((p for p in pieces if rest.startswith(p)), key=len, default=".")
                ids.append(pieces.index(piece))
                rest = rest[len(piece) :]
            return ids

    tokenizer = Words(tokenizer_object=core, bos_token="<s>", eos_token="<s>", unk_token=".")
    scorer = Scorer(context(model, tokenizer), 64, 1)
    number = {piece: n for n, piece in enumerate(pieces)}
    # The space belongs to the prompt's last word: the target is the next word alone.
    assert scorer._encode_pair("the", " box") == ([0, number["the▁"]], [number["box"]])
    # One token holds the end of the prompt and the beginning of the target.
    assert scorer._encode_pair("the box", " red") == (
        [0, number["the▁"]],
        [number["box▁r"], number["ed"]],
    )
    assert scorer.shared == 2
    # Nothing is shared: lm-eval's own rule.
    assert scorer._encode_pair("the ", "box") == ([0, number["the▁"]], [number["box"]])
