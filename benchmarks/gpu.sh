#!/usr/bin/env bash
# Everything a first GPU session needs, in one call: tests marked gpu, then the demo in bf16 with cuDNN LSTMs. Writes one JSON.
#
#   bash benchmarks/gpu.sh [OUT.json [OPTIONS of gpu.py]]     default: benchmarks/gpu.json
#   WHEELS=.whl bash benchmarks/gpu.sh                        installs what is missing from a folder of wheels, without a network
#
# Without a GPU everything runs on the CPU and the JSON says so. Needs a Python with torch; what else is missing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-benchmarks/gpu.json}")
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

# Into a folder of its own, so that the machine's torch stays as it is.
missing=$("$python" benchmarks/missing_packages.py)
if [ -n "$missing" ]; then
    if [ -n "${WHEELS:-}" ]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site/packages" "$WHEELS"/*.whl
    else
        # shellcheck disable=SC2086  # one word a package
        "$python" -m pip install --quiet --target "$site/packages" $missing
    fi
    export PYTHONPATH="$site/packages${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" benchmarks/gpu.py --out "$out" --work "$site/work" "${@:2}"
