"""Workers as actors of a Ray cluster, or of one that is started on this machine for the sweep.

Ray lives in a process of its own (`python -m harness.launchers.ray`), because it ends the process
that uses it when its head is gone. The sweep's own process then says so, and keeps what is done.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import ConfigError
from harness.launchers.base import Launcher, LaunchError, gpus_of_worker

LOG = "ray.log"
END_SECONDS = 20.0
AGAIN = "finished stages are kept; run the same command again when it is back"


@dataclass(frozen=True)
class Options:
    """conf/hydra/launcher/ray.yaml says what they are."""

    workers: int = 2
    address: str | None = None
    gpus: float | None = None
    cpus: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus < 1:
            raise ConfigError(
                f"hydra.launcher.workers={self.workers} and hydra.launcher.cpus={self.cpus}: use 1 "
                "or more of each."
            )


class _Process:
    """The process that holds the actors; Ray itself starts actors again that die."""

    def __init__(self, folder: Path, count: int, options: Options, gpus: int) -> None:
        given = asdict(options) | {"workers": count, "folder": str(folder)}
        given["gpus"] = gpus_of_worker(options.gpus, gpus)
        self._log = folder / LOG
        self._count = count
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.launchers.ray", json.dumps(given)],
                stdin=subprocess.PIPE,  # its end tells that this process is gone
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self) -> dict[int, str]:
        """None while Ray has them; all of them when it says that they ended by themselves."""
        status = self._process.poll()
        if status is None:
            return {}
        if status == 0:
            return dict.fromkeys(range(self._count), "")
        how = f"status {status}" if status > 0 else signal.Signals(-status).name
        raise LaunchError(
            f"the Ray cluster is gone, or refuses its workers ({how}; {self._last_line()}): {AGAIN}"
            f" (log: {self._log})."
        )

    def again(self, number: int) -> None:
        raise LaunchError(f"worker {number + 1} ended before all cells were settled: {AGAIN}.")

    def cancel(self) -> None:
        if self._process.poll() is not None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_line(self) -> str:
        last = deque(self._log.read_text(errors="replace").strip().splitlines(), maxlen=1)
        return last[0][:300] if last else "it said nothing"


def _main(given: str) -> None:
    """Start the actors and wait for them, or for the end of standard input."""
    import threading

    import ray

    said = json.loads(given)
    count, folder = said["workers"], said["folder"]
    kwargs = (
        {"address": said["address"]}
        if said["address"]
        else {"num_cpus": count * said["cpus"], "include_dashboard": False, "address": "local"}
    )
    ray.init(log_to_driver=False, configure_logging=False, **kwargs)
    # Of what this process sees, only the folders of modules: they are on the shared disk.
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))

    class Actor:
        def work(self, number: int) -> None:
            from harness.run.worker import work

            work(folder, number, count)

    needs = {"num_cpus": said["cpus"], "num_gpus": said["gpus"]}
    env = {"env_vars": {"PYTHONPATH": path}}
    remote = ray.remote(max_restarts=-1, max_task_retries=-1, **needs, runtime_env=env)(Actor)
    actors = [remote.remote() for _ in range(count)]

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would be held at the end
            pass
        for actor in actors:
            ray.kill(actor)
        ray.shutdown()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    ray.get([actor.work.remote(number) for number, actor in enumerate(actors)])
    ray.shutdown()
    os._exit(0)  # not through Ray's own threads


LAUNCHER = Launcher("ray", "ray", Options, _Process)

if __name__ == "__main__":
    _main(sys.argv[1])
