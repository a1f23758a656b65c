#!/bin/sh
# Audio, stage 3: train everything except the vision tower on videos with audio, audio, and videos.
#
#   DATA        datasets: stage3_video_audio.json (videos with their audio), stage2_audio_subset_new.json,
#               stage2_video_subset.json, and the media that they name
#   CHECKPOINT  that of audio_stage2.sh      TOWER  the vision tower, if not next to CHECKPOINT      OUT  the run's folder
#
# Writes OUT/checkpoint, a whole audio-visual checkpoint. Arguments are passed to `vl2 train` and override those below.
ZERO=2
. "$(dirname "$0")/run.sh"
run "${DATA:-datasets}" --layout audio_stage3 --out "${OUT:-work_dirs/audio_stage3}" \
    --checkpoint "${CHECKPOINT:-work_dirs/audio_stage2/checkpoint}" ${TOWER:+--tower "$TOWER"} \
    --tune full --tune-audio-tower --pad-to-square --learning-rate 2e-5 --epochs 2 --batch-size 4 \
    --global-batch-size 128 --group-by-length --save-steps 2000 --save-limit 2 "$@"
