"""`bitsweep export --format gguf` from the command line to `bitsweep inspect`."""

import re
from pathlib import Path

import pytest

from harness import cli
from tests.quant.checkpoint.test_gguf_export import artifact


def test_a_file_is_written_and_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, weights = artifact(tmp_path)
    out = tmp_path / "m.gguf"
    arguments = ["export", str(source), str(out), "--format", "gguf"]
    assert cli.main(arguments) == cli.OK
    note, last = capsys.readouterr().out.splitlines()
    assert note.startswith(f"note: {len(weights)} as Q4_0 of GGUF")
    size = f"{out.stat().st_size:,} bytes"
    assert last == f"{out}: {len(weights)} quantized layers in gguf, {size}"
    assert cli.main(arguments) == cli.IMPOSSIBLE
    assert "add --overwrite" in capsys.readouterr().err
    assert cli.main([*arguments, "--overwrite"]) == cli.OK
    capsys.readouterr()
    assert cli.main(["inspect", str(out)]) == cli.OK
    said = capsys.readouterr().out
    assert "GGUF, architecture llama" in said
    assert "cannot be run" not in said


def test_help_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--help"]) == cli.OK
    assert re.search(r"^  gguf +llama\.cpp", capsys.readouterr().out, re.MULTILINE)
