#!/usr/bin/env bash
# Submits shard -> train -> evaluate, each to begin when the one before has ended well. From the repository's root:
#
#   slurm/pipeline.sh [--test-only] SOURCE METADATA SHARDS CONFIG RUN [key=value ...] [-- options of shards/build.py]
#
# --test-only: submits nothing; Slurm says of each step whether and when it could begin. Fails when it refuses one.
# What sbatch is given besides: SHARD_SBATCH, TRAIN_SBATCH and EVALUATE_SBATCH, for example TRAIN_SBATCH="--nodes=2 --time=12:00:00".
set -euo pipefail

usage() {
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

test_only=''
if [ "${1:-}" = --test-only ]; then test_only=1 && shift; fi
[ $# -ge 5 ] || usage
[ -e slurm/life.sh ] || { echo "run it from the repository's root: slurm/pipeline.sh ..." >&2; exit 2; }
input=$1 metadata=$2 shards=$3 config=$4 run=$5
shift 5
settings=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do settings+=("$1") && shift; done
[ $# = 0 ] || shift

# submit TEMPLATE "SBATCH OPTIONS" DEPENDS-ON WORDS...: prints the job's number.
submit() {
  local template=$1 words after=$3 job
  read -ra words <<<"$2"
  shift 3
  if [ -n "$test_only" ]; then
    sbatch --test-only "${words[@]}" "$template" "$@" >&2 || { echo "refused: $template" >&2; echo refused; }
    return
  fi
  # A job whose predecessor failed goes, else it would wait for ever.
  [ -z "$after" ] || words+=("--dependency=afterok:$after" --kill-on-invalid-dep=yes)
  job=$(sbatch --parsable "${words[@]}" "$template" "$@") || return
  echo "${job%%;*}" # "job;cluster" where there are several clusters
}

shard=$(submit slurm/shard.sbatch "${SHARD_SBATCH:-}" "" "$input" "$metadata" "$shards" "$@")
train=$(submit slurm/train.sbatch "${TRAIN_SBATCH:-}" "$shard" "$config" "data.shards=$shards" "run.dir=$run" "${settings[@]}") ||
  { scancel "$shard"; exit 1; }
evaluate=$(submit slurm/evaluate.sbatch "${EVALUATE_SBATCH:-}" "$train" "$run") ||
  { scancel "$shard" "$train"; exit 1; }
if [ -n "$test_only" ]; then
  [ -z "$shard$train$evaluate" ] || exit 1
  exit 0
fi

cat <<END
shard     $shard (an array)
train     $train, when all of $shard have ended well
evaluate  $evaluate, when $train has

watch:    squeue --jobs=$shard,$train,$evaluate; tail -f storydist-$train.log
cancel:   scancel $shard $train $evaluate
A shard task that fails is run again alone, and what depended on it is submitted again:
  sbatch --array=TASK slurm/shard.sbatch $(printf '%q ' "$input" "$metadata" "$shards" "$@")
END
