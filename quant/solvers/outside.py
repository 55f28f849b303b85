"""Quantization by another program: it is given a model and a text, and leaves a checkpoint.

The program runs in an environment of its own, because its packages need other versions than ours.
What it leaves is an ordinary checkpoint in a format that Bitsweep reads, so that it is measured and
audited as if Bitsweep had made it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from quant.errors import QuantizationError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from quant.scheme import Scheme

REQUEST, RESULT, PEAK = "request.json", "result.json", "peak"
_SHOWN = 300  # letters of a program's last line in an error


@dataclass(frozen=True)
class Request:
    """What another program is asked for.

    model    Hugging Face folder of the full-precision model.
    windows  calibration windows, each a list of token ids; empty for a method without calibration.
    scheme   grid of all linear layers in the blocks.
    out      empty folder for the checkpoint.
    device   "cpu" or "cuda", where it is to work.
    """

    model: Path
    windows: Sequence[Sequence[int]]
    scheme: Scheme
    out: Path
    device: str = "cpu"
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class Made:
    """What is known of another program's run.

    version     of the program, for the record: "llm-compressor 0.14.0.1".
    seconds     by its clock, from the loaded model to the quantized one, in memory.
    peak_bytes  highest resident set of its largest process; None if the platform reports none.
    """

    version: str
    seconds: float
    peak_bytes: int | None = None


def interpreter(variable: str, needs: str) -> Path:
    """Return the interpreter of the environment that an environment variable names.

    needs  how to make one, for the message. Raises ValueError if there is none, so that the options
    of a program can be refused before anything is run.
    """
    folder = os.environ.get(variable)
    if not folder:
        raise ValueError(f"{variable} names no environment for this program. {needs}")
    for name in ("bin/python", "Scripts/python.exe"):
        if (Path(folder) / name).is_file():
            return Path(folder).absolute() / name
    raise ValueError(f"{variable}={folder} has no bin/python: name an environment. {needs}")


def run_script(interpreter: Path, script: Path, request: Request, options: dict[str, Any]) -> Made:
    """Run `script` with another interpreter, and return what it says of its run.

    It gets two arguments: a JSON file with model, windows, bits, group_size, symmetric, out,
    device, seed, threads and options, and the name of the JSON file that it writes at its end, with
    its version and seconds. What it prints goes where the output of this process goes. It ends
    when this process does.

    Raises QuantizationError if it fails, or writes no result that can be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, said, peak = (Path(folder) / name for name in (REQUEST, RESULT, PEAK))
        asked.write_text(json.dumps(_asked(request, options)), encoding="utf-8")
        guard = [sys.executable, "-m", __name__, str(peak), str(interpreter), str(script)]
        started = time.perf_counter()
        with subprocess.Popen(
            [*guard, str(asked), str(said)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,  # where a program's own logs and caches may lie
            env=_environment(request),
        ) as process:
            try:
                last = _passed_on(process.stderr)
                status = process.wait()
            finally:
                process.kill()
        took = time.perf_counter() - started
        if status:
            raise QuantizationError(
                f"{script.name} ended with status {status} after {took:.0f} s"
                + (f" ({last})" if last else "")
                + "; the log of the cell has all that it said."
            )
        return _made(said, peak, script)


def _asked(request: Request, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": str(request.model.absolute()),
        "windows": [list(window) for window in request.windows],
        "bits": request.scheme.bits,
        "group_size": request.scheme.group_size,
        "symmetric": request.scheme.symmetric,
        "out": str(request.out.absolute()),
        "device": request.device,
        "seed": request.seed,
        "threads": request.threads,
        "options": options,
    }


def _environment(request: Request) -> dict[str, str]:
    """The environment of the program: without paths to our modules, and offline."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # The guard runs in this interpreter and needs the folder that this module was imported from.
    found["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    found["HF_HUB_OFFLINE"] = "1"
    if request.threads is not None:
        found["OMP_NUM_THREADS"] = str(request.threads)
    return found


def _passed_on(stream: IO[bytes] | None) -> str:
    """Write a program's error stream to ours until it ends, and return its last line."""
    last = b""
    for line in stream or ():
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        last = line.strip() or last
    return last.decode(errors="replace")[:_SHOWN]


def _made(said: Path, peak: Path, script: Path) -> Made:
    try:
        found = json.loads(said.read_text(encoding="utf-8"))
        version, seconds = str(found["version"]), float(found["seconds"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise QuantizationError(
            f"{script.name} wrote no result ({type(error).__name__}: {error}): it must end by "
            'writing {"version": ..., "seconds": ...} to its second argument.'
        ) from error
    return Made(version, seconds, int(peak.read_text()) if peak.is_file() else None)


def _guard(peak: Path, command: Sequence[str]) -> int:
    """Run a command until it ends or standard input does, which is when our parent is gone.

    peak  file for the highest resident set of it and of what it started, in bytes.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
    )

    def end() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdin.buffer.read()
        # The program may have processes of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    threading.Thread(target=end, daemon=True).start()
    status = process.wait()
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
        peak.write_text(str(most), encoding="ascii")
    return status


if __name__ == "__main__":
    status = _guard(Path(sys.argv[1]), sys.argv[2:])
    sys.stderr.flush()
    os._exit(status if status >= 0 else 128 - status)
