"""A warm process is the one that `python ARGUMENTS` would be."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import warm
from tests.warm import messages

FACTS = """
import json, os, signal, sys, threading
print(json.dumps({
    "argv": sys.argv, "main": __name__, "own": sys.modules["__main__"].__dict__ is globals(),
    "cwd": os.getcwd(), "here": sys.path[0], "HOME": os.environ.get("HOME"),
    "MINE": os.environ.get("MINE"), "stdin": sys.stdin.read(),
    "threads": threading.active_count(), "leads": os.getpgid(0) == os.getpid(),
    "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    "handlers": [str(signal.getsignal(n)) for n in (2, 13, 15, 17)],
    "flags": str(sys.flags), "encoding": [sys.stdout.encoding, sys.stderr.errors],
    "buffered": [sys.stdout.line_buffering, sys.stdout.write_through],
    "rest": [each for each in sys.path[1:] if each],
}))
"""


def cold(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        **options,
    )


@pytest.mark.parametrize("kind", ["-c", "-m", "script"])
def test_it_is_what_a_fresh_process_is(kind: str, tmp_path: Path) -> None:
    (tmp_path / "facts_of_it.py").write_text(FACTS)
    script = str(tmp_path / "facts_of_it.py")
    first = {"-c": ["-c", FACTS], "-m": ["-m", "facts_of_it"], "script": [script]}[kind]
    environment = {**os.environ, "MINE": "1"}
    del environment["HOME"]
    made = [
        each([*first, "a", "--b"], env=environment, cwd=tmp_path, check=True)
        for each in (warm.run, lambda words, **options: cold(*words, **options))
    ]
    assert made[0].stderr == made[1].stderr == ""
    assert made[0].stdout == made[1].stdout


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit('a sentence')", 1, "a sentence"),
        ("import os; os._exit(9)", 9, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM, ""),
        ("import atexit; atexit.register(print, 'last', flush=True)", 0, ""),
    ],
)
def test_it_ends_as_a_fresh_process_does(code: str, status: int, said: str) -> None:
    made, usual = warm.run(["-c", code]), cold("-c", code)
    assert made.returncode == usual.returncode == status
    assert made.stderr.splitlines()[-1:] == usual.stderr.splitlines()[-1:] == [said] * bool(said)
    assert made.stdout == usual.stdout


def test_what_one_does_is_not_seen_by_the_next(tmp_path: Path) -> None:
    leaves = f"""
import os, sys, torch
os.environ["LEFT"] = "1"
os.chdir({str(tmp_path)!r})
torch.set_default_dtype(torch.float64)
torch.manual_seed(7)
sys.path.append("/nowhere")
sys.modules["left_behind"] = sys
"""
    sees = """
import os, sys, torch
print("LEFT" in os.environ, os.getcwd(), torch.get_default_dtype(), torch.initial_seed(),
      "/nowhere" in sys.path, "left_behind" in sys.modules)
"""
    before = warm.run(["-c", sees]).stdout
    assert warm.run(["-c", leaves]).returncode == 0
    assert warm.run(["-c", sees]).stdout == before
    assert before.startswith(f"False {os.getcwd()} torch.float32")


def test_heavy_libraries_are_there_and_nothing_has_run() -> None:
    code = (
        "import sys, os, time; before = len(sys.modules); import torch, transformers, hydra;"
        "print(len(sys.modules) == before, time.process_time() < 1, torch.cuda.is_initialized(), "
        "len(os.listdir('/proc/self/task')))\n"
        # Of the server's descriptors none but the way to a fork server of its own.
        "files = [os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')]\n"
        "print(sum('socket:' in file for file in files))"
    )
    assert warm.run(["-c", code]).stdout == "True True False 1\n1\n"


def test_signals_reach_it_and_its_group() -> None:
    waits = "import time; print(1, flush=True); time.sleep(600)"
    for send, number in ((os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)):
        process = warm.start(["-c", waits])
        while process.read()[0] != "1\n":
            assert process.poll() is None
            time.sleep(0.01)
        assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
        send(process.pid, number)
        process.communicate(60)
        assert process.returncode == -number


def test_one_that_takes_too_long_is_killed() -> None:
    process = warm.start(["-c", "import time; time.sleep(600)"])
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(0.1)
    assert process.returncode == -signal.SIGKILL
    assert not psutil.pid_exists(process.pid)


def test_its_fork_server_is_warm_and_ends_with_it() -> None:
    code = """
import multiprocessing, os, sys, time
def child(pipe):
    pipe.send((os.getpid(), os.getppid(), time.process_time(), "torch" in sys.modules))
if __name__ == "__main__":
    from tests.test_warm import child
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.run.preload"])
    for turn in range(2):
        here, there = context.Pipe()
        process = context.Process(target=child, args=(there,))
        process.start()
        pid, server, seconds, warm = here.recv()
        process.join()
        print(pid == process.pid, seconds < 1, warm, process.exitcode, server)
"""
    done = warm.run(["-c", code])
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(maxsplit=1) for line in done.stdout.splitlines()]
    assert [line for line, _ in lines] == ["True True True 0"] * 2
    (server,) = {int(server) for _, server in lines}
    await_end(server)


def await_end(process: int) -> None:
    """Wait until a process has ended, whether or not its parent has noticed."""
    deadline = time.monotonic() + 60
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"process {process} is left"
            time.sleep(0.01)


def child(pipe: object) -> None:
    pipe.send((os.getpid(), os.getppid(), time.process_time(), "torch" in sys.modules))  # type: ignore[attr-defined]


def test_it_outlives_who_asks_and_is_killed_before_the_answer() -> None:
    """A killed launcher had connected; the server wrote to nobody, and ended with all it ran."""
    running = warm.start(["-c", "import time; time.sleep(60)"])
    address = warm._server().address
    for _ in range(20):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        messages.send(connection, {"hold": True})
        connection.close()
    assert warm.run(["-c", "print('here')"]).stdout == "here\n"
    assert running.poll() is None
    running.kill()


def test_a_variable_that_comes_too_late_is_refused() -> None:
    with pytest.raises(ValueError, match=r"OMP_NUM_THREADS would come too late.*use subprocess"):
        warm.run(["-c", ""], env={**os.environ, "OMP_NUM_THREADS": "7"})


@pytest.mark.parametrize("turn", [1, 2])
def test_what_code_under_test_sets_is_gone_before_the_next_test(turn: int) -> None:
    assert "TRANSFORMERS_VERBOSITY" not in os.environ
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def test_nothing_is_left_when_pytest_is_killed(tmp_path: Path) -> None:
    """The server and what it started end with the process that asked for them."""
    code = f"""
import pathlib, psutil, time
from tests import warm
warm.use(pathlib.Path({str(tmp_path)!r}))
process = warm.start(["-c", "import time; time.sleep(600)"])
print(process.pid, psutil.Process(process.pid).ppid(), flush=True)
time.sleep(600)
"""
    asks = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert asks.stdout is not None
    both = [int(process) for process in asks.stdout.readline().split()]
    asks.kill()
    asks.communicate()
    assert len(both) == 2
    for process in both:
        await_end(process)
    assert not os.path.exists((tmp_path / "warm.address").read_text())
