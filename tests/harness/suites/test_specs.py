"""Specs of the suites: what goes into keys, what is refused, and what reading them costs."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness.data.config import DocumentsConfig
from harness.errors import ConfigError
from harness.records.environment import machine
from harness.records.record import Metric
from harness.report.columns import FigureColumn, SuiteTable
from harness.suites import divergence, kernels, latency, perplexity, zeroshot
from harness.suites.base import Facts, Suite, SuiteResult, machine_inputs, require_figures

SPECS = {
    module.SUITE.name: module for module in (perplexity, divergence, zeroshot, latency, kernels)
}
TABLE = SuiteTable((FigureColumn("score", "score"),))


def facts(name: str = "perplexity", **more) -> Facts:
    return Facts(**{"key": f"suite.{name}", "model": "tiny", "shape": None} | more)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The files that the keys below were made with."""
    (tmp_path / "text.txt").write_text("one.\ntwo.\n")
    (tmp_path / "mine.jsonl").write_text('{"context":"a b","continuation":"c"}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "wiki.test.raw").write_text("one.\ntwo.\n")
    return tmp_path


def test_what_keys_say_of_perplexity_is_as_before(data) -> None:
    config = perplexity.Config(
        ["embedded", "text", "wikitext2", "c4-new"],
        {"text": "text.txt", "wikitext2": "sub", "ptb": "unused/x.txt"},
        max_windows=7,
        batch_size=2,
    )
    assert perplexity.SUITE.semantics(config) == {
        "protocols": ["embedded", "text", "wikitext2", "c4-new"],
        "paths": {"text": "text.txt", "wikitext2": "sub"},
        "max_windows": 7,
        "batch_size": 2,
        "documents": {"start": 0, "count": None, "separator": "<|endoftext|>"},
    }
    assert perplexity.SUITE.inputs(config, facts(data_dir=str(data))) == {
        "text embedded": "c9c2828edf929b03f94eb4bf43cb03eceb40aa1921b085d299c2b1be6cff7d3d",
        "text text": "029ac6c5c7d81adf3514dee76fd3f8a400c6a788cea3ed627e16e82bdec014e5",
        "text wikitext2": "e711002fcccb217290e37a26055bccb372a479b15ee599bc3cff592416331a8a",
        "text c4-new": "93857aadfbd1f62eb9706ad73ca135d6f91a808ffe759c63513a25303c4b5e74",
    }


def test_what_keys_say_of_divergence_is_as_before(data) -> None:
    paths = {"documents": str(data / "text.txt")}
    config = divergence.Config(["documents"], paths, 3, DocumentsConfig(1, 2, "|"))
    assert divergence.SUITE.semantics(config) == {
        "protocols": ["documents"],
        "paths": {"documents": "text.txt"},
        "max_windows": 3,
        "documents": {"start": 1, "count": 2, "separator": "|"},
    }
    assert divergence.SUITE.inputs(config, facts()) == {
        "text documents": "150ef6551f3c1748fddf126d490f2da4259d11d9458b45350ced91aa9040345d"
    }


def test_what_keys_say_of_zeroshot_is_as_before(data) -> None:
    config = zeroshot.Config(["embedded_choice", "piqa"], {"mine": str(data / "mine.jsonl")}, 5)
    assert zeroshot.SUITE.semantics(config) == {
        "tasks": ["embedded_choice", "piqa"],
        "files": {"mine": "mine.jsonl"},
        "limit": 5,
        "batch_size": 16,
        "num_fewshot": 0,
    }
    assert zeroshot.SUITE.inputs(config, facts()) == {
        "task mine": "53378dd6c8fd1e08ffa36d0c86146f235112cdca3b39a50de8831cbe76d8e4d4",
        "stories": "42f9451f860485abdb74cbe51da9d1c2e592e33d788cd003c8710df38d6858b2",
    }
    other = zeroshot.Config(["embedded_by_others"])  # lm-eval's, whatever it is called
    assert zeroshot.SUITE.inputs(other, facts()) == {}
    assert zeroshot.SUITE.inputs(zeroshot.Config(["piqa"]), facts()) == {}


@pytest.mark.parametrize(("device", "threads", "counted"), [("cpu", 2, 2), ("cpu", None, None)])
def test_a_timing_belongs_to_its_machine(device, threads, counted) -> None:
    said = json.dumps([machine(), None, counted], sort_keys=True, separators=(",", ":"))
    expected = {"machine": hashlib.sha256(said.encode()).hexdigest()}
    known = facts(device=device, threads=threads)
    assert latency.SUITE.inputs(latency.Config(), known) == expected
    assert kernels.SUITE.inputs(kernels.Config([1, 2]), known) == expected


def test_what_keys_say_of_timings_is_as_before() -> None:
    assert latency.SUITE.semantics(latency.Config()) == {
        "prompt_tokens": 128,
        "decode_tokens": 64,
        "warmup": 3,
        "repeats": 5,
    }
    assert kernels.SUITE.semantics(kernels.Config([1, 2])) == {"batches": [1, 2], "seconds": 0.5}


def test_versions_are_those_in_the_keys_of_kept_records() -> None:
    versions = {name: module.SUITE.version for name, module in SPECS.items()}
    assert versions == {
        "perplexity": 1,
        "divergence": 2,  # 1 compared whole distributions, whatever the vocabulary
        "zeroshot": 2,
        "latency": 2,
        "kernels": 1,
    }


@pytest.mark.parametrize("name", SPECS)
def test_settings_are_types_that_omegaconf_knows(name) -> None:
    structured = OmegaConf.structured(SPECS[name].SUITE.config)
    assert not OmegaConf.is_missing(structured, list(structured)[-1])
    with pytest.raises(Exception, match="not in"):
        OmegaConf.merge(structured, {"no_such_key": 1})


REFUSED = [
    (perplexity, perplexity.Config([]), "suite.perplexity.protocols is empty: name a text"),
    (divergence, divergence.Config([]), "for example suite.divergence.protocols=[wikitext2]."),
    (
        perplexity,
        perplexity.Config(["embedded"], {"ptb": "x"}),
        "suite.perplexity.paths.ptb is a file for a text that is not measured: add ptb to "
        "suite.perplexity.protocols=[embedded], or remove it.",
    ),
    (perplexity, perplexity.Config(["embedded"], batch_size=0), "batch_size=0 is too small"),
    (perplexity, perplexity.Config(["embedded"], max_windows=0), "max_windows=0 is too small"),
    (perplexity, perplexity.Config(["nowhere"]), "suite.perplexity.protocols=nowhere: there is no"),
    (divergence, divergence.Config(["text"]), "set suite.divergence.paths.text=<file>."),
    (perplexity, perplexity.Config(["text"], {"text": "gone.txt"}), "no file or folder"),
    (zeroshot, zeroshot.Config([]), "suite.zeroshot.tasks is empty: name a task"),
    (zeroshot, zeroshot.Config(["embedded_choice"], limit=0), "suite.zeroshot.limit=0 is too"),
    (zeroshot, zeroshot.Config(["embedded_choice"], batch_size=0), "batch_size=0 is too small"),
    (zeroshot, zeroshot.Config([], {"mine": "gone.jsonl"}), "suite.zeroshot: there is no file"),
    (latency, latency.Config(prompt_tokens=0), "suite.latency.prompt_tokens=0 is too small"),
    (latency, latency.Config(warmup=-1), "suite.latency.warmup=-1 is too small"),
    (
        latency,
        latency.Config(100, 29),
        "suite.latency needs 129 tokens (prompt_tokens=100 + decode_tokens=29), but model=tiny has "
        "a context of 128: make one of the two smaller.",
    ),
    (kernels, kernels.Config([]), "suite.kernels.batches is empty: give rows of activations"),
    (kernels, kernels.Config([1, 0]), "suite.kernels.batches=0 is too small"),
    (kernels, kernels.Config([1], 0.0), "suite.kernels.seconds=0.0 leaves no time"),
]


@pytest.mark.parametrize(("module", "config", "message"), REFUSED)
def test_what_cannot_work_is_refused_in_one_sentence(module, config, message) -> None:
    suite = module.SUITE
    with pytest.raises(ConfigError) as raised:
        suite.check(config, facts(suite.name, shape={"max_position_embeddings": 128}))
    assert message in str(raised.value)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


def test_what_works_is_accepted(data) -> None:
    known = facts(data_dir=str(data), shape={"max_position_embeddings": 192})
    perplexity.SUITE.check(perplexity.Config(["embedded", "text"], {"text": "text.txt"}), known)
    zeroshot.SUITE.check(zeroshot.Config(["embedded_choice"], {"mine": "mine.jsonl"}), known)
    latency.SUITE.check(latency.Config(), known)
    latency.SUITE.check(latency.Config(4000), facts())  # the model is not here yet
    kernels.SUITE.check(kernels.Config([1]), known)


@dataclass
class Settings:
    rounds: int = 1


def run(context, config) -> SuiteResult:
    return SuiteResult([])


def test_a_suite_needs_little() -> None:
    suite = Suite("toy", 1, Settings, run, TABLE)
    assert suite.semantics(Settings(4)) == {"rounds": 4}
    assert suite.inputs(Settings(), facts()) == {}
    suite.check(Settings(), facts())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": SuiteTable()}, "suite toy has no table, so reports could not show its figures"),
        ({"name": "to-y"}, "suite name 'to-y' is not an identifier"),
        ({"version": 0}, "version=0 is too small"),
        ({"config": dict}, "is not a dataclass"),
        ({"timing": True}, "add inputs=machine_inputs"),
    ],
)
def test_a_suite_that_lacks_a_part_is_refused(changes, message) -> None:
    fields = {"name": "toy", "version": 1, "config": Settings, "run": run, "table": TABLE}
    with pytest.raises(ValueError) as raised:
        Suite(**fields | changes)
    assert message in str(raised.value)
    assert str(raised.value).endswith(".")


