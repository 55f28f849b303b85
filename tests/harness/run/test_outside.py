"""Quantization by another program: a program that copies a checkpoint, from a user's folder."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cell.cells import ResolvedCell
from harness.cell.resolve import resolve
from harness.config.schema import CellConfig
from harness.errors import ConfigError
from harness.records.record import Record
from harness.run.events import Event, Failed
from harness.run.stage import run_cell
from quant.config import QuantizationConfig
from quant.errors import QuantizationError
from quant.scheme import Scheme
from quant.solvers.base import Solver
from quant.solvers.outside import Made, Request, interpreter, run_script
from tests.harness.cells import cell_of
from tests.quant.tiny_checkpoints import edit_config

Make = Callable[..., CellConfig]

PROGRAM = """
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    source: str = ""
    mode: str = "copies"


def whole(request, options):
    from quant.solvers.outside import run_script

    return run_script(Path(sys.executable), Path(__file__).absolute(), request, asdict(options))


def main(asked, result):
    options = asked["options"]
    if options["mode"] == "fails":
        print("on its way")
        sys.exit("no layer 7 in this model")
    shutil.copytree(options["source"], asked["out"], dirs_exist_ok=True)
    Path(asked["out"], "artifact.json").unlink()
    if options["mode"] == "silent":
        return
    seen = [len(asked["windows"]), asked["bits"], asked["group_size"], asked["symmetric"]]
    said = {"version": f"copier {seen}", "seconds": 1.5}
    result.write_text(json.dumps(said))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
else:
    from quant.solvers.base import Solver

    SOLVER = Solver(
        "copier", "Copier", whole=whole, options=Options, needs_calibration=True,
        describe=lambda options: [options.mode],
    )
"""


@pytest.fixture
def copier(tiny_cell: Make, tmp_path: Path) -> Callable[..., ResolvedCell]:
    """Cells of the program that copies, which ask for 4 bits per row unless told otherwise."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "copier.py").write_text(PROGRAM)

    def make(*overrides: str, **options: Any) -> ResolvedCell:
        config = tiny_cell("method=gptq", "scheme=w4", *overrides)
        config = replace(config, method={"solver": "copier", **options})
        found = resolve(config, tmp_path / "mine")
        assert isinstance(found, ResolvedCell)
        return found

    return make


def run(cell: ResolvedCell) -> dict[str, str]:
    """Run a cell; the stages that failed, with why."""
    events: list[Event] = []
    run_cell(cell, events.append)
    return {each.stage: each.message for each in events if isinstance(each, Failed)}


def record(cell: ResolvedCell, stage: str) -> Record:
    found = cell.find(stage)
    assert found is not None
    return found


def rounded(tiny_cell: Make, scheme: str) -> ResolvedCell:
    """A cell of rounding that has been run: what the program copies."""
    cell = cell_of(tiny_cell("method=rtn", f"scheme={scheme}"))
    assert run(cell) == {}
    return cell


def test_what_a_program_left_is_measured_as_if_made_here(
    tiny_cell: Make, copier: Callable[..., ResolvedCell], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = rounded(tiny_cell, "w4")
    theirs = copier(source=str(ours.artifact))
    monkeypatch.setattr("harness.run.quantizing.said_busy", lambda _: "1.3 of 2 cores by others")
    assert run(theirs) == {}
    for stage, name in (("perplexity", "perplexity"), ("quantization", "artifact_size")):
        values = [
            [metric.value for metric in record(cell, stage).metrics if metric.name == name]
            for cell in (ours, theirs)
        ]
        assert values[0] == pytest.approx(values[1], rel=0.01 if stage == "quantization" else 0)
    made = record(theirs, "quantization")
    assert made.cell.bits_per_weight == record(ours, "quantization").cell.bits_per_weight
    assert made.cell.coverage == 1.0
    assert (made.cell.label, made.cell.options) == ("Copier", "copies")
    seconds = {m.task: m.value for m in made.metrics if m.name == "seconds"}
    assert seconds["total"] == 1.5, "as the program says, without its start"
    busy = {m.name for m in made.metrics if m.notes.get("busy") == "1.3 of 2 cores by others"}
    assert busy == {"seconds"}
    assert made.peak_memory_bytes is not None
    assert 2e6 < made.peak_memory_bytes < 1e9, "of a process that does next to nothing"
    assert made.environment["program"] == "copier [4, 4, None, False]"
    assert made.environment["format"] == "GPTQ v2"
    assert made.environment["arithmetic"] is None, "none of ours"
    assert made.inputs["calibration tokens"]
    assert theirs.keys.semantic["code"], "a change of the program is another cell"


def test_a_checkpoint_of_another_scheme_is_refused_by_name(
    tiny_cell: Make, copier: Callable[..., ResolvedCell]
) -> None:
    cell = copier(source=str(rounded(tiny_cell, "w3").artifact))
    said = run(cell)["quantization"]
    assert "copier was asked for w4 and left w3 (GPTQ v2)" in said
    assert cell.artifact is not None
    assert not cell.artifact.exists()
    assert not list(cell.artifact.parent.glob(".*")), "nothing stays of what it left"


def test_a_checkpoint_of_several_schemes_is_refused_by_name(
    tiny_cell: Make, copier: Callable[..., ResolvedCell], tmp_path: Path
) -> None:
    made = rounded(tiny_cell, "w4").artifact
    assert made is not None
    mixed = shutil.copytree(made, tmp_path / "mixed")
    said = {
        "quant_method": "auto-round", "packing_format": "auto_round", "bits": 4, "group_size": -1,
        "sym": False, "extra_config": {".*fc2.*": {"group_size": 32}},
    }  # fmt: skip
    edit_config(lambda config: config.update(quantization_config=said))(mixed)
    told = run(copier(source=str(mixed)))["quantization"]
    assert "asked for w4 and left several schemes (10 layers w4, 2 layers w4g32)" in told


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("fails", "copier.py ended with status 1 after 0 s (no layer 7 in this model)"),
        ("silent", "copier.py wrote no result (FileNotFoundError"),
    ],
)
def test_a_program_that_fails_says_why(
    tiny_cell: Make, copier: Callable[..., ResolvedCell], mode: str, expected: str
) -> None:
    cell = copier(source=str(rounded(tiny_cell, "w4").artifact), mode=mode)
    assert expected in run(cell)["quantization"].replace("after 1 s", "after 0 s")
    assert cell.artifact is not None
    assert not cell.artifact.exists()


