"""Make stdout and stderr safe: they may be closed, full, or lack characters.

Characters that the encoding lacks are replaced by others. A closed stream accepts everything. An
error of stdout is reported in one sentence; an error of stderr is ignored.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
from typing import Any

from harness.errors import BitsweepError

_PLAIN = {
    "–": "-", "—": "-", "−": "-", "…": "...", "×": "x", "±": "+/-", "≤": "<=", "≥": ">=",
    "≈": "~", "→": "->", "↓": "v", "↑": "^", "‖": "||", "·": "*", "•": "*", "‘": "'", "’": "'",
    "“": '"', "”": '"', "Δ": "d",
}  # fmt: skip
ERRORS = "bitsweep"  # name of our error handler in codecs
# The footnote mark of a figure must not become one of its digits.
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True))


class OutputError(BitsweepError):
    """Standard output cannot be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the output could not be written ({error.strerror}).")
        self.closed = error.errno == errno.EPIPE


class _Stream:
    """A text stream that turns write errors into OutputError, or ignores them if `quiet`."""

    def __init__(self, stream: Any, quiet: bool) -> None:
        self._stream, self._quiet = stream, quiet

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text) or len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Any, *values: str) -> Any:
        try:
            return act(*values)
        except OSError as error:
            _drop(self._stream)
            if not self._quiet:
                raise OutputError(error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare() -> None:
    """Make both streams of this process safe to write to."""
    for number in (0, 1, 2):  # files opened later must not get these numbers
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 - as long as we live
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERRORS)
        setattr(sys, name, _Stream(stream, quiet=name == "stderr"))


def shown(text: str) -> str:
    """`text` as standard output will show it, to measure its width."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, ERRORS).decode(encoding)


def _drop(stream: Any) -> None:
    """Discard the buffer, because Python would report an error for it at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Replacement of characters that an encoding lacks, as an error handler of codecs."""
    assert isinstance(error, UnicodeEncodeError)
    found, raised = "", False
    for character in error.object[error.start : error.end]:
        if character in _RAISED:
            found += ("" if raised else "^") + _RAISED[character]
        else:
            found += _PLAIN.get(character, "?")
        raised = character in _RAISED
    return found, error.end


codecs.register_error(ERRORS, _spelled)
