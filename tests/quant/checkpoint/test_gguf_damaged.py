"""GGUF files that are damaged, contradict themselves or are not read: named, nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quant.checkpoint.gguf import families as read_families
from quant.checkpoint.gguf.describe import describe
from quant.checkpoint.gguf.unpack import check, unpack
from quant.errors import ArtifactError
from tests.quant.checkpoint import gguf_families as families
from tests.quant.checkpoint.gguf_files import llama, vocabulary, write

Tensors = dict[str, np.ndarray]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "mamba"}, "has the architecture mamba, and only llama, smollm3, qwen2,"),
        ({"general__type": "adapter"}, "is no model but a GGUF file of type adapter"),
        ({"split__count": 3}, "is one of 3 parts of a model"),
        ({"leave_out": ("blk.1.attn_k.weight",)}, "has no tensor blk.1.attn_k.weight"),
        ({"leave_out": ("token_embd.weight",)}, "has no tensor token_embd.weight"),
        ({"llama__block_count": 1}, "has a tensor that no llama has, blk.1"),
        ({"llama__block_count": 3}, "has no tensor blk.2"),
        ({"llama__expert_count": 8}, "has llama.expert_count=8 (a mixture of experts)"),
        ({"llama__logit_scale": 0.5}, "has llama.logit_scale=0.5"),
        ({"llama__attention__causal": False}, "has llama.attention.causal=False"),
        ({"llama__attn_logit_softcapping": 50.0}, "has llama.attn_logit_softcapping=50.0"),
        ({"llama__rope__dimension_count": 8}, "rotates 8 of the 16 dimensions"),
        ({"llama__context_length": None}, "has no llama.context_length"),
        ({"llama__context_length": -1.5}, "has llama.context_length=-1.5, which must be one whole"),
        ({"llama__attention__layer_norm_rms_epsilon": [1.0, 2.0]}, "another number for every"),
        ({"llama__attention__head_count": 3}, "is no multiple of attention.head_count_kv=2"),
        ({"llama__attention__head_count": 8}, "blk.0.attn_k.weight of shape [32, 64], and its met"),
        ({"llama__attention__head_count_kv": 4}, "blk.0.attn_k.weight of shape [32, 64], and its"),
        ({"llama__attention__head_count_kv": [2, 4]}, "another number for every block"),
        ({"llama__attention__value_length": 8}, "value_length=8, which differs from that of keys"),
        ({"llama__embedding_length": 128}, "token_embd.weight of shape [270, 64], and its meta"),
        ({"llama__feed_forward_length": 64}, "blk.0.ffn_gate.weight of shape [96, 64], and its"),
        ({"llama__vocab_size": 9}, "token_embd.weight, and llama.vocab_size has 9"),
        ({"tokenizer__ggml__tokens": ["a"]}, "token_embd.weight, and the tokenizer has 1"),
        ({"tokenizer__ggml__model": "t5"}, "has the tokenizer t5 (cut as smollm)"),
        ({"tokenizer__ggml__pre": "viking"}, "has the tokenizer gpt2 (cut as viking)"),
        ({"tokenizer__ggml__pre": None}, "has the tokenizer gpt2 (cut as None)"),
        ({"tokenizer__ggml__eos_token_id": 4000}, "has tokenizer.ggml.eos_token_id=4000"),
    ],
)
def test_what_is_not_read_is_refused_by_name_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = write(tmp_path / "m.gguf", llama(), **changes)
    for refuse in (lambda: check(path), lambda: unpack(path, tmp_path / "out")):
        with pytest.raises(ArtifactError) as caught:
            refuse()
        assert words in str(caught.value)
        assert str(caught.value).endswith(".")
    assert not (tmp_path / "out").exists()
    assert words in (describe(path).refused or "")


def cut_short(content: bytes) -> bytes:
    return content[:-100]


def cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def other_type(content: bytes) -> bytes:
    """The type of the last tensor is a number that no type has."""
    at = content.index(b"blk.1.ffn_down.weight") + len(b"blk.1.ffn_down.weight") + 4 + 2 * 8
    return content[:at] + (250).to_bytes(4, "little") + content[at + 4 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"PK" + content[2:], "is not a GGUF file"),
        (lambda content: content[:3000], "was cut short, is damaged"),
        (cut_in_half, "blk.0."),
        (cut_short, "(output_norm.weight ends at byte"),
        (other_type, "(blk.1.ffn_down.weight has the unknown type 250)"),
    ],
)
def test_damaged_files_are_refused_by_the_name_of_the_tensor(
    tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    path = write(tmp_path / "m.gguf", llama())
    path.write_bytes(damage(path.read_bytes()))
    for refuse in (check, describe, lambda path: unpack(path, tmp_path / "out")):
        with pytest.raises(ArtifactError) as caught:
            refuse(path)
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    """The package would read the scales of packed tensors with their bytes turned."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("x.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ArtifactError, match="was written for big-endian machines"):
        check(path)


def test_types_without_a_dequantizer_are_refused_by_the_name_of_the_tensor(tmp_path: Path) -> None:
    whole = gguf.GGMLQuantizationType.I32
    rows = np.zeros((len(vocabulary()[0]), 64), np.int32)

    def change(tensors: Tensors) -> None:
        del tensors["token_embd.weight"]

    made = families.model("llama")
    path = families.write(
        tmp_path / "m.gguf", "llama", made, tokenizer=families.byte_level(), change=change,
        more={"token_embd.weight": (rows, whole)},
    )  # fmt: skip
    with pytest.raises(ArtifactError, match=r"token_embd.weight is stored as I32, which the pack"):
        unpack(path, tmp_path / "out")
    assert describe(path).kinds["I32"].bits_per_weight == 32


def test_values_that_are_not_finite_are_refused_by_the_name_of_the_tensor(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"].copy()
        tensors["blk.1.ffn_up.weight"][3, 5] = np.inf

    made = families.model("llama")
    path = families.write(
        tmp_path / "m.gguf", "llama", made, tokenizer=families.byte_level(), change=change
    )
    with pytest.raises(ArtifactError, match=r"has values in blk.1.ffn_up.weight that are no fin"):
        unpack(path, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_keys_that_are_not_understood_are_named(tmp_path: Path) -> None:
    """Only those of the architecture, and none that changes nothing."""
    path = write(
        tmp_path / "m.gguf", llama(),
        llama__new__thing=2.5, llama__other=0, general__more="x", llama__vocab_size=None,
    )  # fmt: skip
    found = describe(path)
    assert (found.refused, found.not_understood) == (None, ["llama.new.thing"])


def test_every_architecture_is_one_of_the_package() -> None:
    """And every key of our tables is one that it knows, of any architecture."""
    names = set(gguf.MODEL_ARCH_NAMES.values())
    assert read_families.ARCHITECTURES.keys() <= names
    keys = {
        value.removeprefix("{arch}.")
        for group in (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
        for value in vars(group).values()
        if isinstance(value, str) and value.startswith("{arch}")
    }
    for how in read_families.ARCHITECTURES.values():
        assert {key.name for key in how.keys} | set(how.also) <= keys | {"rope.freq_base_swa"}