def test_what_a_program_is_not_told_is_refused_by_the_plan(
    copier: Callable[..., ResolvedCell],
) -> None:
    for overrides, options, expected in (
        (["scheme.head.bits=8"], {}, "scheme.head cannot be used with method=copier"),
        (["transform=[equalize]"], {}, "transform=[equalize] prepares weights for a solver"),
        ([], {"partial": True}, "method.partial is a rule for solvers of layers"),
    ):
        with pytest.raises(ConfigError) as error:
            copier(*overrides, **options)
        assert expected in str(error.value)


def test_a_missing_environment_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MY_PROGRAMS", raising=False)
    with pytest.raises(ValueError, match=r"MY_PROGRAMS names no environment.*Make one"):
        interpreter("MY_PROGRAMS", "Make one so.")
    monkeypatch.setenv("MY_PROGRAMS", str(tmp_path))
    with pytest.raises(ValueError, match="has no bin/python"):
        interpreter("MY_PROGRAMS", "Make one so.")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert interpreter("MY_PROGRAMS", "") == tmp_path / "bin" / "python"


def test_a_spec_has_either_solve_or_whole() -> None:
    def whole(request: Request, options: object) -> Made:
        raise AssertionError

    with pytest.raises(ValueError, match="is not a function"):
        Solver("neither", "Neither")
    with pytest.raises(ValueError, match="neither solve nor prepare"):
        Solver("both", "Both", solve=lambda *_: None, whole=whole)  # type: ignore[arg-type,return-value]
    spec = Solver("program", "Program", whole=whole)
    with pytest.raises(QuantizationError, match=r"another program.*bitsweep run"):
        QuantizationConfig(spec, Scheme(4))


def test_a_program_and_what_it_started_end_with_us(tmp_path: Path) -> None:
    """Killed without a chance to clean up, as a cell is that outlasts its time."""
    script = tmp_path / "sleeper.py"
    script.write_text(
        "import os, pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'pids')!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    ask = (
        "from pathlib import Path\n"
        "from quant.scheme import Scheme\n"
        "from quant.solvers.outside import Request, run_script\n"
        "import sys\n"
        f"request = Request(Path('m'), [], Scheme(4), Path({str(tmp_path)!r}))\n"
        f"run_script(Path(sys.executable), Path({str(script)!r}), request, {{}})\n"
    )
    ours = subprocess.Popen([sys.executable, "-c", ask], cwd=Path(__file__).parents[3])
    file = tmp_path / "pids"
    _wait(lambda: file.exists() and len(file.read_text().split()) == 2)
    ours.send_signal(signal.SIGKILL)
    ours.wait()
    _wait(lambda: not any(_runs(int(pid)) for pid in file.read_text().split()))


def test_threads_and_paths_reach_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "teller.py"
    script.write_text(
        "import json, os, sys\n"
        "asked = json.load(open(sys.argv[1]))\n"
        "said = [os.environ.get('OMP_NUM_THREADS'), os.environ.get('PYTHONPATH'), asked['seed']]\n"
        "open('its.log', 'w').close()\n"
        "held = bytearray(300_000_000)\n"
        "json.dump({'version': str(said), 'seconds': 1}, open(sys.argv[2], 'w'))\n"
    )
    request = Request(tmp_path, [[1, 2]], Scheme(4, 64), tmp_path, seed=7, threads=3)
    made = run_script(Path(sys.executable), script, request, {})
    assert (made.version, made.seconds) == ("['3', None, 7]", 1.0)
    assert [file.name for file in tmp_path.iterdir()] == ["teller.py"], "its logs are not ours"
    assert made.peak_bytes is not None
    assert 3e8 < made.peak_bytes < 6e8


def _wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(") ")[2][:1] != "Z"
