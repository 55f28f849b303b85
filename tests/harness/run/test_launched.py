"""Sweeps by workers: submitit's local executor, a Slurm of shell scripts, a Ray cluster; kills."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from harness.cell.plan import CellPlan
from harness.config.compose import compose_cells
from harness.config.kept import as_json
from harness.launchers import slurm
from harness.launchers.base import Launcher
from harness.launchers.choosing import Chosen
from harness.records.record import QUANTIZATION
from harness.records.store import load_records
from harness.run import launch, launched
from harness.run.diary import Diary, Job, Settled
from harness.run.screen import open_console
from harness.run.status import sweeps
from harness.run.worker import JOBS
from tests import warm
from tests.harness.run.disturbing import begin, python, survived, wait_for, workers

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_killed_workers_and_commands_leave_the_same_tables(
    kills: int, sweep: list[str], tmp_path: Path, started: list[warm.Process]
) -> None:
    pytest.importorskip("submitit", reason="needs submitit: pip install submitit")
    seeds = "seed=0,1,2,3,4" if kills > 3 else "seed=0"
    results, killed = survived([*sweep, seeds], "local", kills, tmp_path, started)
    assert not list((results / "artifacts").glob(".*")), "no partial artifact is left"
    if kills > 3:
        assert len(killed) >= 15


SBATCH = """#!{python}
# Runs what it is given, as an array of one, and says its number.
import os, subprocess, sys
file = sys.argv[-1]
if os.path.exists({folder!r} + "/full"):
    sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit")
