# shellcheck shell=bash
# The life of a job: its steps, who is told of signals, and whether it begins again. Read by templates whose job goes on where it was (train.sbatch); docs/slurm.md tells the rules.
# shellcheck source=slurm/site.env
source slurm/site.env

RESTARTS=${SLURM_RESTART_COUNT:-0}
# An array's task by its own name: one of the tasks has the array's number as its own, and under that number Slurm would requeue them all.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}
asked='' told='' step=''

say() { echo "== $(date +%FT%T) life $((RESTARTS + 1)): $*"; }

# One field of what Slurm says of this job, such as JobState. Asked again where no answer comes: a controller that restarts must not cost a night.
slurm_says() {
  local answer tries=0
  until answer=$(scontrol -o show job "$JOB" 2>/dev/null) || [ $((tries += 1)) -ge 10 ]; do
    sleep 3
  done
  tr ' ' '\n' <<<"$answer" | sed -n "s/^$1=//p" | head -n 1
}

begin() {
  local first
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  # NodeAddr is what Slurm itself reaches the node by; the port is below those that systems give away, and another one for each job.
  : "${MASTER_ADDR:=$(scontrol -o show node "$first" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')}"
  : "${MASTER_PORT:=$((15000 + SLURM_JOB_ID % 15000))}"
  export MASTER_ADDR MASTER_PORT
  trap 'told=USR1 asked="a signal to the job"; pass_on' USR1
  # TERM comes when Slurm ends the job (the ranks have had it as well), or from a user who means this script alone.
  trap 'told=TERM; [ "$(slurm_says JobState)" != RUNNING ] || { asked="a signal to the job"; pass_on; }' TERM
  say "$SLURM_NTASKS rank(s) on $SLURM_JOB_NODELIST, meeting at $MASTER_ADDR:$MASTER_PORT; requeued $RESTARTS of at most $MAX_REQUEUES times"
}

# srun hands USR1 to every rank. TERM it would not: it ends the step itself.
pass_on() {
  say "$told came, the ranks are told"
  [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null
}

# Runs a Python program as the job's ranks; returns the highest of their exit codes (128 and more: killed by a signal).
# -c: since 22.05 srun does not take it from the job. A rank that leaves does not end the others, which may be saving, but none stays longer than 120 s.
# In the background, because bash minds a trap only between commands, or in `wait`.
ranks() {
  local code
  [ -z "$asked" ] || return 75 # a signal came when there was nobody to tell
  srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=120 "${SRUN_OPTIONS[@]}" slurm/ranks.sh "$@" &
  step=$!
  while told=''; do
    wait "$step"
    code=$?
    [ -n "$told" ] || break # else `wait` was only interrupted by the trap
  done
  step=''
  return "$code"
}

# The preflight with the arguments of the training: it ends with 0 when all is well, and with 3 when nodes are to blame, which it names in a line `bad nodes: n1,n2`.
preflight() {
  local found code bad
  [ -n "$PREFLIGHT" ] || return 0
  found=$(mktemp)
  ranks "$PREFLIGHT" --config "$@" >"$found"
  code=$?
  cat "$found"
  bad=$(sed -n 's/^bad nodes: *//p' "$found" | tr , '\n' | sort -u | paste -sd,) # without rank 0 each node tells it
  rm -f "$found"
  if [ "$code" = 3 ] && [ -n "$bad" ] && [ -z "$asked" ]; then
    fault "the preflight blames $bad" "$bad"
  elif [ "$code" != 0 ]; then
    conclude "$code"
  fi
}

# What came of the ranks, from the exit code of the last of them: ends the job, or begins it again.
conclude() {
  local code=$1 state silent
  state=$(slurm_says JobState)
  if [ "$code" = 0 ]; then
    say "finished"
    exit 0
  elif [ "$state" != RUNNING ]; then
    say "ended by Slurm (${state:-which does not answer}, exit code $code), which decides what becomes of the job"
    exit "$code"
  elif [ -n "$asked" ] || [[ $(slurm_says PreemptTime) =~ [0-9] ]]; then
    again "requeued: ${asked:-preemption}, exit code $code"
  elif [ "$code" = 2 ]; then
    give_up "a mistake in settings or data, or a full disk; see above, mend it, and submit the same again: it goes on from the last checkpoint" "$code"
  fi
  silent=$(silent_nodes)
  if [ -n "$silent" ]; then
    fault "no answer from $silent, exit code $code" "$silent"
  elif [ "$code" = 75 ]; then
    fault "the ranks stopped though nobody asked the job: a hang (see train.log), or a signal to the ranks alone"
  elif [ "$code" -gt 128 ]; then
    fault "a rank was killed by $(kill -l $((code - 128))), exit code $code"
  fi
  give_up "a defect; see the traceback above" "$code"
}

give_up() {
  say "not requeued: exit code $2: $1"
  exit "$2"
}

# What nobody asked for: requeued too, but a few times in a row only. The log is the record; it is appended to.
fault() {
  local log count
  log=$(slurm_says StdOut)
  count=$(awk '/^== .*: requeued: /{n = 0} /^== .*: fault: /{n++} END {print n + 1}' "$log" 2>/dev/null || echo 1)
  say "fault: $1 ($count in a row, at most $MAX_FAULTS)"
  [ "$count" -le "$MAX_FAULTS" ] || give_up "$MAX_FAULTS faults in a row; see above" 75
  again "begins again" "${2:-}"
}

# Requeues the job, without the nodes in $2. Slurm then sends this script TERM; only a job that is no longer running can be given other nodes.
again() {
  local reason=$1 bad=${2:-} excluded
  [ "$RESTARTS" -lt "$MAX_REQUEUES" ] || give_up "requeued $MAX_REQUEUES times; submit the same again to go on ($reason)" 75
  trap '' TERM USR1
  excluded=$(slurm_says ExcNodeList)
  say "$reason"
  scontrol requeue "$JOB" || give_up "Slurm does not requeue this job (--no-requeue, or JobRequeue=0); submit the same again to go on" 75
  if [ -n "$bad" ]; then
    [ "$excluded" = "(null)" ] || bad=$excluded,$bad
    scontrol update JobId="$JOB" ExcNodeList="$bad" && say "without $bad from now on"
  fi
  exit 75
}

# Nodes of the job on which no step can be started any more.
silent_nodes() {
  local node
  for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    timeout --signal=KILL 30 srun --overlap --nodes=1 --ntasks=1 --cpus-per-task=1 --gpus=0 --nodelist="$node" true >/dev/null 2>&1 || echo "$node" &
  done | sort | paste -sd,
}
