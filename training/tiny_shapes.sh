#!/bin/sh
# tiny-shapes, from nothing to a checkpoint: data, first lessons on pictures, then clips with questions.
# Two CPU cores, less than an hour. Usage: sh training/tiny_shapes.sh [FOLDER]
set -eu
cd "$(dirname "$0")/.."
out=${1:-build/shapes}
vl2=.venv/bin/vl2
# Every part is trained, the tower too: all of them begin with random weights.
common="--tune full --tune-tower --bf16 --weight-decay 0.02 --beta2 0.98 --seed 1"

$vl2 shapes --out "$out" --seed 1 --held-out 120  # the first 60 are in benchmarks/shapes
# Rows of equal length: four questions about a picture, four without media.
$vl2 train "$out/pictures.json" "$out/texts.json" --checkpoint "$out/start" --out "$out/pretrained" $common \
    --learning-rate 5e-4 --batch-size 24 --questions-per-media 4 --max-steps 1500
$vl2 train "$out/train.json" "$out/texts.json" --checkpoint "$out/pretrained/checkpoint" --out "$out/tuned" $common \
    --learning-rate 4e-4 --batch-size 8 --max-steps 2500
echo "$out/tuned/checkpoint is ready"