number = str(len(os.listdir({folder!r} + "/jobs")) + 1)
environment = {{**os.environ, "SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}}
log = open({folder!r} + "/log-" + number, "w")
started = {{"env": environment, "stdout": log, "stderr": log, "start_new_session": True}}
job = subprocess.Popen(["bash", file], **started)
open({folder!r} + "/jobs/" + number, "w").write(str(job.pid))
print("Submitted batch job", number)
"""
SRUN = """#!{python}
import os, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    option = words.pop(0)
    if option in ("--output", "--error"):
        name = words.pop(0).replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1 + (option == "--error"))
os.execvp(words[0], words)
"""
SQUEUE = """#!{python}
import os, sys
for number in os.listdir({folder!r} + "/jobs"):
    pid = open({folder!r} + "/jobs/" + number).read()
    try:
        state = open("/proc/" + pid + "/stat").read().split()[2]
    except OSError:
        continue
    if state != "Z":
        print(number)
"""
SCANCEL = """#!{python}
import os, signal, sys
os.killpg(int(open({folder!r} + "/jobs/" + sys.argv[1]).read()), signal.SIGTERM)
"""
SACCT = """#!{python}
import sys
sys.exit("Slurm accounting storage is disabled")
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm of scripts, without accounting, that runs jobs here; the folder of its notes."""
    pytest.importorskip("submitit", reason="needs submitit: pip install submitit")
    folder = tmp_path / "cluster"
    (folder / "jobs").mkdir(parents=True)
    scripts = {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE, "scancel": SCANCEL, "sacct": SACCT}
    for name, text in scripts.items():
        file = folder / name
        file.write_text(text.format(python=sys.executable, folder=str(folder)))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN", 0.5)
    import submitit

    monkeypatch.setattr(submitit.SlurmExecutor, "__init__", _warm(submitit.SlurmExecutor.__init__))
    return folder


def _warm(begin: Callable[..., None]) -> Callable[..., None]:
    def init(self: object, *arguments: object, **more: object) -> None:
        begin(self, *arguments, **more)
        self.python = python()  # type: ignore[attr-defined]

    return init


@pytest.mark.slow
def test_jobs_of_slurm_without_accounting(
    cluster: Path, sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way through sbatch; a job that is cancelled is noticed by squeue alone."""
    words = [*sweep, "hydra/launcher=slurm", "hydra.launcher.workers=1"]
    words += ["hydra.launcher.cpus=3", "hydra.launcher.options.qos=low"]
    cells = compose_cells(words, multirun=True)
    killed: list[str] = []

    def kill_first(*_: object) -> None:
        if not killed and workers(tmp_path / "results"):
            subprocess.run(["scancel", "1"], check=True)
            killed.append("1")

    follow = launch_screen_follow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.run.screen.Screen.follow", lambda *a: (kill_first(), follow(*a)))
        ran = launch.run_cells(cells)
    said = capsys.readouterr().err
    assert (ran.status, ran.outcome.stopped) == (0, None)
    # A stage whose record the killed worker wrote without living to say so is found finished.
    assert ran.outcome.finished + ran.outcome.cached == 8
    assert ran.outcome.cached <= 1
    assert [record.suite for record in ran.records] == [QUANTIZATION, "perplexity"] * 4
    assert killed == ["1"]
    assert "worker 1 ended (" in said
    assert sorted(path.name for path in (cluster / "jobs").iterdir()) == ["1", "2"]
    (folder,) = (tmp_path / "results" / "runs").glob("*")
    batch = next((folder / "jobs").glob("*submission*.sh")).read_text()
    for line in ("--cpus-per-task=3", "--qos=low", "--time=720", "--job-name=bitsweep"):
        assert f"#SBATCH {line}" in batch
    assert "gpus" not in batch
    assert "2 workers" not in said, "the one that was killed was followed by one of its name"
    assert "1 worker, each started once in " in said


def launch_screen_follow() -> Callable[..., None]:
    from harness.run.screen import Screen

    return Screen.follow


def test_what_slurm_refuses_is_said_and_nothing_is_lost(cluster: Path, sweep: list[str]) -> None:
    (cluster / "full").touch()
    cells = compose_cells([*sweep, "hydra/launcher=slurm"], multirun=True)
    ran = launch.run_cells(cells, quiet=True)
    assert ran.status == 1
    assert ran.outcome.stopped is not None
    assert "QOSMaxSubmitJobPerUserLimit" in ran.outcome.stopped
    assert ran.records == []


def test_slurm_without_its_commands_names_them(
    sweep: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="needs submitit: pip install submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    cells = compose_cells([*sweep, "hydra/launcher=slurm"], multirun=True)
    stopped = launch.run_cells(cells, quiet=True).outcome.stopped
    assert stopped is not None
    assert "needs sbatch, squeue, scancel, srun, which are not on PATH" in stopped


def test_a_scheduler_that_does_not_answer_keeps_its_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm._Queue().holds(["1", "2"]) == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_a_ray_cluster_of_two_workers_that_are_killed(
    kills: int, sweep: list[str], tmp_path: Path, started: list[warm.Process]
) -> None:
    pytest.importorskip("ray", reason="needs ray, whose wheel is too large for CI: pip install ray")
    seeds = "seed=0,1,2,3,4" if kills > 3 else "seed=0,1"
    survived([*sweep, seeds], "ray", kills, tmp_path, started)


@pytest.mark.slow
def test_a_ray_head_that_is_gone_is_said_and_costs_nothing_finished(
    sweep: list[str], tmp_path: Path, started: list[warm.Process]
) -> None:
    pytest.importorskip("ray", reason="needs ray, whose wheel is too large for CI: pip install ray")
    results = tmp_path / "results"
    command = begin([*sweep, "seed=0,1,2", "hydra/launcher=ray"])
    started.append(command)
    wait_for(lambda: [s for s in sweeps(results) if s.settled], 200)
    (head,) = [
        child
        for process in psutil.process_iter(["cmdline"])
        if str(results) in " ".join(process.info["cmdline"] or ())
        and "harness.launchers.ray" in (process.info["cmdline"] or ())
        for child in process.children(recursive=True)
        if child.name() == "gcs_server"
    ]
    held = [*workers(results)]
    for pid in held:  # the cells would be done before Ray sees that its head is gone
        os.kill(pid, signal.SIGSTOP)
    head.kill()
    try:
        assert command.wait(200) == 1
    finally:
        for pid in held:
            with suppress(ProcessLookupError):  # Ray has killed it
                os.kill(pid, signal.SIGCONT)
    said = " ".join(command.read()[1].split())
    assert "stopped: the Ray cluster is gone, or refuses its workers" in said
    assert "finished stages are kept; run the same command again when it is back" in said
    assert load_records(results)


def test_a_disk_that_is_full_ends_workers_with_the_cause(
    sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cell is not settled, so that another worker or run takes it."""
    import errno

    from harness.errors import StoreError
    from harness.run import worker
    from harness.run.events import Failed

    results = tmp_path / "results"
    cells = compose_cells([*sweep[:-2], "method=rtn"], multirun=True)
    diary = Diary(results / "runs" / "one")
    diary.begin("one", [Job(1, "tiny", ("quantization", "perplexity"))])
    (diary.folder / JOBS).write_text(as_json(cells[:1]))

    def full(cell: object, hear: Callable[[object], None], log: Path) -> None:
        hear(Failed("quantization", "OSError", os.strerror(errno.ENOSPC)))

    def no_space(*_: object) -> None:
        raise StoreError("the disk is full: free some space")

    monkeypatch.setattr(worker, "run_in_process", full)
    monkeypatch.setattr(worker, "prepare", lambda _: None)
    monkeypatch.setattr(worker, "warm_up", lambda: None)
    monkeypatch.setattr("harness.records.store.Store.check_writable", no_space)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(StoreError, match="the disk is full"):
            worker.work(str(diary.folder), 0, 1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert diary.settled() == {}
    assert [sweep.state for sweep in sweeps(results)] == ["interrupted"]


def test_stages_of_a_cell_that_a_worker_left_count_as_run(
    sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another cell makes the reference of its divergence: it quantizes, leaves, and comes back."""
    from harness.run import worker
    from harness.run.events import Event, Finished, Waiting

    diary = Diary(tmp_path / "results" / "runs" / "one")
    diary.begin("one", [Job(1, "tiny", ("quantization", "perplexity"))])
    (diary.folder / JOBS).write_text(as_json(compose_cells([*sweep[:-2], "method=rtn"])))
    turns: list[list[Event]] = [
        [Finished("quantization", 2.0), Waiting("process 9", "the same reference")],
        [Finished("quantization", 0.0, cached=True), Finished("perplexity", 3.0)],
    ]

    def turn(_: object, hear: Callable[[Event], None], log: Path) -> None:
        for event in turns.pop(0):
            hear(event)

    monkeypatch.setattr(worker, "run_in_process", turn)
    monkeypatch.setattr(worker, "prepare", lambda _: None)
    monkeypatch.setattr(worker, "warm_up", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        worker.work(str(diary.folder), 0, 1)
    finally:
        signal.signal(signal.SIGTERM, before)
    settled = diary.settled()[1]
    assert settled.finished == {"quantization": 2.0, "perplexity": 3.0}
    assert settled.cached == []


def test_a_resumed_sweep_counts_its_cells_and_stages_once(
    sweep: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One cell of two is done, and of the other the quantization."""
    words = [*sweep[:-2], "method=rtn", "scheme=w4,w3"]
    cells = compose_cells(words, multirun=True)
    assert launch.run_cells(cells[:1], quiet=True).status == 0
    plans = [launch.look_up(found) for found in launch.fetch_all(cells)]
    assert all(isinstance(plan, CellPlan) for plan in plans)
    diary = Diary(plans[0].cell.store.root / "runs" / "one")
    jobs = [Job(1, "first", ()), Job(2, "second", ("perplexity",))]

    class Done:
        def __init__(self) -> None:
            diary.settle(2, Settled({"perplexity": 1.0}, ["quantization"], runner="worker-001"))

        def ended(self) -> dict[int, str]:
            return {}

    launcher = Launcher("made", "slurm", object, lambda *_: Done())  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launched, "jobs_of", lambda _: jobs)
        console = open_console(stderr=True)
        options = SimpleNamespace(workers=2)
        outcome = launched.run_launched(
            Chosen(launcher, options), cells, plans, diary, console, None
        )
    assert "[2/2] second perplexity 1.0 s (worker-001)" in capsys.readouterr().err
    assert outcome.finished == 1
    assert outcome.cached == 2, "the quantization of the other is among what its plan lacks"


ONE = """
import sys
from harness.run.worker import work
work(sys.argv[1], 0, 1)
"""


def test_a_preempted_worker_s_successor_goes_on_at_the_block(
    sweep: list[str], tmp_path: Path, started: list[warm.Process]
) -> None:
    """SIGTERM ends the worker at once, with its cell's process; no block is made twice."""
    from transformers import AutoConfig, OPTForCausalLM

    words = [word for word in sweep if not word.startswith(("method=", "scheme=", "model.path="))]
    (tiny,) = [word.partition("=")[2] for word in sweep if word.startswith("model.path=")]
    config = AutoConfig.from_pretrained(tiny)
    config.num_hidden_layers = 12
    OPTForCausalLM(config).save_pretrained(tmp_path / "deep")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny) / name, tmp_path / "deep" / name)
    words += [f"model.path={tmp_path / 'deep'}", "method=gptq", "scheme=w4"]
    results = tmp_path / "results"
    diary = Diary(results / "runs" / "one")
    diary.begin("one", [Job(1, "deep", ("quantization", "perplexity"))])
    (diary.folder / JOBS).write_text(as_json(compose_cells(words)))
    started.append(warm.start(["-c", ONE, str(diary.folder)]))
    wait_for(lambda: len([*results.glob("artifacts/.*.partial/blocks/*.json")]) >= 2)
    os.kill(started[0].pid, signal.SIGTERM)
    assert started[0].wait(30) != 0
    assert diary.settled() == {}
    kept = len([*results.glob("artifacts/.*.partial/blocks/*.json")])
    assert 2 <= kept < 12
    started.append(warm.start(["-c", ONE, str(diary.folder)]))
    assert started[1].wait(120) == 0, started[1].read()[1]
    (made,) = [r for r in load_records(results) if r.suite == QUANTIZATION]
    assert made.environment["blocks resumed"] == str(kept)
    assert diary.settled()[1].failures == []
