"""A fork server of multiprocessing that is forked instead of started.

The modules that it would import for seconds are there already. It must be forked while its parent
has one thread, and be its parent's child (multiprocessing waits for it), so it is forked at the
beginning, before it is known whether one is wanted, and waits.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from multiprocessing import util

from tests.warm import messages

_STARTS_ONE = "from multiprocessing.forkserver import main"
_FREE = 100  # descriptors from here on are moved to


def stand_by() -> None:
    """Let this process's first fork server be one that is forked now."""
    ours, theirs = socket.socketpair()
    process = os.fork()
    if process == 0:
        ours.close()
        status = 1
        try:
            _wait(theirs)
            status = 0
        except SystemExit:
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    theirs.close()
    usual, waiting = util.spawnv_passfds, [process]

    def spawn(path: bytes, words: Sequence[str], files: Sequence[int]) -> int:
        if not waiting or not words[-1].startswith(_STARTS_ONE):
            return usual(path, words, files)
        request = {
            "code": words[-1],
            "environment": dict(os.environ),
            "cwd": os.getcwd(),
            "blocked": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            "files": list(files),
        }
        messages.send(ours, request, files)
        ours.close()
        return waiting.pop()

    util.spawnv_passfds = spawn


def _wait(theirs: socket.socket) -> None:
    """Become the fork server that is asked for; return if none is before the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the fork server does
    try:
        request, files = messages.receive(theirs)
    except (EOFError, OSError):
        return
    # The code names the descriptors by the numbers that they have in the parent.
    moved = [_above(file) for file in files]
    theirs.close()
    for file, number in zip(moved, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server's children have it
    exec(request["code"], {})


def _above(file: int) -> int:
    import fcntl

    number = fcntl.fcntl(file, fcntl.F_DUPFD, _FREE)
    os.close(file)
    return number
