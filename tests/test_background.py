"""The suite started in the background of a script, where a shell has SIGINT ignored."""

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_tests_of_interrupts_pass_where_sigint_is_ignored(tmp_path: Path) -> None:
    """From another folder, too: helpers are found wherever pytest is started."""
    file = ROOT / "tests" / "harness" / "run" / "test_signals.py"
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(pytest)} & wait $!"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
