#!/usr/bin/env bash
# GPU tests and benchmarks in one run of under ten minutes, on a machine with PyTorch 2.11 and without network.
#
#   benchmarks/device.sh wheels FOLDER        where there is a network: fetches what such a machine lacks
#   benchmarks/device.sh run FOLDER RESULTS   on it: installs FOLDER aside, writes logs and JSON to RESULTS
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
MOST_MIB=60

wheels() {
    local platforms=() version
    for version in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${version}_x86_64"); done
    "$PYTHON" -m pip download --no-deps --only-binary=:all: --python-version "${TARGET_PYTHON:-3.12}" \
        --implementation cp "${platforms[@]}" --dest "$1" diffusers==0.42.1 comfy-kitchen==0.2.26 || exit 1
    local size
    size=$(du -sm "$1" | cut -f1)
    echo "$1: ${size} MiB"
    ((size <= MOST_MIB)) || { echo "more than ${MOST_MIB} MiB: leave something out" >&2; exit 1; }
}

run() {
    local folder=$1 results=$2 site
    site=$(mktemp -d)
    mkdir -p "$results"
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$folder"/*.whl || exit 1
    export PYTHONPATH=$site PYTHONUNBUFFERED=1
    timeout 100 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests/core 2>&1 | tee "$results/tests.log"
    timeout 260 "$PYTHON" -m benchmarks.speed --part cuda --pairs 3 2>&1 | tee "$results/speed.log"
    timeout 180 "$PYTHON" -m benchmarks.offload --dtypes bf16 2>&1 | tee "$results/offload.log"
    find benchmarks/results -name '*.json' -newer "$site" -exec cp {} "$results"/ \;
}

case "${1:-}:$#" in
    wheels:2) wheels "$2" ;;
    run:3) run "$2" "$3" ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
