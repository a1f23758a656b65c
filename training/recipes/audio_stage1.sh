#!/bin/sh
# Audio, stage 1: add BEATs as audio tower to a vision checkpoint, and train a new audio projector on audio captions.
#
#   DATA        datasets: stage1_pretrain.json and the audio files that it names
#   CHECKPOINT  VideoLLaMA2.1-7B-16F
#   BEATS       BEATs' published file      TOWER  the vision tower, if not next to CHECKPOINT      OUT  the run's folder
#
# Writes OUT/checkpoint, a whole audio-visual checkpoint. Arguments are passed to `vl2 train` and override those below.
ZERO=2
. "$(dirname "$0")/run.sh"
run "${DATA:-datasets}" --layout audio_stage1 --out "${OUT:-work_dirs/audio_stage1}" \
    --checkpoint "${CHECKPOINT:-VideoLLaMA2.1-7B-16F}" ${TOWER:+--tower "$TOWER"} \
    --audio-tower "${BEATS:-BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt}" \
    --tune audio --learning-rate 1e-3 --epochs 1 --batch-size 32 --global-batch-size 1024 \
    --save-steps 1000 --save-limit 1 "$@"
