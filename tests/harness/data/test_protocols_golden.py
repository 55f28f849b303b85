"""Windows of the embedded model and of real texts, held to golden hashes.

BITSWEEP_UPDATE_GOLDEN=1 writes the golden hashes anew; look at the difference before committing.
"""

import json
import os
import random
from pathlib import Path

import pytest

from harness.data import protocols
from harness.data.config import CalibConfig, DocumentsConfig
from harness.data.protocols import CALIBRATION, TokenWindows

GOLDEN = Path(__file__).parents[2] / "golden" / "protocol_windows.json"


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
