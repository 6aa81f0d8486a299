#!/usr/bin/env bash
# Installs what `make slurm-test` needs, where that is possible; where it is not, its tests are skipped and say so.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

missing=()
for pair in munged:munge slurmctld:slurm-wlm slurmd:slurm-wlm shellcheck:shellcheck; do
  command -v "${pair%:*}" >/dev/null || missing+=("${pair#*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  # The packages' own services are not wanted: tests/slurm/cluster.sh starts its own.
  { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null ||
    echo "${missing[*]} cannot be installed; tests that need them are skipped" >&2
else
  echo "${missing[*]} not installed, and only root can with apt-get; tests that need them are skipped" >&2
fi
