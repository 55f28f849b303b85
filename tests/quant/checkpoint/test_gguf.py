"""GGUF files against the models that were written into them, and against transformers' reader."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from quant.checkpoint.folder import verify
from quant.checkpoint.gguf import file as gguf_file
from quant.checkpoint.gguf.describe import describe
from quant.checkpoint.gguf.file import read_gguf
from quant.checkpoint.gguf.unpack import check, unpack
from quant.errors import ArtifactError
from tests.quant.checkpoint.gguf_families import write_keys
from tests.quant.checkpoint.gguf_files import llama, vocabulary, write


def loaded(folder: Path) -> LlamaForCausalLM:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_a_float_file_is_the_model_that_was_written(tmp_path: Path, tied: bool) -> None:
    model = llama(tied)
    folder = unpack(write(tmp_path / "m.gguf", model), tmp_path / "out")
    found = loaded(folder)
    tokens = torch.arange(3, 60)[None]
    assert torch.equal(found(tokens).logits, model(tokens).logits)
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 5000.0)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 0)
    assert found.config.max_position_embeddings == 128
    assert verify(folder), "every file has its checksum"


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "Q5_0", "F16"])
def test_quantized_values_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    """Its reader has its own table of names, and its own permutation."""
    path = write(tmp_path / "m.gguf", llama(), kind)
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
    )
    ours = loaded(unpack(path, tmp_path / "out")).state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours[name], tensor), name


READ = [kind for kind in gguf.GGMLQuantizationType if kind.name[:1] in "QITMNB"
        and kind.name not in ("I8", "I16", "I32", "I64", "Q8_1", "Q8_K", "Q1_0")]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # random scales
@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
def test_every_type_of_the_package_is_read(tmp_path: Path, kind: Any) -> None:
    """Random blocks, against the package; a slice of rows is that of the whole."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (6, 512 // block * size), np.uint8)
    path = write_keys(tmp_path / "m.gguf", "llama", {}, {"x.weight": (raw, kind)})
    file = read_gguf(path)
    tensor = file.tensors["x.weight"]
    expected = torch.from_numpy(gguf.quants.dequantize(raw, kind).astype("float32"))
    assert (tensor.kind, tensor.shape) == (kind.name, (6, 512))
    torch.testing.assert_close(tensor.values(), expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(tensor.values((2, 5)), expected[2:5], rtol=0, atol=0, equal_nan=True)
    assert file.bits_per_weight == 8 * size / block
    assert describe(path).kinds[kind.name].bits_per_weight == 8 * size / block


def test_double_precision_is_rounded(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4))
    kind = gguf.GGMLQuantizationType.F64
    path = write_keys(tmp_path / "m.gguf", "llama", {}, {"x.weight": (values, kind)})
    found = read_gguf(path).tensors["x.weight"].values()
    assert torch.equal(found, torch.from_numpy(values).float())


def test_the_folder_says_what_the_file_held(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama(), "Q4_1")
    seen: list[tuple[int, int]] = []
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    folder = unpack(
        path, tmp_path / "out", sha256=digest, done=lambda done, total: seen.append((done, total))
    )
    said = json.loads((folder / "gguf.json").read_text())
    matrices = sum(p.numel() for p in llama().parameters() if p.dim() == 2)
    norms = 5 * 64
    assert said["weights"] == {"Q4_1": matrices, "F32": norms}
    bits = (5 * matrices + 32 * norms) / (matrices + norms)  # 4 bits and two float16 for 32
    assert said["bits_per_weight"] == pytest.approx(bits, abs=1e-4)
    assert said["kinds"]["Q4_1"] == {
        "tensors": 15, "weights": matrices, "bytes": 5 * matrices // 8
    }  # fmt: skip
    assert said["tensor_bytes"] == 5 * matrices // 8 + 4 * norms
    assert said["file_bytes"] == path.stat().st_size
    assert (said["sha256"], said["file"], said["architecture"]) == (digest, "m.gguf", "llama")
    assert seen[-1] == (20, 20)


def textbook_ids(text: str, digits_alone: bool) -> list[int]:
    """Byte-level BPE by the book: cut, then merge the pair of the least rank until none is left."""
    import regex
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens, merges = vocabulary()
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    letters = bytes_to_unicode()
    expression = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    parts = regex.split(r"(\p{N})", text) if digits_alone else [text]
    ids = []
    for piece in (piece for part in parts for piece in regex.findall(expression, part)):
        word = [letters[byte] for byte in piece.encode()]
        while pairs := [pair for pair in pairwise(word) if pair in ranks]:
            best = min(pairs, key=ranks.__getitem__)
            at = next(i for i in range(len(word)) if tuple(word[i : i + 2]) == best)
            word[at : at + 2] = ["".join(best)]
        ids += [tokens.index(each) for each in word]
    return ids


@pytest.mark.parametrize("cut", ["smollm", "gpt-2"])
@pytest.mark.parametrize(
    "text", ["the cat sat the", "the  12 cat\n 1", "it's 121, m² ", "héé the\n\n  cat  "]
)
def test_ids_are_those_of_the_textbook(tmp_path: Path, cut: str, text: str) -> None:
    """transformers cuts every GGUF's texts as GPT-2's are, whatever tokenizer.ggml.pre says."""
    path = write(tmp_path / "m.gguf", llama(), tokenizer__ggml__pre=cut)
    tokenizer = AutoTokenizer.from_pretrained(
        unpack(path, tmp_path / "out"), trust_remote_code=False
    )
    assert tokenizer(text)["input_ids"] == textbook_ids(text, cut == "smollm")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")
    assert tokenizer("a<|end|>b")["input_ids"][1] == 0


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (True, True), (False, False)])
def test_bos_and_eos_are_added_as_the_file_says(tmp_path: Path, bos: bool, eos: bool) -> None:
    path = write(
        tmp_path / "m.gguf", llama(),
        tokenizer__ggml__add_bos_token=bos, tokenizer__ggml__add_eos_token=eos,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(
        unpack(path, tmp_path / "out"), trust_remote_code=False
    )
    plain = textbook_ids("the cat", True)
    assert tokenizer("the cat")["input_ids"] == [1] * bos + plain + [0] * eos


def test_without_the_package_its_command_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.gguf", llama())
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match=r'pip install "bitsweep\[gguf\]"'):
        check(path)
