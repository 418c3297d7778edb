#!/bin/bash
# Checks every kernel on this machine's GPU, then times it: scripts/gpu.sh OUT [parts, "mhc,norm_rope,compress" by default]
#     scripts/gpu.sh -- COMMAND...    runs a command in the same environment (make gpu, make sanitize)
#
# Needs Python with torch and triton, and nothing of dsv4's other dependencies: kernels import dsv4.errors alone, so a
# package of those two is enough. Correctness first: the tests on the device (where pytest is installed), then every
# bench's own check at real shapes. OUT gets h200.jsonl-like lines; COMMIT names the tree, since there may be no git.
set -euo pipefail
out=${1:?usage: scripts/gpu.sh OUT [parts], or scripts/gpu.sh -- COMMAND...}
parts=${2:-mhc,norm_rope,compress}
root=$(cd "$(dirname "$0")/.." && pwd)
lone=$(mktemp -d)
trap 'rm -rf "$lone"' EXIT
mkdir -p "$lone/dsv4"
touch "$lone/dsv4/__init__.py"
ln -s "$root/python/dsv4/kernels" "$root/python/dsv4/errors.py" "$lone/dsv4/"
export PYTHONPATH="$lone:$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
cd "$root"
if [ "$out" = -- ]; then
    shift
    "$@" && exit || exit $?
fi
mkdir -p "$(dirname "$out")"
python3 -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__, torch.cuda.get_device_name())'
failed=0
if python3 -c 'import pytest' 2>/dev/null; then
    for group in ${parts//,/ }; do
        tests="tests/kernels/$group"
        [ -d "$tests" ] || continue
        python3 -m pytest -q -c /dev/null --rootdir=. --import-mode=importlib -p no:cacheprovider --ignore-glob="*_reference.py" "$tests" || failed=1
    done
else
    echo "pytest is not installed here: only the benches' own checks run"
fi
python3 -m benches.kernels.run --out "$out" --only "$parts" --commit "${COMMIT:-unknown}" || failed=1
exit $failed
