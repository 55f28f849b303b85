"""Ctrl-C and SIGTERM raise inside, whatever raised before stands again, ignored ones stay so."""

import signal
import threading

import pytest

from harness.run.signals import Terminated, as_interrupts, exit_status


@pytest.mark.parametrize(
    ("number", "kind", "status"),
    [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, Terminated, 143)],
)
def test_each_signal_is_an_interrupt_with_its_status(
    number: signal.Signals, kind: type[KeyboardInterrupt], status: int
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(kind) as caught, as_interrupts():
        signal.raise_signal(number)
    assert type(caught.value) is kind
    assert exit_status(caught.value) == status
    assert signal.getsignal(number) is before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with as_interrupts():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_changes_no_handler() -> None:
    seen = []

    def inside() -> None:
        with as_interrupts():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
