#!/usr/bin/env bash
# A SLURM of two nodes on this machine, for tests: tests/slurm/start_slurm.sh FOLDER (root; Debian or Ubuntu).
# Installs what is missing, starts munged, slurmctld and two slurmd, and prints the SLURM_CONF to use.
# `tests/slurm/start_slurm.sh FOLDER stop` ends what it has started.
set -euo pipefail
folder=$(realpath -m "${1:?usage: start_slurm.sh FOLDER [stop]}")

stop() {
    for name in slurmd_n2 slurmd_n1 slurmctld munged; do
        if [ -f "$folder/$name.pid" ]; then
            kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
            rm -f "$folder/$name.pid"
        fi
    done
}

if [ "${2:-start}" = stop ]; then
    stop
    exit
fi
if ! { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null; then
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >&2
fi
mkdir -p "$folder" && cd "$folder" && stop
mkdir -p state spool_n1 spool_n2

# munge insists on folders that only their owner may write to.
munge=/run/vrft-munge-$(id -u)
mkdir -p "$munge" && chmod 755 "$munge"
[ -s "$munge/key" ] || { head -c 1024 /dev/urandom >"$munge/key" && chmod 600 "$munge/key"; }
munged --force --key-file="$munge/key" --socket="$munge/socket" --pid-file="$munge/pid" \
    --log-file="$munge/log" --seed-file="$munge/seed"
cp "$munge/pid" munged.pid

read -r port_c port_1 port_2 < <(python3 - <<'PY'
import socket
sockets = [socket.create_server(("", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in sockets))
PY
)
host=$(hostname)
cat >slurm.conf <<CONF
ClusterName=vrft
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port_c
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool_%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd_%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=1,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$port_1 CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$port_2 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=60 OverSubscribe=NO
PartitionName=urgent Nodes=n1,n2 MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF OverSubscribe=NO
CONF
export SLURM_CONF=$folder/slurm.conf
slurmctld -c
slurmd -c -N n1
slurmd -c -N n2
for _ in $(seq 60); do
    if [ "$(sinfo -h -N -p main -o %T 2>/dev/null | grep -c '^idle')" = 2 ]; then
        echo "$SLURM_CONF"
        exit
    fi
    sleep 0.5
done
echo "SLURM did not come up; see $folder/*.log" >&2
sinfo -N -l >&2 || true
exit 1
