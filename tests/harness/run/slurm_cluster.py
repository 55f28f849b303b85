"""A Slurm of two nodes on this machine, without root and without accounting.

Debian's slurm-wlm is built so that several slurmd can run on one machine. Everything that it writes
lies in one folder.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from getpass import getuser
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("node1", "node2")
# A requeued job may start when its credentials have expired (cred_expire), 120 seconds by default.
# Two partitions: jobs of `urgent` preempt those of `usual`, which are requeued.
CONF = """
ClusterName=bitsweep
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,requeue_setup_env_fail
KillWait=5
MinJobAge=10
NodeName={first} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName={second} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PartitionName=usual Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""


def absent() -> list[str]:
    """The daemons that are not installed."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])  # not on every user's PATH
    return [name for name in DAEMONS if shutil.which(name, path=path) is None]


@contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """Start Slurm in a new folder, yield its slurm.conf, and end it with all its jobs."""
    # munged wants nobody else to be able to write, and everybody to reach its socket.
    folder.mkdir()
    for each in (folder, folder / "munge", folder / "state"):
        each.mkdir(exist_ok=True)
        each.chmod(0o755)
    (folder / "key").mkdir(mode=0o700)
    key = folder / "key" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    first, second = NODES
    conf.write_text(
        CONF.format(
            folder=folder,
            host=socket.gethostname().partition(".")[0],
            user=getuser(),
            ports=_free_ports(3),
            first=first,
            second=second,
        )
    )
    environment = {
        **os.environ,
        "SLURM_CONF": str(conf),
        "PATH": os.pathsep.join([os.environ["PATH"], "/usr/sbin"]),
    }
    daemons: list[subprocess.Popen[bytes]] = []

    def begin(*words: str) -> None:
        daemons.append(subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL))

    munge = {"key-file": key}
    munge |= {name: folder / "munge" / name for name in ("socket", "pid-file", "log-file")}
    munge["seed-file"] = folder / "key" / "seed"
    begin(
        "munged", "--foreground", "--force", *(f"--{name}={file}" for name, file in munge.items())
    )
    begin("slurmctld", "-D", "-f", str(conf))
    for node in NODES:
        begin("slurmd", "-D", "-f", str(conf), "-N", node)
    try:
        _wait_until_idle(environment)
        yield conf
    finally:
        subprocess.run(["scancel", "--me"], env=environment, check=False)
        with suppress(AssertionError):  # the processes of jobs end only while slurmd runs
            _wait_until_idle(environment)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _wait_until_idle(environment: dict[str, str]) -> None:
    """Wait until Slurm says that all nodes take jobs."""
    deadline = time.monotonic() + 60
    while True:
        asked = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
        answer = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
        if {line.split()[1] for line in answer.stdout.splitlines()} == {"idle"}:
            return
        assert time.monotonic() < deadline, f"no Slurm: {answer.stdout}{answer.stderr}"
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found
