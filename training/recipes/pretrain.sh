#!/bin/sh
# Pretraining: train a new connector between a language model and a vision tower on captions.
#
#   DATA   datasets/videollava_pt: valley_llavaimage.json, valley/, llava_image/
#   BASE   the language model      TOWER  the vision tower      OUT  the run's folder
#
# Writes OUT/checkpoint, a Base folder. Arguments are passed to `vl2 train` and override those below; --check-only checks DATA.
ZERO=3
. "$(dirname "$0")/run.sh"
run "${DATA:-datasets/videollava_pt}" --layout videollava_pt --out "${OUT:-work_dirs/pretrain}" \
    --base "${BASE:-Qwen/Qwen2-7B-Instruct}" --tower "${TOWER:-google/siglip-so400m-patch14-384}" \
    --connector stc_connector_v35 --num-frames 16 --select-layer -2 \
    --tune connector --learning-rate 1e-3 --epochs 1 --batch-size 8 --global-batch-size 256 \
    --save-steps 500 --save-limit 99 "$@"
