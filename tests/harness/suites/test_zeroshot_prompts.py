"""Generated answers, few-shot examples and chat templates, against prompts put together by hand."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from harness.cell.resolve import resolve
from harness.config.schema import CellConfig
from harness.data.chat import template_of
from harness.embedded import MODEL_DIR
from harness.errors import ConfigError
from harness.run.stage import run_cell
from harness.suites import zeroshot, zeroshot_scoring
from harness.suites.base import Facts
from harness.suites.zeroshot import Config
from harness.suites.zeroshot_forms import GENERATED_TOKENS
from harness.suites.zeroshot_tasks import TaskError, read_local
from tests.harness.cells import cell_of
from tests.harness.report.conftest import make_record
from tests.harness.suites.byte_model import (
    CHOICES,
    by_hand,
    byte_model,
    byte_tokenizer,
    context,
    metric,
    write,
)

CHAT = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}<a>"
SHORT = [
    {"query": "1+1", "answer": "2"},
    {"query": "2+2", "answer": "4"},
    {"query": "2+3", "answer": "5"},
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return byte_model()


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The greedy continuation, every token from a pass of its own without a cache."""
    found: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            logits = model(torch.tensor([ids + found]), use_cache=False).logits
            found.append(int(logits[0, -1].argmax()))
    return found


def line_of(tokenizer: Any, ids: list[int]) -> str:
    """What an answer is: the text before end of text and line break, without space around."""
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return tokenizer.decode(ids, skip_special_tokens=True).split("\n")[0].strip()


def test_answers_are_generated_by_the_packed_model(
    tiny_cell: Callable[..., CellConfig], tmp_path: Path
) -> None:
    """Those of the artifact, token by token; the task's own answers are two of the four."""
    from quant.checkpoint.loader import load

    config = tiny_cell("method=rtn", "scheme=w3", latency=False)
    queries = ["Tom had", "Anna looked into the", "a box of red", "apples"]
    file = tmp_path / "mine.jsonl"

    def measure(answers: list[str], number: int) -> Any:
        items = [
            {"query": query, "answer": answer}
            for query, answer in zip(queries, answers, strict=True)
        ]
        config.paths.results = str(tmp_path / f"results{number}")
        settings = {"files": {"mine": write(file, items)}, "batch_size": 3}
        config.suite = {"zeroshot": {"module": "harness.suites.zeroshot", **settings}}
        cell = cell_of(config)
        run_cell(cell, lambda _: None)
        return cell, cell.find("zeroshot")

    cell, record = measure(["?"] * 4, 0)
    tokenizer = AutoTokenizer.from_pretrained(cell.stored_model.folder)
    packed = load(cell.artifact).eval()
    expected = [
        line_of(tokenizer, greedy(packed, tokenizer(query)["input_ids"], GENERATED_TOKENS))
        for query in queries
    ]
    assert all(expected)
    samples = [
        json.loads(line)
        for line in next(Path(config.paths.results).rglob("*.jsonl")).read_text().splitlines()
    ]
    assert [each["prediction"] for each in samples] == expected
    (figure,) = record.metrics
    assert (figure.name, figure.task, figure.value) == ("exact_match", "mine", 0.0)
    assert figure.notes["truncated"] == f"0 of 4 requests, to {64} tokens"
    _, record = measure([expected[0], "no", expected[2], "no"], 1)
    assert record.metrics[0].value == 0.5
    assert record.metrics[0].items is not None


