#!/bin/sh
# Audio, stage 2: audio projector and audio tower learn from questions about sounds.
#
#   DATA        datasets: stage2_audio_text.json and the sounds that it names
#   CHECKPOINT  of audio_stage1.sh      TOWER  the vision tower, where it is not near      OUT  the run
#
# Writes OUT/checkpoint, a whole audio-visual checkpoint. Arguments go to `vl2 train`, the last of each counts.
ZERO=2
. "$(dirname "$0")/run.sh"
run "${DATA:-datasets}" --layout audio_stage2 --out "${OUT:-work_dirs/audio_stage2}" \
    --checkpoint "${CHECKPOINT:-work_dirs/audio_stage1/checkpoint}" ${TOWER:+--tower "$TOWER"} \
    --tune audio --tune-audio-tower --learning-rate 2e-5 --epochs 2 --batch-size 4 --global-batch-size 128 \
    --save-steps 2000 --save-limit 2 "$@"
