#!/bin/sh
# tiny-shapes, from nothing to a checkpoint: data, first lessons on pictures, then clips with questions.
# Two CPU cores, less than an hour. Usage: sh training/tiny_shapes.sh [FOLDER]
set -eu
cd "$(dirname "$0")/.."
out=${1:-build/shapes}
vl2=.venv/bin/vl2
# Every part is trained, the tower too: all of them begin with random weights.
common="--tune full --tune-tower --bf16 --learning-rate 5e-4 --weight-decay 0.02 --beta2 0.98 --seed 1"

$vl2 shapes --out "$out" --seed 1
$vl2 train "$out/pictures.json" --checkpoint "$out/start" --out "$out/pretrained" $common \
    --batch-size 24 --max-steps 2000
$vl2 train "$out/train.json" "$out/texts.json" --checkpoint "$out/pretrained/checkpoint" --out "$out/tuned" $common \
    --vision-rate 1e-3 --batch-size 8 --max-steps 7000
echo "$out/tuned/checkpoint is ready"
