"""The command line: help, one-sentence errors, whole sweeps, interruptions."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cuda_ext.ops import KERNELS
from harness import cli, extras
from harness.cell.checks import ACTIVATIONS, STREAM
from harness.config import help as options
from harness.config.schema import RuntimeConfig
from tests import warm

HEAVY = {"torch", "transformers", "hydra", "omegaconf", "pandas", "matplotlib", "lm_eval", "wandb"}


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """A process that imports everything, for tests of what happens meanwhile."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["help"],
        ["--version"],
        ["run", "-h"],
        ["run", "--help", "scheme"],
        *([verb, "--help"] for verb in cli.VERBS),
    ],
)
def test_help_is_instant_because_nothing_heavy_is_imported(arguments: list[str]) -> None:
    code = (
        "import sys; from harness.cli import main; status = main(sys.argv[1:]); "
        f"print(status, sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "0 []"
    assert done.stdout


def test_help_of_run_names_every_group_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("model", "opt-125m", "w4g128", "perplexity_paper", "quickstart", "-m", "examples"):
        assert word in text
    assert all(len(line) <= 100 for line in text.splitlines())
    assert text.index("  w2,") < text.index("w16") if "  w2," in text else True


def test_help_of_a_group_explains_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help", "scheme"]) == 0
    text = capsys.readouterr().out
    assert "ternary_g8" in text
    assert "groups of 8" in text
    assert cli.main(["run", "--help", "shceme"]) == cli.IMPOSSIBLE


WRITTEN = {None: "null", False: "false", True: "true"}  # as YAML has them


def test_help_of_runtime_has_its_keys_with_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help", "runtime"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = {line.strip(): lines[at + 1] for at, line in enumerate(lines) if "runtime." in line}
    assert set(said) == {
        f"runtime.{field.name}={WRITTEN.get(value, value)}"
        for field in dataclasses.fields(RuntimeConfig)
        for value in [getattr(RuntimeConfig(), field.name)]
    }
    for key, values in (("activations", ACTIVATIONS), ("stream", STREAM), ("kernel", KERNELS)):
        assert all(value in said[f"runtime.{key}=auto"] for value in values)
    assert cli.main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    assert "runtime.activations=" in text
    assert "runtime.stream=" in text


def test_help_of_a_group_explains_nested_keys_but_not_those_of_others() -> None:
    assert options.keys("suite")["suite.zeroshot.batch_size"] == (
        "16",
        "fixed, because padding changes the last digits",
    )
    assert options.keys("experiment") == {}
    assert options.keys("scheme", "w4")["scheme.bits"] == ("4", "16 values per weight")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "fly is not a verb"),
        (["run", "--sweep"], "--sweep is not an option"),
        (["run", "scheme=w9"], "scheme=w9 is not an option"),
        (["plan", "method=none"], "use scheme=w16"),
        (["run", "--config-dir"], "needs a folder"),
        (["run", "--config-dir", "/nowhere"], "is not a folder"),
        (["report", "/nowhere"], "there is no folder /nowhere"),
        (["doctor", "now"], "bitsweep doctor takes no arguments, but got now"),
        (["doctor", "--all"], "--all is not an option"),
        (["--fast"], "--fast is not an option of bitsweep"),
        (["report", "--out"], "--out needs a folder"),
        (["paper", "a", "b"], "bitsweep paper takes no further argument b"),
        (["report", "/nowhere", "/neither"], "there is no folder /nowhere"),
        (["inspect"], "the following arguments are required: FOLDER; `bitsweep inspect --help`"),
        (["export", "a", "b"], "required: --format"),
        (["run", "tracker=mlflow"], "tracker=mlflow is not an option"),
        (["plan", "tracker.mode=live"], "tracker.mode=live is unknown; choose one of offline, onl"),
        (["plan", "tracker.project=a/b"], "tracker.project=a/b cannot name a wandb project"),
        (["plan", "hydra/launcher=cloud"], "hydra/launcher=cloud is not installed"),
        (["plan", "hydra.launcher.workers=3"], "choose one that has it, as in hydra/launcher="),
    ],
)
def test_wrong_requests_are_one_sentence_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == cli.IMPOSSIBLE
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("bitsweep: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err, err


@pytest.mark.parametrize(
    ("name", "extra"), [("ray", "ray"), ("slurm", "slurm"), ("local", "slurm")]
)
def test_a_launcher_names_the_package_to_install(
    name: str, extra: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(extras.EXTRAS, extra, ("no_such_module",))
    for verb in ("plan", "run"):
        assert cli.main([verb, f"hydra/launcher={name}"]) == cli.IMPOSSIBLE
        assert capsys.readouterr().err == (
            f"bitsweep: hydra/launcher={name} needs a package that is not installed "
            f'(no_such_module): pip install "bitsweep[{extra}]".\n'
        )


def test_launchers_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help"]) == cli.OK
    assert "local, ray, slurm" in capsys.readouterr().out
    assert cli.main(["run", "--help", "launcher"]) == cli.OK
    said = capsys.readouterr().out
    assert "bitsweep run hydra/launcher=OPTION" in said
    assert "hydra.launcher.partition=null" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("hydra.launcher.workers=0", "hydra.launcher.workers=0 is too small; use 1 or more."),
        ("hydra.launcher.workers=many", "it takes a whole number"),
        ("hydra.launcher.workerz=2", "not a setting of this launcher (did you mean workers?)"),
    ],
)
def test_settings_of_a_launcher_are_checked(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(extras.EXTRAS, "slurm", ())
    assert cli.main(["plan", "hydra/launcher=slurm", words]) == cli.IMPOSSIBLE
    err = capsys.readouterr().err
    assert sentence in err
    assert "Traceback" not in err


def test_the_traceback_is_there_for_those_who_ask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITSWEEP_DEBUG", "1")
    assert cli.main(["run", "scheme=w9"]) == cli.IMPOSSIBLE
    assert "Traceback" in capsys.readouterr().err


def test_the_configuration_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert cli.main(["run", "-m", "--cfg", "method=rtn", "scheme=w4,w3"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [each["scheme"]["bits"] for each in documents] == [4, 3]


def test_a_plan_touches_nothing(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "-m", *tiny_overrides, "scheme=w4,w3"]) == 0
    text = capsys.readouterr().out
    assert "2 cells, 6 stages: 6 to run, 0 done" in text
    assert not (tmp_path / "results").exists()


def test_the_doctor_sees_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["doctor"])
    text = capsys.readouterr().out
    assert "kernel reference" in text
    assert status == (cli.FAILED if "MISSING" in text else cli.OK)


def test_one_failing_cell_does_not_stop_the_others(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """400 documents cannot be drawn from 40, so the GPTQ cells fail and the RTN cell does not."""
    arguments = ["run", "-m", *tiny_overrides, "calib.sequences=400"]
    assert cli.main([*arguments, "method=gptq,rtn"]) == cli.FAILED
    out, err = capsys.readouterr()
    assert "[1/2] tiny-gptq-w4-s0 quantization failed (ProtocolError)" in err
    summary = err[err.index("3 stages run, 0 found finished, 1 failed") :].splitlines()
    cause = "400 calibration documents were asked for"
    assert summary[1].startswith(f"  tiny-gptq-w4-s0: quantization failed: {cause}")
    assert (out + err).count(cause) == 2, "said at once, and in the summary"
    assert any(cause in log.read_text() for log in tmp_path.glob("results/runs/*/001-*.log"))
    assert "RTN" in out
    assert cli.main([*arguments, "method=gptq", "scheme=w4,w3"]) == cli.FAILED
    err = capsys.readouterr().err
    assert f"  tiny-gptq-w4-s0, tiny-gptq-w3-s0: quantization failed: {cause}" in err
    summary = err[err.index("0 stages run, 0 found finished, 2 failed") :]
    assert summary.count(cause) == 1, "cells that failed alike share a line"
    report = tmp_path / "results" / "reports" / "run" / "summary.md"
    assert report.is_file()
    assert cli.main(["report", str(tmp_path / "results")]) == cli.OK
    out = capsys.readouterr().out
    assert "RTN" in out
    assert "¹ quantization: ProtocolError: 400 calibration" in out, "no summary would say it"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_worker_is_made_leaves_no_traceback_and_no_process(
    tiny_overrides: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    """The server of workers imports for seconds before it answers."""
    running = start(["run", *tiny_overrides], tmp_path)
    assert running.stderr is not None
    said = ""
    while "to run, 0 done" not in said:
        said += running.stderr.readline()
        assert running.poll() is None, said
    time.sleep(0.5)
    os.killpg(running.pid, number)
    _, err = running.communicate(timeout=600)
    assert running.returncode == 128 + number
    assert "Traceback" not in err, err
    assert "finished stages are kept; run the same command again" in err
    deadline = time.monotonic() + 120
    while _group(running.pid):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)


def _group(number: int) -> bool:
    """Whether any process of a group is left; those that ended do not count."""
    members = [p for p in psutil.process_iter(["status"]) if _group_of(p.pid) == number]
    return any(p.info["status"] != psutil.STATUS_ZOMBIE for p in members)


def _group_of(process: int) -> int | None:
    try:
        return os.getpgid(process)
    except OSError:
        return None


def test_an_interrupted_sweep_goes_on_where_it_stopped(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    """Ctrl-C, SIGTERM and kill -9, each in the middle: the same command goes on, nothing is redone.

    A terminal sends a signal to the whole group, and so do clusters; kill -9 meets one process.
    """
    arguments = ["-m", "harness", "run", "-m", *tiny_overrides, "scheme=w4,w3,w2"]
    cells = tmp_path / "results" / "cells"
    before: dict[Path, int] = {}

    def finished() -> dict[Path, int]:
        found = {path: path.stat().st_mtime_ns for path in cells.glob("*/*.json")}
        assert before.items() <= found.items(), "a finished record was written again"
        return found

    ends = {signal.SIGINT: cli.INTERRUPTED, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    for number, status in ends.items():
        running = warm.start(arguments, cwd=tmp_path)
        deadline = time.monotonic() + 300
        while len(list(cells.glob("*/*.json"))) < len(before) + 1:
            assert running.poll() is None, running.read()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kill = os.kill if number == signal.SIGKILL else os.killpg
        kill(running.pid, number)
        _, err = running.communicate(timeout=600)
        assert running.returncode == status
        # A process that was being started when its parent was killed may say that it got nothing.
        if number != signal.SIGKILL:
            assert "Traceback" not in err, err
            assert "run the same command again" in err
        before = finished()
        assert len(before) < 9
    last = warm.run(arguments, cwd=tmp_path)
    out, err = last.stdout, last.stderr
    assert last.returncode == cli.OK, err
    assert "0 failed" in err
    assert "RTN" in out
    before = finished()
    assert len(before) == 9
    again = warm.run(arguments, cwd=tmp_path)
    assert "0 stages run, 9 found finished, 0 failed" in again.stderr
    assert finished() == before
