#!/usr/bin/env bash
# The cluster route for real: a SLURM of one node on loopback, in a temporary directory, runs a reduced study through
# profiles/slurm as it is; one job is cancelled and one requeued on the way. Everything it starts it stops again.
#
#   sudo PYTHON=.venv/bin/python tests/cluster/one_node.sh [STUDY]      # default .ci/embedded-reduced.yaml
#
# The node says it has two 80 GB GPUs, 16 cores and 256 GB, so SLURM grants what the profile asks for; the jobs compute
# on the CPU. The log of the run stays in work/cluster/.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
study=${1:-.ci/embedded-reduced.yaml}

refuse() { echo "not run: $*" >&2; exit 3; }
for program in munged slurmctld slurmd sbatch; do
    command -v "$program" > /dev/null || refuse "$program is missing: apt-get install slurmctld slurmd slurm-client munge"
done
[ "$(id -u)" = 0 ] || refuse "SLURM's daemons need root: use sudo, or a container"
"$python" -c "import snakemake_executor_plugin_slurm" 2> /dev/null ||
    refuse "$python has no SLURM executor: make install PROFILE=slurm"

kept=work/cluster
state=$(mktemp -d)
chmod 755 "$state"
export SLURM_CONF=$state/slurm.conf  # before anything below can speak to another cluster
mkdir -p "$kept" "$state"/{bin,spool,ctld,munge}
daemons=() sweep=
stop() {  # whatever happened: the sweep, the jobs, the daemons in turn, the directory
    set +e
    trap - EXIT INT TERM
    [ -z "$sweep" ] || { kill -KILL -- "-$sweep"; wait "$sweep"; }  # at a SIGTERM Snakemake waits for its jobs
    scancel --user root && sleep 3
    for pid in "${daemons[@]}"; do kill "$pid"; wait "$pid"; done
    rm -rf "$state"
} 2> /dev/null
trap stop EXIT
trap 'exit 130' INT TERM

# --- a cluster of one node -------------------------------------------------------------------------------------------
free_port() { "$python" -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"; }
host=$(hostname -s)
cat > "$SLURM_CONF" << CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$state/munge/socket
CredType=cred/munge
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/spool
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
MinJobAge=86400
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=256000 Gres=gpu:2
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE
CONF
touch "$state"/gpu{0,1}
echo "Name=gpu File=$state/gpu[0-1]" > "$state/gres.conf"
# From 23.11 on, slurmd insists on cgroups unless told otherwise; earlier versions do not know the word.
slurmd -V | awk '{exit !($2 >= 23.11)}' && echo "CgroupPlugin=disabled" > "$state/cgroup.conf"

# The executor removes SLURM_CONF from what srun sees inside a job; elsewhere srun finds /etc/slurm or the controller.
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$state/bin/srun"
chmod +x "$state/bin/srun"
export PATH=$state/bin:$PATH

head -c 1024 /dev/urandom > "$state/munge/key"
chmod 400 "$state/munge/key"
start() { "$@" >> "$kept/daemons.log" 2>&1 & daemons=("$!" "${daemons[@]}"); }
: > "$kept/daemons.log"
start munged --foreground --force --key-file="$state/munge/key" --socket="$state/munge/socket" \
    --pid-file="$state/munge/pid" --log-file="$state/munge/log" --seed-file="$state/munge/seed"
wait_for() {  # SECONDS MESSAGE COMMAND...: until the command succeeds
    local end=$((SECONDS + $1)) message=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "gave up: $message" >&2; tail -5 "$kept"/*.log >&2; exit 1; }
        sleep 1
    done
}
wait_for 20 "munged does not answer" test -S "$state/munge/socket"
start slurmctld -D
start slurmd -D
node_is_idle() { sinfo --noheader --format=%T | grep -qx idle; }
wait_for 60 "the node does not come up" node_is_idle
sinfo --format="%P %N %c cores %m MB %G %T"

# --- the study -------------------------------------------------------------------------------------------------------
export HF_HUB_OFFLINE=1  # no network but loopback
log=$kept/run.log
run=("$python" -m sdd_utils.sweep.reproduce "$study" --run "$state/run"
    --profile profiles/slurm --slurm-init-seconds-before-status-checks 10)
setsid "${run[@]}" > "$log" 2>&1 &  # its own process group: reproduce and the Snakemake it starts
sweep=$!
running() { squeue --noheader --states=RUNNING --format="%i %k" | grep -m1 "rule_$1" | cut -d' ' -f1; }
is_running() { kill -0 "$sweep" || exit 1; [ -n "$(running "$1")" ]; }
wait_for 900 "no fine-tuning was started" is_running finetuning
sleep 10
cancelled=$(running finetuning)
scancel "$cancelled"
echo "cancelled job $cancelled, a fine-tuning, after 10 seconds"
wait_for 900 "no embedding similarity was started" is_running embedding_similarity
requeued=$(running embedding_similarity)
scontrol requeue "$requeued"
echo "requeued job $requeued, as a preemption would"
wait "$sweep" || { tail -30 "$log" >&2; exit 1; }
sweep=

# --- what happened ---------------------------------------------------------------------------------------------------
jobs=$kept/jobs.txt
squeue --states=all --sort=i \
    --Format="JobID:6,State:11,RestartCnt:9,TimeUsed:7,NumCPUs:5,MinMemory:11,tres-per-job:13,Comment:60" | tee "$jobs"
"$python" - "$study" "$state/run/records" "$jobs" "$log" "$cancelled" "$requeued" << 'CHECK'
import json, re, subprocess, sys
from collections import Counter
from pathlib import Path

study, records, jobs, log, cancelled, requeued = sys.argv[1:]
rows = [line.split() for line in Path(jobs).read_text().splitlines()[1:]]
state = {row[0]: row[1] for row in rows}
assert state[cancelled] == "CANCELLED" and state[requeued] == "COMPLETED", state
assert set(state.values()) == {"COMPLETED", "CANCELLED"} and list(state.values()).count("CANCELLED") == 1, state
done = Counter(re.match(r"rule_([a-z_]+?)(_wildcards_|$)", row[-1])[1] for row in rows if row[1] == "COMPLETED")
made = Counter(json.loads(path.read_text())["step"] for path in Path(records).glob("*.json"))
assert done == made and sum(made.values()) == len(rows) - 1 > 6, (done, made)
assert "Trying to restart job" in Path(log).read_text()
restarts = subprocess.run(["scontrol", "show", "job", requeued], capture_output=True, text=True).stdout
assert "Restarts=1" in restarts, restarts
print(f"{len(rows)} SLURM jobs, {sum(made.values())} records: one for each completed job; one job cancelled, one requeued")
CHECK
"${run[@]}" > "$kept/again.log" 2>&1
grep -qi "nothing to be done" "$kept/again.log"
echo "started again: nothing to be done"
