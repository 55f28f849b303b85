"""The byte-level BPE tokenizer of the embedded model, trained on its training stories."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from harness.embedded.stories import stories

VOCABULARY = 1472
# OPT's conventions: </s> begins every text and ends it, <pad> is 1.
UNKNOWN, PAD, BOS = "<unk>", "<pad>", "</s>"
SPECIAL = (UNKNOWN, PAD, BOS)


def train_tokenizer(story_count: int = 20_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Return a tokenizer of `VOCABULARY` tokens trained on stories of the train split.

    It puts `</s>` before every text.  Any text can be encoded: bytes are its smallest tokens.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator((story.text for story in stories("train", story_count, seed)), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, core.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=BOS,
        unk_token=UNKNOWN,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
