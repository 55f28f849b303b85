"""Calibration documents in a chat template: which windows they give, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cell.resolve import resolve
from harness.config.schema import CellConfig
from harness.data import protocols
from harness.data.config import CalibConfig
from harness.data.inputs import calibration_settings
from harness.errors import ConfigError
from tests.harness.cells import cell_of
from tests.harness.suites.byte_model import byte_tokenizer

CHAT = "{% for m in messages %}<s>[{{ m.role }}]{{ m.content }}[/]{% endfor %}"


def test_each_document_is_a_message_of_a_user(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("Tom had.<|endoftext|>Anna")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    config = CalibConfig(
        "documents", "documents-calibration", str(file), sequences=2, length=30, chat_template=True
    )
    found = protocols.calibration_windows(config, tokenizer, 64)
    expected = [tokenizer(f"[user]{text}[/]")["input_ids"] for text in ("Tom had.", "Anna")]
    assert expected[0][0] == 0
    assert [window.tolist() for window in found.windows] == expected, "one <s>, the template's own"
    assert found.source == "texts.txt, in the chat template"
    config.chat_template = False
    assert protocols.calibration_windows(config, tokenizer, 64).token_hash != found.token_hash


def with_template(folder: Path, to: Path, template: str) -> Path:
    shutil.copytree(folder, to)
    file = to / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return to


def test_the_template_is_in_the_key(
    tiny_cell: Callable[..., CellConfig], tiny_model: Path, tmp_path: Path
) -> None:
    config = tiny_cell("method=gptq")
    plain = cell_of(config).keys
    assert "chat_template" not in plain.semantic["calib"], "as in records without the key"
    config.calib.chat_template = True
    keys = []
    for number, template in enumerate((CHAT, CHAT + "!")):
        config.model.path = str(with_template(tiny_model, tmp_path / str(number), template))
        keys.append(cell_of(config).keys)
    assert keys[0].semantic["calib"]["chat_template"] is True
    hashes = {each.inputs["quantization"]["calibration chat template"] for each in keys}
    assert len(hashes) == 2
    assert len({each.cell for each in (plain, *keys)}) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"calib\.chat_template=true needs a chat template, .*model=tiny has none"),
        (["calib=text"], "windows of text-calibration are not made of single documents"),
        (["calib=random", "calib.path=null"], "windows of random-tokens are not made of single"),
    ],
)
def test_what_has_no_template_or_no_documents_is_refused_by_the_plan(
    tiny_cell: Callable[..., CellConfig], overrides: list[str], message: str
) -> None:
    config = tiny_cell("method=gptq", *overrides)
    config.calib.chat_template = True
    with pytest.raises(ConfigError, match=message):
        resolve(config)


def test_settings_without_a_chat_are_those_of_older_records() -> None:
    config = CalibConfig("a", "documents-calibration")
    assert calibration_settings(config).keys() == {
        "name", "protocol", "path", "sequences", "length", "seed", "documents",
    }  # fmt: skip