def test_a_context_too_short_for_an_answer_is_refused(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    file = write(tmp_path / "mine.jsonl", SHORT)
    with pytest.raises(TaskError, match="task m generates up to 32 tokens, but the context has 20"):
        zeroshot_scoring.run(context(model, context_length=20), Config(["m"], {"m": file}))


@pytest.mark.parametrize("wrong", [{"answer": "a\nb"}, {"answer": " "}, {"query": " "}])
def test_an_answer_is_one_line(tmp_path: Path, wrong: dict[str, str]) -> None:
    file = write(tmp_path / "mine.jsonl", [{"query": "q", "answer": "a"} | wrong])
    with pytest.raises(TaskError, match=r"line 1 .*the answer a single line"):
        read_local("mine", Path(file))


def test_examples_are_other_documents_and_the_name_says_so(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    items = [{"context": f"{word}", "continuation": word[::-1]} for word in ("ab", "cd")]
    file = write(tmp_path / "mine.jsonl", items)
    config = Config(["m"], {"m": file}, num_fewshot=1)
    result = zeroshot_scoring.run(context(model), config)
    assert {each.task for each in result.metrics} == {"m-1shot"}
    prompts = ["cd dc\n\nab", "ab ba\n\ncd"]
    expected = [
        by_hand(model, prompt, f" {item['continuation']}")[0]
        for prompt, item in zip(prompts, items, strict=True)
    ]
    found = [sample["loglikelihoods"][0] for sample in result.samples]
    assert found == pytest.approx(expected, rel=1e-4)
    # A limit counts documents to score; any may be an example.
    limited = zeroshot_scoring.run(
        context(model), Config(["m"], {"m": file}, num_fewshot=1, limit=1)
    )
    assert [sample["loglikelihoods"][0] for sample in limited.samples] == pytest.approx(
        expected[:1], rel=1e-4
    )


def test_prompts_are_put_into_the_chat_template(model: LlamaForCausalLM, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    items = [{"query": "red?", "choices": ["yes", "no"], "gold": 1}, *CHOICES[1:2]]
    file = write(tmp_path / "mine.jsonl", items)
    config = Config(["m"], {"m": file}, apply_chat_template=True, limit=1)
    result = zeroshot_scoring.run(context(model, tokenizer), config)
    accuracy = metric(result, "accuracy")
    assert accuracy.task == "m-chat"
    assert accuracy.notes["chat_template"] == hashlib.sha256(CHAT.encode()).hexdigest()
    # The answer follows the template's own words directly, as in a conversation.
    expected = [by_hand(model, "<u>red?<a>", choice)[0] for choice in items[0]["choices"]]
    assert result.samples[0]["loglikelihoods"] == pytest.approx(expected, rel=1e-4)


def folder_with(tmp_path: Path, **files: str) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, tmp_path / name)
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text)
    return tmp_path


@pytest.mark.parametrize("form", ["none", "key", "named", "file"])
def test_templates_are_those_that_transformers_reads(tmp_path: Path, form: str) -> None:
    folder = folder_with(tmp_path)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    if form == "key":
        config["chat_template"] = CHAT
    if form in ("named", "file"):
        named = [{"name": "tools", "template": "x"}, {"name": "default", "template": CHAT}]
        config["chat_template"] = named
    file.write_text(json.dumps(config))
    if form == "file":
        (folder / "chat_template.jinja").write_text(CHAT + "!")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = None if form == "none" else tokenizer.get_chat_template()
    assert template_of(folder) == expected


def test_a_chat_without_a_template_is_refused_before_anything_is_loaded(
    tiny_cell: Callable[..., CellConfig], tmp_path: Path
) -> None:
    file = write(tmp_path / "mine.jsonl", SHORT)
    settings: dict[str, Any] = {"files": {"m": file}, "apply_chat_template": True}
    config = tiny_cell("method=none", "scheme=w16", latency=False)
    config.suite = {"zeroshot": {"module": "harness.suites.zeroshot", **settings}}
    with pytest.raises(
        ConfigError,
        match=r"suite\.zeroshot\.apply_chat_template=true needs a chat template, .*model=tiny has",
    ):
        resolve(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_fewshot": 3}, "task m has 3 documents, too few for num_fewshot=3 examples"),
        ({"num_fewshot": -1}, "num_fewshot=-1 is negative"),
    ],
)
def test_what_examples_cannot_be_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "mine.jsonl", SHORT)
    facts = Facts(key="suite.zeroshot", model="tiny")
    with pytest.raises(ConfigError, match=message):
        zeroshot.check(Config([], {"m": file}, **settings), facts)


def test_keys_without_a_chat_are_those_of_older_records() -> None:
    plain = zeroshot.semantics(Config(["piqa"]))
    assert "apply_chat_template" not in plain
    chat = zeroshot.semantics(Config(["piqa"], apply_chat_template=True))
    assert chat == plain | {"apply_chat_template": True}


def test_the_table_says_what_prompts_have(model: LlamaForCausalLM, tmp_path: Path) -> None:
    from harness.report import from_records
    from harness.report.tables import summary_tables

    file = write(tmp_path / "mine.jsonl", CHOICES)
    metrics = [
        each
        for shots in (0, 2)
        for each in zeroshot_scoring.run(
            context(model), Config(["m"], {"m": file}, num_fewshot=shots)
        ).metrics
    ]
    records = [make_record("none", "w16", "zeroshot", metrics=metrics)]
    (table,) = summary_tables(from_records(records))
    headers = [column.header for column in table.columns]
    assert {"m", "m-2shot"} <= set(headers)
    assert "Prompts of m-2shot: 2 examples before the document." in [n.text for n in table.notes]