def test_a_suite_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="suite toy has no table, so reports"):
        Suite("toy", 1, Settings, run)


def test_a_timing_suite_with_its_machine_is_accepted() -> None:
    Suite("toy", 1, Settings, run, TABLE, inputs=machine_inputs, timing=True)


def figure(name: str = "score", task: str = "all") -> Metric:
    return Metric(name=name, task=task, value=1.0, unit="1", n=1, n_unit="runs")


SPARE = FigureColumn("spare", "spare", optional=True)
TOTAL = FigureColumn("score", "total", task="total")


@pytest.mark.parametrize(
    ("columns", "metrics", "said"),
    [
        ((TABLE.columns[0], SPARE), [figure(), figure(task="rest")], None),
        ((TOTAL,), [figure(task="total"), figure("other")], None),
        ((SPARE,), [], "suite toy returned no figures"),
        ((SPARE,), [figure(), figure()], "returned 2 figures named score of task all"),
        ((TABLE.columns[0],), [figure("scor")], "has a column of score, but returned scor:"),
        (
            (TABLE.columns[0], FigureColumn("size", "size")),
            [figure(), figure("sise")],
            "has a column of size, but returned score, sise: correct one of the two",
        ),
        ((TOTAL,), [figure()], "has a column of score of total, but returned no figure of it"),
    ],
)
def test_a_result_has_what_the_columns_of_its_suite_show(columns, metrics, said) -> None:
    suite = Suite("toy", 1, Settings, run, SuiteTable(columns))
    if said is None:
        require_figures(suite, SuiteResult(metrics))
        return
    with pytest.raises(ValueError) as raised:
        require_figures(suite, SuiteResult(metrics))
    assert said in str(raised.value)
    assert str(raised.value).endswith(".")


def test_a_suite_cannot_name_an_input_as_the_record_names_its_own() -> None:
    suite = Suite("toy", 1, Settings, run, TABLE)
    require_figures(suite, SuiteResult([figure()], {"text": "0f"}))
    with pytest.raises(
        ValueError, match="suite toy has an input named artifact, a name that records"
    ):
        require_figures(suite, SuiteResult([figure()], {"artifact": "0f"}))


HEAVY = """
import sys
import harness.suites.{name}
heavy = {{"torch", "transformers", "pandas", "lm_eval", "matplotlib", "datasets"}}
found = heavy & set(sys.modules)
if found:
    raise SystemExit(f"imported: {{sorted(found)}}")
"""


@pytest.mark.parametrize("name", [*SPECS, "find"])
def test_reading_a_spec_loads_no_heavy_library(name) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAVY.format(name=name)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SPECS)
def test_what_is_preloaded_exists(name) -> None:
    for module in SPECS[name].SUITE.preload:
        assert importlib.util.find_spec(module) is not None
