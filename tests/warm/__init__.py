"""Start a Python process without the seconds that its imports take.

`run` and `start` do what subprocess.run and subprocess.Popen do with [sys.executable, *arguments],
except that the process is forked from one that has imported torch, transformers, Hydra and the
packages already: 0.3 s of processor time instead of 3 to 8. From there on the process is the
interpreter's own: `__main__`, sys.argv, exit status, tracebacks, signals, working folder,
environment and output are those of `python ARGUMENTS`, and it leads a process group of its own.
Where it starts a fork server (harness.run.process), that is forked as well.

It is no substitute where a test is about the imports themselves (which there are, what they cost,
what happens while they run, what is missing), or sets a variable that libraries read when they are
imported: such a request is refused.

All pytest workers of one run share the server. It ends with the last of them, and a process that it
started ends with the test process that asked for it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

from tests.warm import messages

ROOT = Path(__file__).resolve().parents[2]
# Read when a library is imported, or when the interpreter starts.
AT_IMPORT = (
    "ATEN_", "CUDA_", "DNNL_", "GOMP_", "HF_", "HUGGINGFACE_", "KMP_", "LANG", "LC_", "LD_",
    "LM_EVAL", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTHON", "TORCH", "TRANSFORMERS_",
)  # fmt: skip


def run(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = 600,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` with nothing to read, and capture its output as text."""
    process = start(arguments, env=env, cwd=cwd)
    out, err = process.communicate(timeout)
    assert process.returncode is not None
    done = subprocess.CompletedProcess([*arguments], process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def start(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> Process:
    """Start `python ARGUMENTS` with nothing to read and its output in files."""
    environment = dict(os.environ if env is None else env)
    # pytest's own note of the test that runs is none of the process's business.
    environment.pop("PYTEST_CURRENT_TEST", None)
    server = _server()
    differ = server.differences(environment)
    if differ:
        raise ValueError(
            f"{', '.join(differ)} would come too late, because the libraries that read it are "
            "imported already: use subprocess."
        )
    return Process([str(each) for each in arguments], environment, str(cwd or os.getcwd()), server)


class Process:
    """A started process; as subprocess.Popen, returncode is None until `poll` sees its end."""

    def __init__(
        self, arguments: list[str], environment: dict[str, str], cwd: str, server: _Server
    ) -> None:
        self.args = arguments
        self.returncode: int | None = None
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._err: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._said = _connected(server.address)
        request = {"arguments": arguments, "environment": environment, "cwd": cwd}
        files = [self._out.fileno(), self._err.fileno()]
        messages.send(self._said, request, files)
        self.pid: int = messages.receive(self._said)[0]["pid"]

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it is there; raises subprocess.TimeoutExpired."""
        status = self._wait(timeout)
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; the output and the errors. Kills the process after `timeout` s."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.read()

    def read(self) -> tuple[str, str]:
        """What it has written so far: the output and the errors."""
        both = []
        for file in (self._out, self._err):
            size = os.fstat(file.fileno()).st_size
            both.append(os.pread(file.fileno(), size, 0).decode())
        return both[0], both[1]

    def kill(self) -> None:
        """Kill the process and its group, if it runs, and wait for its end."""
        if self.poll() is None:
            messages.kill(self.pid)
            self.wait()

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._said], [], [], timeout)[0]:
            self.returncode = messages.receive(self._said)[0]["status"]
            self._said.close()
        return self.returncode


class _Server:
    """The connection that keeps the server alive, and what it began with."""

    def __init__(self, address: str, held: socket.socket, environments: list[dict[str, str]]):
        self.address, self.held, self.environments = address, held, environments

    def differences(self, environment: Mapping[str, str]) -> list[str]:
        """The variables that libraries of the server have read with another value.

        A value that an import sets (HF_HUB_DISABLE_PROGRESS_BARS) is none.
        """
        names = {name for each in (environment, *self.environments) for name in each}
        return sorted(
            name
            for name in names
            if name.startswith(AT_IMPORT)
            and environment.get(name) not in [each.get(name) for each in self.environments]
        )


def use(folder: Path) -> None:
    """Share the server with all processes that name this folder, and begin it as it is here now.

    Called before the first test, whose changes of the environment are its own.
    """
    global _folder, _environment
    _folder, _environment = folder, dict(os.environ)


def place() -> Path:
    """The folder by which another process shares the server (`use`)."""
    assert _folder is not None, "tests/conftest.py calls tests.warm.use"
    return _folder


_folder: Path | None = None
_environment: dict[str, str] = {}


@cache
def _server() -> _Server:
    """The server of this run of pytest, started by the first process that needs it."""
    folder = place()
    with (folder / "warm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        note, log = folder / "warm.address", folder / "warm.log"
        try:
            address = note.read_text()
            held = _connected(address)
        except OSError:  # none yet, or it ended with the last worker that used it
            address = _start(log)
            note.write_text(address)
            held = _connected(address)
        messages.send(held, {"hold": True})
        try:
            environments = messages.receive(held)[0]["environments"]
        except (EOFError, OSError) as error:
            raise RuntimeError(f"no warm processes: {log.read_text()}") from error
    return _Server(address, held, environments)


def _connected(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _start(log: Path) -> str:
    """Start the server; its address, where it answers as soon as its imports are done."""
    # A folder with a short name, of which a socket may have a hundred characters.
    address = os.path.join(tempfile.mkdtemp(prefix="bitsweep-warm-"), "socket")
    with socket.socket(socket.AF_UNIX) as listener, log.open("ab") as output:
        listener.bind(address)
        listener.listen(64)
        number = listener.fileno()
        subprocess.Popen(
            [sys.executable, "-c", f"from tests.warm.server import main; main({number})"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=_environment,
            pass_fds=[number],
            start_new_session=True,
        )
    return address
