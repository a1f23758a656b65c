#!/bin/sh
# Audio, stage 2: train audio projector and audio tower on questions about audio.
#
#   DATA        datasets: stage2_audio_text.json and the audio files that it names
#   CHECKPOINT  that of audio_stage1.sh      TOWER  the vision tower, if not next to CHECKPOINT      OUT  the run's folder
#
# Writes OUT/checkpoint, a whole audio-visual checkpoint. Arguments are passed to `vl2 train` and override those below.
ZERO=2
. "$(dirname "$0")/run.sh"
run "${DATA:-datasets}" --layout audio_stage2 --out "${OUT:-work_dirs/audio_stage2}" \
    --checkpoint "${CHECKPOINT:-work_dirs/audio_stage1/checkpoint}" ${TOWER:+--tower "$TOWER"} \
    --tune audio --tune-audio-tower --learning-rate 2e-5 --epochs 2 --batch-size 4 --global-batch-size 128 \
    --save-steps 2000 --save-limit 2 "$@"
