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

_came: list[int] | None = None  # signals that wait for the end of `deferred`


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


def block() -> None:
    """Block both signals in this thread, so that processes it starts never receive them."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


@contextmanager
def deferred() -> Iterator[None]:
    """Context inside `as_interrupts`: a signal that comes within raises at its end.

    A mask would not do: any other thread may take the signal, and Python calls the handler in the
    main thread all the same.
    """
    global _came
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _came = []
    try:
        yield
    finally:
        came, _came = _came, None
    if came:
        _arrived(came[0], None)


def ignore() -> None:
    """Ignore both signals in a worker, whose parent handles them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _arrived(number: int, _frame: Any) -> None:
    if _came is not None:
        _came.append(number)
        return
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
