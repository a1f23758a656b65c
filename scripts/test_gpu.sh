#!/bin/sh
# Runs the GPU tests in parts of at most 8 minutes: correct (recorded answers on PyTorch), speed (times at a published size),
# tensorrt (engines, in the pinned container), tensorrt_rtx (engines of the extra tensorrt-rtx), nvdec (video decoding on the GPU).
# No part downloads anything; tests that the machine cannot run are skipped, and the results say why.
# For a machine without network, run `make gpu-wheels` on another one and copy build/gpu/wheels; the machine's own torch is used.
set -eu
cd "$(dirname "$0")/.."

case ${1:-all} in
    all) parts="correct speed tensorrt tensorrt_rtx nvdec" ;;
    correct | speed | tensorrt | tensorrt_rtx | nvdec) parts=$1 ;;
    *) echo "test-gpu: PART is $1; it must be one of correct, speed, tensorrt, tensorrt_rtx, nvdec, or left out" >&2; exit 2 ;;
esac
if [ -x .venv/bin/python ] && [ ! -d build/gpu/wheels ]; then
    python=.venv/bin/python
else
    python=build/gpu/env/bin/python
    [ -d build/gpu/wheels ] || { echo "test-gpu: neither .venv nor build/gpu/wheels exists; run make setup, or make gpu-wheels on a machine with network" >&2; exit 1; }
    [ -x $python ] || "${PYTHON:-python3}" -m venv --system-site-packages build/gpu/env
    $python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --find-links build/gpu/wheels \
        -r scripts/gpu_requirements.txt
fi
failed=0
for part in $parts; do
    # SIGINT instead of SIGKILL, so that results so far are written. Individual tests have no timeout.
    VL2_GPU_PART=$part PYTHONPATH=.:client:server:converters:training:benchmarks:gateway timeout -s INT -k 10 470 \
        "$python" -m pytest -s -p no:cacheprovider --timeout 0 "tests/gpu/test_$part.py" || failed=$?
done
exit $failed
