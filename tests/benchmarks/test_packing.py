"""The benchmark of packing runs, both ways of writing included."""

import pytest

from benchmarks import packing
from benchmarks.scaling_time import Case
from quant.solvers import gptq


def test_the_tables_are_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packing, "WIDTHS", (128,))
    monkeypatch.setattr(packing, "ROUNDS", 1)
    monkeypatch.setattr(packing, "RUNS", ((gptq.SOLVER, Case(128, 128, 2, 256)),))
    begun: list[object] = []
    begin = packing.WriteBehind.begin
    monkeypatch.setattr(
        packing.WriteBehind, "begin", lambda self, write: (begun.append(1), begin(self, write))
    )
    packing.main()
    assert len(begun) == 2, "one of the two runs leaves both blocks to the thread"
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
    layer, run = rows[2], rows[-1]
    assert layer[0].split() == ["128", "x", "128"]
    assert all(float(cell) > 0 for cell in (*layer[1:], *run[1:]))
