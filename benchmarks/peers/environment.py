"""The environment in which other programs are installed, named by BITSWEEP_PEERS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "BITSWEEP_PEERS"
HERE = Path(__file__).parent
REQUIREMENTS = HERE.parents[1] / "tools" / "peers" / "requirements.txt"
HOW_TO = (
    "Make one with `python -m venv DIR && DIR/bin/pip install torch==2.13.0 && DIR/bin/pip "
    f"install --no-deps -r tools/peers/requirements.txt` and set {VARIABLE}=DIR."
)


def interpreter(what: str) -> Path | None:
    """Return the interpreter of the peers' environment; without one say that `what` is left out."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        print(f"{what} is not measured: {VARIABLE} names no environment. {HOW_TO}")
        return None
    found = Path(folder) / "bin" / "python"
    if not found.exists():
        sys.exit(f"{VARIABLE}={folder} has no bin/python; name an environment. {HOW_TO}")
    return found
