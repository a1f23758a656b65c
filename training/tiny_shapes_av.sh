#!/bin/sh
# Trains tiny-shapes-av: generates audio and clips with audio, pretrains an audio tower for tiny-shapes, then trains all together.
# Takes 35 minutes on two cores. Usage: sh training/tiny_shapes_av.sh [FOLDER]
set -eu
cd "$(dirname "$0")/.."
out=${1:-build/shapes-av}
vl2=.venv/bin/vl2

$vl2 shapes --out "$out" --seed 1 --pictures 0 --texts 0 --clips 2000 --audio-samples 2400 \
    --add-audio-tower training/checkpoints/tiny-shapes --audio-tower-steps 1000
$vl2 train "$out/sounds.json" "$out/train.json" --checkpoint "$out/start" --out "$out/tuned" \
    --tune full --bf16 --weight-decay 0.02 --beta2 0.98 --seed 1 \
    --learning-rate 3e-4 --batch-size 4 --group-by-length --max-steps 1500
echo "$out/tuned/checkpoint is ready"
