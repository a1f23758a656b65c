#!/bin/sh
# Trains tiny-shapes from scratch: generates data, pretrains the tower, then trains on texts, images and clips.
# Takes less than an hour on two CPU cores. Usage: sh training/tiny_shapes.sh [FOLDER]
set -eu
cd "$(dirname "$0")/.."
out=${1:-build/shapes}
vl2=.venv/bin/vl2
# Everything except the tower starts from random weights and is trained.
common="--tune full --bf16 --weight-decay 0.02 --beta2 0.98 --seed 1"

$vl2 shapes --out "$out" --seed 1 --tower-steps 2000
$vl2 train "$out/texts.json" --checkpoint "$out/start" --out "$out/words" $common \
    --learning-rate 1e-3 --batch-size 8 --max-steps 600
$vl2 train "$out/pictures.json" --checkpoint "$out/words/checkpoint" --out "$out/pretrained" $common \
    --learning-rate 5e-4 --batch-size 24 --questions-per-media 4 --max-steps 1000
$vl2 train "$out/train.json" --checkpoint "$out/pretrained/checkpoint" --out "$out/tuned" $common \
    --learning-rate 4e-4 --batch-size 8 --max-steps 5000
echo "$out/tuned/checkpoint is ready"
