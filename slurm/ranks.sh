#!/usr/bin/env bash
# One rank, started by srun: says its place in the words that torch and Accelerate read, then becomes Python, so that signals reach Python itself.
#   srun ... slurm/ranks.sh launch/train.py ...      with MASTER_ADDR and MASTER_PORT set (life.sh does)
set -euo pipefail
# shellcheck source=slurm/site.env
source "${BASH_SOURCE[0]%/*}/site.env"
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=${SLURM_STEP_TASKS_PER_NODE%%[!0-9]*} # "4(x2)": the same on every node
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}} # else each library takes the whole node, and spins
exec "${CONTAINER[@]}" "$PYTHON" "$@"
