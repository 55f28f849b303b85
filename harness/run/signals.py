"""Ctrl-C and SIGTERM, which end a command in the same way.

A cluster sends SIGTERM to preempt a job. A signal that is ignored when the process starts (a shell
ignores SIGINT for background jobs) stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED, TERMINATED = 130, 143  # exit status


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def exit_status(error: KeyboardInterrupt) -> int:
    """The exit status for the signal that raised `error`."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


@contextmanager
def as_interrupts() -> Iterator[None]:
    """Context: SIGINT raises KeyboardInterrupt and SIGTERM Terminated in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.getsignal(number) for number in usual}
    ours = [number for number, handler in usual.items() if before[number] is handler]
    for number in ours:
        signal.signal(number, _arrived)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def block() -> set[int]:
    """Block both signals in this thread, and in threads and processes that it starts from now on.

    Returns what was blocked before, for `unblock`.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return set()
    return {
        int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    }


def unblock(before: set[int]) -> None:
    """Block what was blocked before in this thread; a signal that came meanwhile is handled now."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """Ignore both signals in a worker, whose parent handles them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _arrived(number: int, _frame: Any) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
