#!/bin/sh
# Fine-tuning: train the connector, and LoRA adapters of the language model in 4 bits, on conversations.
#
#   LAYOUT      videollava_sft: videochatgpt_llavaimage_tune.json, videochatgpt_tune/, llava_image_tune/
#               custom_sft: custom.json and the media that it names, such as in videos/ and images/
#   DATA        datasets/$LAYOUT
#   CHECKPOINT  a Base folder: that of pretrain.sh, or VideoLLaMA2.1-7B-16F-Base
#   BASE, TOWER its language model and vision tower, if not next to it      OUT  the run's folder
#
# Writes the adapters to OUT/checkpoint. Arguments are passed to `vl2 train` and override those below.
ZERO=2
. "$(dirname "$0")/run.sh"
LAYOUT=${LAYOUT:-videollava_sft}
run "${DATA:-datasets/$LAYOUT}" --layout "$LAYOUT" --out "${OUT:-work_dirs/finetune_qlora}" \
    --checkpoint "${CHECKPOINT:-work_dirs/pretrain/checkpoint}" ${BASE:+--base "$BASE"} ${TOWER:+--tower "$TOWER"} \
    --tune qlora --lora-rank 128 --lora-alpha 256 --learning-rate 2e-5 --connector-learning-rate 2e-5 --pad-to-square \
    --epochs 1 --batch-size 4 --global-batch-size 128 --save-steps 500 --save-limit 99 "$@"
