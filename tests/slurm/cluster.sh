#!/usr/bin/env bash
# A Slurm cluster on this machine: munged, slurmctld and a slurmd for each pretended node. For tests, and for trying templates by hand.
#
#   eval "$(tests/slurm/cluster.sh up [DIR])"     # starts it; sets SLURM_CONF
#   sinfo; sbatch ...
#   tests/slurm/cluster.sh down [DIR]             # ends its jobs and daemons, removes DIR
#
# DIR (default ${TMPDIR:-/tmp}/storydist-slurm) holds everything: settings, key, logs, state, the pretended GPUs. Clusters in different folders run side by side.
# NODES (2), CPUS (16 a node, pretended), GPUS (2 a node) and GRACE_S (8) change its shape. Root only: Slurm starts jobs as other users. Needs slurm-wlm and munge.
# Partitions: `train`, whose jobs are requeued GRACE_S after a job of `urgent` wants their nodes, and `urgent`.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

NODES=${NODES:-2} CPUS=${CPUS:-16} GPUS=${GPUS:-2} GRACE_S=${GRACE_S:-8}
TRIES=150 # of 0.2 s each

usage() {
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

fail() {
  echo "cluster.sh: $*" >&2
  exit 1
}

# Ports are tried until none of a row is taken; the first is slurmctld's.
free_ports() {
  local first port
  while :; do
    first=$((20000 + RANDOM % 1000 * 10))
    for ((port = first; port <= first + NODES; port++)); do
      ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || continue 2
    done
    echo "$first"
    return
  done
}

write_settings() {
  local port host
  port=$(free_ports) host=$(hostname -s)
  cat >"$DIR/slurm.conf" <<END
ClusterName=box
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job has to wait; 120 s where it is not set.
AuthInfo=socket=$DIR/munge.socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool-%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd-%n.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
# Nodes are taken to have what is written here.
SlurmdParameters=config_overrides
SlurmdTimeout=10
# How long a call to a daemon that is gone is tried again.
MessageTimeout=4
SlurmctldTimeout=10
KillWait=20
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-$NODES] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + NODES))] CPUs=$CPUS RealMemory=4000 Gres=gpu:$GPUS State=UNKNOWN
PartitionName=train Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=$GRACE_S
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF
END
  [ "$GPUS" -gt 0 ] || sed -i '/^GresTypes/d; s/ Gres=[^ ]*//' "$DIR/slurm.conf"
  : >"$DIR/gres.conf"
  for ((gpu = 0; gpu < GPUS; gpu++)); do
    mknod "$DIR/nvidia$gpu" c 1 3 # /dev/null's numbers: a device that does nothing
    echo "NodeName=n[1-$NODES] Name=gpu File=$DIR/nvidia$gpu" >>"$DIR/gres.conf"
  done
}

start_munge() {
  head -c 1024 /dev/urandom >"$DIR/munge.key"
  chmod 600 "$DIR/munge.key"
  munged --force --socket="$DIR/munge.socket" --key-file="$DIR/munge.key" --log-file="$DIR/munged.log" \
    --pid-file="$DIR/munged.pid" --seed-file="$DIR/munged.seed" 2>>"$DIR/munged.err" || fail "munged does not start: $(cat "$DIR/munged.err")"
}

up() {
  [ "$(id -u)" = 0 ] || fail "only root can start it"
  for program in munged slurmctld slurmd; do
    command -v "$program" >/dev/null || fail "$program is not installed (apt-get install slurm-wlm munge)"
  done
  [ ! -e "$DIR" ] || fail "$DIR exists; choose another folder, or end that cluster: $0 down $DIR"
  mkdir -p "$DIR/state"
  chmod 755 "$DIR" # munged takes no folder that others may write to
  trap '[ $? = 0 ] || down >&2' EXIT
  write_settings
  start_munge
  # They write pid files of their own, and go to the background once they listen.
  setsid slurmctld -i </dev/null >>"$DIR/slurmctld.out" 2>&1
  for ((node = 1; node <= NODES; node++)); do
    setsid slurmd -N "n$node" </dev/null >>"$DIR/slurmd-n$node.out" 2>&1
  done
  for ((try = 0; try < TRIES; try++)); do
    [ "$(sinfo -h -p train -t idle -o %D 2>/dev/null)" != "$NODES" ] || break
    sleep 0.2
  done
  [ "$try" -lt "$TRIES" ] || fail "not all nodes came up: $(sinfo -N 2>&1; tail -n 5 "$DIR"/*.log)"
  echo "export SLURM_CONF=$SLURM_CONF"
}

# Daemons, steps and tasks: all whose environment names this cluster, but for shells that have only set SLURM_CONF, which are in no job.
processes() {
  local environment pid program
  for environment in /proc/[0-9]*/environ; do
    pid=${environment//[^0-9]/}
    program=$(readlink "/proc/$pid/exe") || continue # it has ended
    if grep -qzsFx "SLURM_CONF=$SLURM_CONF" "$environment" &&
      { [[ $program =~ /(munged|slurm[^/]*)$ ]] || grep -qzs '^SLURM_JOB_ID=' "$environment"; }; then
      echo "$pid"
    fi
  done
}

# Nobody is asked first: what they would write goes as well.
down() {
  local pids
  for ((try = 0; try < TRIES; try++)); do
    mapfile -t pids < <(processes)
    [ ${#pids[@]} -gt 0 ] || break
    kill -KILL "${pids[@]}" 2>/dev/null || true # some have ended meanwhile
    sleep 0.2
  done
  [ ${#pids[@]} = 0 ] || fail "these do not end: ${pids[*]}"
  [ ! -e "$DIR/slurm.conf" ] || rm -rf "$DIR"
}

case $# in 1 | 2) ;; *) usage ;; esac
DIR=$(realpath -m "${2:-${TMPDIR:-/tmp}/storydist-slurm}")
export SLURM_CONF=$DIR/slurm.conf
case $1 in
  up | down) "$1" ;;
  *) usage ;;
esac
