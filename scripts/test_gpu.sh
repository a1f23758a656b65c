#!/bin/sh
# Parts of the GPU tests, each at most 8 minutes: correct (recorded answers on PyTorch), speed (times at a published size),
# tensorrt (engines; in the pinned container), tensorrt_rtx (engines of the extra tensorrt-rtx), nvdec (video files decoded by
# the GPU). No part downloads anything; what a machine cannot run is skipped, and its results say why.
# A machine without a network: `make gpu-wheels` before on one with, carry build/gpu/wheels along; its own torch is used.
set -eu
cd "$(dirname "$0")/.."

case ${1:-all} in
    all) parts="correct speed tensorrt tensorrt_rtx nvdec" ;;
    correct | speed | tensorrt | tensorrt_rtx | nvdec) parts=$1 ;;
    *) echo "test-gpu: found PART=$1; it is one of correct, speed, tensorrt, tensorrt_rtx, nvdec, or left out" >&2; exit 2 ;;
esac
if [ -x .venv/bin/python ] && [ ! -d build/gpu/wheels ]; then
    python=.venv/bin/python
else
    python=build/gpu/env/bin/python
    [ -d build/gpu/wheels ] || { echo "test-gpu: neither .venv nor build/gpu/wheels is here; make setup, or make gpu-wheels where there is a network" >&2; exit 1; }
    [ -x $python ] || "${PYTHON:-python3}" -m venv --system-site-packages build/gpu/env
    $python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --find-links build/gpu/wheels \
        -r scripts/gpu_requirements.txt
fi
failed=0
for part in $parts; do
    # Interrupted, not killed: what has run by then is written all the same. No test has a limit of its own.
    VL2_GPU_PART=$part PYTHONPATH=.:client:server:converters:training:benchmarks:gateway timeout -s INT -k 10 470 \
        "$python" -m pytest -s -p no:cacheprovider --timeout 0 "tests/gpu/test_$part.py" || failed=$?
done
exit $failed
