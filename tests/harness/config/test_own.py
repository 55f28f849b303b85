"""YAML files of a user's folder that cannot be read: refused by name, at once."""

import re
import time
from pathlib import Path

import pytest

from harness.cell.parts import suites_in
from harness.config.compose import compose_cells
from harness.config.own import read_mapping
from harness.errors import ConfigError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
BROKEN = {
    "unclosed": (b"solver: [quant.solvers.rtn\n", "expected ',' or ']'"),
    "python": (b'solver: !!python/object/apply:os.system ["true"]\n', "tag .*python/object/apply"),
    "tagged": (b"solver: !mine quant.solvers.rtn\n", "tag '!mine'"),
    "bytes": (b"solver: \xff\xfe\n", "its byte 9 is not UTF-8"),
    "deep": (b"solver: " + b"[" * 5000 + b"]" * 5000, "it is nested too deeply"),
    "deep lines": (b"a: \n  " + b"- " * 5000 + b"b\n", "it is nested too deeply"),
    "itself": (b"a: &a [*a]\n", "more than 10000 values"),
    "bomb": (BOMB.encode(), "more than 10000 values"),
    "large": (b"a: " + b"x" * 2_000_000, "more than 100000 bytes"),
    "list": (b"- a\n", "holds a list, not a mapping"),
    "text": (b"a\n", "holds a str, not a mapping"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    for group in ("method", "suite"):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_bytes(content)
    begin = time.process_time()
    file = rf"{re.escape(str(tmp_path))}/\w+/mine.yaml"
    sentence = rf"{file} cannot be read: [^\n]*{reason}[^\n]*; correct it"
    for attempt in (lambda: compose_cells([], extra=tmp_path), lambda: suites_in(tmp_path)):
        with pytest.raises(ConfigError, match=sentence):
            attempt()
    assert time.process_time() - begin < 5


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "suite" / "mine.yaml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"mine.yaml cannot be read: .*Is a directory"):
        suites_in(tmp_path)


def test_an_empty_file_and_numbers_as_keys(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# nothing\n")
    assert read_mapping(file) == {}
    file.write_text("1: a\n")
    assert read_mapping(file) == {"1": "a"}


def test_files_that_are_in_no_group_may_be_anything_that_is_read_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for name, content in (("list", "- a"), ("broken", "a: ["), ("alias", "a: &a [1, 2]\nb: *a\n")):
        (tmp_path / "notes" / f"{name}.yaml").write_text(content)
    compose_cells([], extra=tmp_path)
    (tmp_path / "notes" / "bomb.yaml").write_text(BOMB)
    with pytest.raises(ConfigError, match=r"bomb\.yaml cannot be read: with its aliases"):
        compose_cells([], extra=tmp_path)


def test_a_key_of_a_part_is_named_with_its_part(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nmodel: {dtyp: float32}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    sentence = r"^model\.dtyp is not a key \(did you mean dtype\?\): model has name, "
    with pytest.raises(ConfigError, match=sentence):
        compose_cells(["experiment=mine"], multirun=False, extra=tmp_path)


def test_letters_that_hydra_wants_in_quotes_are_told() -> None:
    with pytest.raises(ConfigError, match="letters outside ASCII in quotes"):
        compose_cells(["paths.results=Größe"], multirun=False)
    compose_cells(["paths.results='Größe'"], multirun=False)
