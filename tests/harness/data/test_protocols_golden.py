"""Windows of the embedded model and of real texts, held to golden hashes.

BITSWEEP_UPDATE_GOLDEN=1 writes the golden hashes anew; look at the difference before committing.
"""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data import protocols, told
from harness.data.config import CalibConfig, DocumentsConfig
from harness.data.protocols import CALIBRATION, PROTOCOLS, TokenWindows
from tests.harness.data import tokenizers

GOLDEN = Path(__file__).parents[2] / "golden" / "protocol_windows.json"
LENGTH = 64  # tokens of a window


def check_golden(model: str, found: dict[str, TokenWindows]) -> None:
    figures = {
        name: {"windows": len(one.windows), "tokens": one.tokens, "token_hash": one.token_hash,
               "text_hash": one.text_hash}
        for name, one in found.items()
    }  # fmt: skip
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("BITSWEEP_UPDATE_GOLDEN"):
        golden[model] = figures
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    assert figures == golden[model]


def test_windows_of_the_embedded_model_are_golden() -> None:
    from transformers import AutoTokenizer

    from harness.embedded import MODEL_DIR

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    calibration = CalibConfig("embedded", "embedded-calibration", sequences=32, length=None)
    found = {
        name: protocols.windows(name, tokenizer, 512) for name in ("embedded", "embedded-joined")
    }
    found["embedded-calibration"] = protocols.calibration_windows(calibration, tokenizer, 512)
    check_golden("embedded", found)


@pytest.mark.realdata
def test_windows_of_real_texts_are_golden(shared: Path) -> None:
    from transformers import AutoTokenizer

    data = shared / "data"
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "tinystories-656k")
    stories = data / "tinystories-valid" / "tinystories_valid_1M.txt"
    found = {
        "wikitext2": protocols.windows(
            "wikitext2", tokenizer, 512, path="wikitext-2-raw", data_dir=data
        ),
        "documents": protocols.windows(
            "documents", tokenizer, 512, path=str(stories), documents=DocumentsConfig(1, 200)
        ),
        "documents-calibration": protocols.windows(
            "documents-calibration", tokenizer, 512, use=CALIBRATION, path=str(stories),
            documents=DocumentsConfig(1000, 4000), sequences=128,
        ),
    }  # fmt: skip
    assert found["documents"].scored == 34787
    check_golden("tinystories-656k", found)


@pytest.mark.realdata
def test_calibration_on_real_text_draws_as_the_authors_do(shared: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "tinystories-656k")
    path = shared / "data" / "wikitext-2-tokens" / "valid.txt"
    config = CalibConfig("wikitext2", "wikitext2-train", path=str(path), sequences=8, length=256)
    found = protocols.calibration_windows(config, tokenizer, 512)
    text = "\n\n".join(
        line if line.strip() else "" for line in path.read_text().splitlines(keepends=True)
    )
    tokens = tokenizer.encode(text)
    random.seed(0)
    starts = [random.randint(0, len(tokens) - 256 - 1) for _ in range(8)]
    assert [window.tolist() for window in found.windows] == [
        tokens[start : start + 256] for start in starts
    ]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file for every protocol that reads one, made of embedded stories and rare characters."""
    folder = tmp_path_factory.mktemp("texts")
    told_texts = list(told.texts("test", 150))
    rare = ["naïve café", "\u4f60\u597d", "\U0001f600", "a\tb", "x  y", "1,000.5 %", "<unk> N"]
    rows = [f"{story} {rare[n % 7]}" for n, story in enumerate(told_texts)]
    wiki = folder / "wiki.raw"
    wiki.write_text("".join(f" = {n} = \n \n {row} \n" for n, row in enumerate(rows)))
    lines = folder / "ptb.txt"
    lines.write_text("".join(f" {row} \n" for row in rows))
    documents = folder / "documents.txt"
    documents.write_text("<|endoftext|>\n".join(rows))
    # 1,300 documents of very different lengths, of which "c4-new" reads 1,100.
    parts = [rows[n % 150][: 60 + 37 * n % 500] for n in range(1300)]
    c4 = folder / "c4.json.gz"
    c4.write_bytes(gzip.compress("".join(json.dumps({"text": p}) + "\n" for p in parts).encode()))
    by_name = {"wikitext2": wiki, "ptb": lines, "c4": c4, "documents": documents, "text": wiki}
    return {
        name: by_name[name.removesuffix("-train").removesuffix("-calibration").removesuffix("-new")]
        for name in PROTOCOLS
        if not name.startswith(("embedded", "random", "self"))
    }


def windows_of_all(tokenizer: Any, texts: dict[str, Path]) -> dict[str, TokenWindows]:
    """The windows of every protocol, 64 tokens long; 24 for calibration."""
    return {
        name: protocols.windows(
            name,
            tokenizer,
            LENGTH,
            use=protocol.use,
            path=str(texts[name]) if name in texts else None,
            sequences=24 if protocol.calibrates else None,
        )
        for name, protocol in PROTOCOLS.items()
        if not protocol.generates
    }


def check_ends(tokenizer: Any, found: dict[str, TokenWindows]) -> None:
    """Special tokens stand where the rule says, whatever the tokenizer puts around a text."""
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    adds_bos = tokenizer("a")["input_ids"][0] == bos
    for name, one in found.items():
        ids = torch.cat(one.windows)
        first = torch.stack([window[0] for window in one.windows])
        if one.protocol.windowing in ("documents", "packed", "random"):
            assert (first == bos).all(), name
            assert (ids == bos).sum() == len(one.windows), name
        elif one.protocol.windowing == "disjoint":
            assert (ids == bos).sum() == adds_bos == (first[0] == bos), name
        assert end == bos or not (ids == end).any(), name


@pytest.mark.parametrize("name", tokenizers.MADE)
def test_windows_of_every_protocol_are_golden(name: str, texts: dict[str, Path]) -> None:
    tokenizer = tokenizers.MADE[name]()
    found = windows_of_all(tokenizer, texts)
    check_ends(tokenizer, found)
    check_golden(f"every protocol, {name}", found)


@pytest.mark.realdata
def test_windows_of_a_real_tokenizer_are_golden(smollm2: Path, texts: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    found = windows_of_all(tokenizer, texts)
    check_ends(tokenizer, found)
    check_golden("every protocol, smollm2", found)
