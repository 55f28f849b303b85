#!/usr/bin/env bash
# Guess: with PreemptMode=REQUEUE, a job that a partition of higher priority preempts is queued again, however it takes
#   the SIGTERM; one that saves its state and ends at once does best.
# Versions: Slurm 22.05.8 and munge 0.5.15 of Debian 12 (22.05.8-4+deb12u3), a cluster of one node, accounting off.
# Came: without a GraceTime both kinds are queued again. With one, SIGTERM comes when it begins, and only the job that
#   is still there at its end is: the job that ended by itself, with status 0 or another, has ended for good (COMPLETED
#   or FAILED). The polite job is lost, and the deaf one is started again.
# Matters: a worker that goes on from a checkpoint should, after SIGTERM, save and then wait to be killed; scontrol
#   shows which SIGTERM it was (PreemptTime).
set -euo pipefail
work=$(mktemp -d); cd "$work"; chmod 755 .
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
slurm=22.05.8-4+deb12u3
apt-get download -q {slurmctld,slurmd,slurm-client,slurm-wlm-basic-plugins}=$slurm {munge,libmunge2}=0.5.15-2+deb12u1 \
  libhwloc15 libnuma1 liblz4-1 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
lib=$work/root/usr/lib/x86_64-linux-gnu
export PATH=$work/root/usr/bin:$work/root/usr/sbin:$PATH LD_LIBRARY_PATH=$lib:$lib/slurm-wlm SLURM_CONF=$work/slurm.conf
mkdir -m 700 key && head -c 128 /dev/urandom > key/key && chmod 400 key/key && mkdir -m 755 munge state spool
munged --foreground --key-file=key/key --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
  --log-file="$work/munge/log" --seed-file="$work/key/seed" 2>/dev/null &
host=$(hostname -s)
cat > slurm.conf <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket,cred_expire=5
PluginDir=$lib/slurm-wlm
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
KillWait=5
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26818 CPUs=4 RealMemory=1000
PartitionName=graceful Nodes=ALL PriorityTier=1 GraceTime=6
PartitionName=graceless Nodes=ALL PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
CONF
slurmctld-wlm -D >slurmctld.log 2>&1 &
slurmd-wlm -D -N node1 -d "$work/root/usr/sbin/slurmstepd-wlm" >slurmd.log 2>&1 &
for _ in $(seq 100); do [ "$(sinfo -h -p urgent -o %T 2>/dev/null)" = idle ] && break; sleep 0.3; done
[ "$(sinfo -h -p urgent -o %T)" = idle ] || { cat slurm*.log >&2; exit 1; }
cat > job.py <<'PY'
import signal, sys, time
kind = sys.argv[1]
deaf = lambda *_: None
signal.signal(signal.SIGTERM, deaf if kind == "deaf" else lambda *_: sys.exit(int(kind)))
while True:
    time.sleep(0.1)
PY
for partition in graceful graceless; do
  for kind in 0 1 deaf; do
    job=$(sbatch --parsable -p $partition -o /dev/null --wrap="srun python3 $work/job.py $kind")
    while [ "$(squeue -h -j "$job" -o %T)" != RUNNING ]; do sleep 0.3; done; sleep 1
    sbatch -p urgent --exclusive --wait -o /dev/null --wrap=true >/dev/null; sleep 1
    said=$(scontrol show job "$job")
    outcome=$(grep -o 'JobState=[A-Z]*' <<<"$said")
    if grep -q Restarts=1 <<<"$said"; then outcome="queued again"; fi
    echo "$partition, at SIGTERM $kind: $outcome" | tee -a came
    scancel "$job" || true; while squeue -h | grep -q .; do sleep 0.3; done
  done
done
diff came - <<'SEEN'
graceful, at SIGTERM 0: JobState=COMPLETED
graceful, at SIGTERM 1: JobState=FAILED
graceful, at SIGTERM deaf: queued again
graceless, at SIGTERM 0: queued again
graceless, at SIGTERM 1: queued again
graceless, at SIGTERM deaf: queued again
SEEN
# Output seen: these six lines. "0" and "1" end with that status when SIGTERM comes, "deaf" does not end. The step that
# srun starts gets the first SIGTERM; a batch script without one gets none until its time is over.
