"""The process that warm processes are forked from (tests.warm).

It imports, and runs nothing: it has one thread, which waits for requests.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from tests.warm import fork_server, messages

# What `bitsweep run` and its fork server import, and what quantizes. harness.run.preload is first
# and harness.run.warm last, as in the fork server. Not pandas: pyarrow starts a thread.
MODULES = (
    "harness.run.preload",
    "harness.run.stage",
    "harness.run.launch",
    "harness.config.compose",
    "harness.report.plots",
    "harness.suites.perplexity",
    "harness.suites.scoring",
    "harness.suites.latency",
    "harness.suites.timing_tokens",
    "quant.solvers.rtn",
    "quant.solvers.gptq",
    "quant.checkpoint.make",
    "quant.checkpoint.source",
    "quant.checkpoint.unfinished",
    "quant.memory.plan",
    "quant.memory.shapes",
    "transformers.models.llama.modeling_llama",
    "harness.run.warm",
)


@dataclass
class Request:
    """A process to start: the words behind `python`, and where its output goes."""

    arguments: list[str]
    environment: dict[str, str]
    cwd: str
    files: list[int]


def main(listener: int) -> None:
    """Serve until nobody holds the server any more; in a forked process, run what was asked for.

    The forked process returns from here to the end of the interpreter, as any program does.
    """
    began = dict(os.environ)
    for name in MODULES:
        import_module(name)
    environments = [began, dict(os.environ)]  # imports set some
    waiting = socket.socket(fileno=listener)
    address = waiting.getsockname()
    request = _serve(waiting, environments)
    if request is None:
        shutil.rmtree(os.path.dirname(address))
        return
    try:
        _become(request)
    except KeyboardInterrupt:
        # Python ends by the signal where nothing catches this, but forgets to where a library has
        # executed a string before.
        atexit.register(_end_by_interrupt)
        raise


def _end_by_interrupt() -> None:
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def _serve(listener: socket.socket, environments: list[dict[str, str]]) -> Request | None:
    """Answer requests; None at the end, or in a forked process the request that it is for."""
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    children: dict[int, socket.socket] = {}  # by process: who asked for it
    holders: set[socket.socket] = set()
    with selectors.DefaultSelector() as ready:
        ready.register(listener, selectors.EVENT_READ)
        ready.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj == woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(woken, 4096)
                    _report_ends(children, ready)
                    continue
                if key.fileobj is not listener:
                    # Holders and those who asked say nothing more: they are gone.
                    gone = key.fileobj
                    assert isinstance(gone, socket.socket)
                    if gone.fileno() == -1:  # its process has ended as well, and it was told
                        continue
                    _forget(gone, children, ready)
                    holders.discard(gone)
                    if not holders and not children:
                        return None
                    continue
                client, _ = listener.accept()
                try:
                    message, files = messages.receive(client)
                except (EOFError, OSError):
                    client.close()
                    continue
                ready.register(client, selectors.EVENT_READ)
                if "hold" in message:
                    holders.add(client)
                    with contextlib.suppress(OSError):  # killed since: it is forgotten next
                        messages.send(client, {"environments": environments})
                    continue
                process = os.fork()
                if process == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for end in (woken, wake):
                        os.close(end)
                    for other in (listener, client, *holders, *children.values()):
                        other.close()
                    return Request(**message, files=files)
                for file in files:
                    os.close(file)
                children[process] = client
                with contextlib.suppress(OSError):
                    messages.send(client, {"pid": process})


def _report_ends(children: dict[int, socket.socket], ready: selectors.BaseSelector) -> None:
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if process == 0:
            return
        client = children.pop(process, None)
        if client is None:
            continue
        with contextlib.suppress(OSError):
            messages.send(client, {"status": os.waitstatus_to_exitcode(status)})
        ready.unregister(client)
        client.close()


def _forget(
    gone: socket.socket, children: dict[int, socket.socket], ready: selectors.BaseSelector
) -> None:
    """Kill the process that nobody waits for any more, with its group."""
    ready.unregister(gone)
    for process in [process for process, client in children.items() if client is gone]:
        del children[process]
        messages.kill(process)
        os.waitpid(process, 0)
    gone.close()


def _become(request: Request) -> None:
    """Be the process `python ARGUMENTS`."""
    os.setsid()
    out, err = request.files
    for target, file in ((1, out), (2, err)):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.cwd)
    fork_server.stand_by()
    first, *rest = request.arguments
    if first == "-c":
        code, *rest = rest
        sys.argv[:] = ["-c", *rest]
        sys.path[0] = ""
        sys.modules["__main__"] = main = ModuleType("__main__")
        main.__dict__["__builtins__"] = __builtins__
        exec(compile(code, "<string>", "exec"), main.__dict__)
    elif first == "-m":
        name, *rest = rest
        sys.argv[:] = [name, *rest]
        sys.path[0] = request.cwd
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = [first, *rest]
        sys.path[0] = os.path.dirname(os.path.abspath(first))
        runpy.run_path(first, run_name="__main__")
